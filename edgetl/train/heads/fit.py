"""Fitting a head on frozen features: one function for all kinds of heads and tasks."""

from __future__ import annotations

import dataclasses
from typing import assert_never

import numpy as np
import torch
from torch import nn

from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import Task
from edgetl.errors import ConfigError
from edgetl.train.heads.cosine import fit_cosine
from edgetl.train.heads.knn import fit_knn
from edgetl.train.heads.linear import LinearHead, fit_logistic, fit_multi_label, fit_ridge
from edgetl.train.heads.mlp import HIDDEN, fit_mlp
from edgetl.train.heads.modules import HEAD_NAME, FittedHead, HeadedNetwork, HeadSpec, LabeledFeatures, with_head
from edgetl.train.heads.multi_stage import check_stage_features
from edgetl.train.networks.backbone import Backbone, feature_extractor


def with_head_modules(backbone: Backbone, spec: HeadSpec) -> Backbone:
    """``backbone`` with the features and the place of the head that ``spec`` describes; unchanged for the plain linear head.

    Raises:
        ConfigError: the backbone is a progressive network, or does not return the feature maps of its stages.
    """
    if spec.plain:
        return backbone
    if backbone.columns:
        raise ConfigError(f"--head and --features: {backbone.name} has several columns, whose head is a linear one. Remove the options.")
    if spec.features == "layers":
        network = feature_extractor(backbone.model, backbone.head_name)
        check_stage_features(network, backbone.name, backbone.spec.input_size)
    classes = backbone.head.out_features
    # The adapters of knn and mlp get their sizes when they are fitted; until then features pass unchanged.
    model = with_head(backbone.model, spec.model_copy(update={"kind": "linear"}), classes)
    return dataclasses.replace(backbone, model=model, head_name=HEAD_NAME)


def set_head(model: nn.Module, fitted: FittedHead) -> None:
    """Put a fitted head into a network of ``with_head_modules``."""
    assert isinstance(model, HeadedNetwork)
    model.spec, model.adapter, model.head = fitted.spec, fitted.adapter, fitted.head


def set_linear_head(layer: nn.Linear, head: LinearHead) -> None:
    """Copy a fitted linear head into a network's last layer."""
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight))
        layer.bias.copy_(torch.from_numpy(head.bias))


def draw_head(layer: nn.Linear, seed: int) -> None:
    """Initialize a head as fastai does (He et al. 2015, arXiv:1502.01852); some architectures' own weights are ten times as large."""
    torch.manual_seed(seed)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)


def fit_linear_head(
    train: LabeledFeatures, task: Task, classes: int, *, seed: int, balanced: bool = False, progress: Progress = silent
) -> LinearHead:
    """Fit the linear probe of ``task``; targets of a regression or ordinal task are standardized, those of the others as recorded."""
    match task:
        case "classification":
            return fit_logistic(train, classes, seed=seed, balanced=balanced, progress=progress)
        case "multi-label":
            return fit_multi_label(train, seed=seed, balanced=balanced, progress=progress)
        case "regression" | "ordinal":
            return fit_ridge(train)
        case _:
            assert_never(task)


def fit_other_head(
    spec: HeadSpec, train: LabeledFeatures, val: LabeledFeatures, weights: torch.Tensor, *, seed: int = 0, progress: Progress = silent
) -> FittedHead:
    """Fit the cosine, k-NN or MLP head that ``spec`` names.

    Args:
        spec: kind and features of the head.
        train: data of the fit. k-NN ignores the views: a neighbor under another crop would vote twice for the same image.
        val: data that selects scale and length of the fit, by log-loss.
        weights: float32 ``[classes]``, class weights of the loss.
        seed: of the MLP's initial weights and batches.
        progress: called after each fit.
    """
    adapter: nn.Module
    every = LabeledFeatures(np.concatenate([train.features, *train.views]), np.tile(train.targets, 1 + len(train.views)))
    match spec.kind:
        case "cosine":
            adapter, head = fit_cosine(every, val, weights, progress=progress)
        case "mlp":
            spec = spec.model_copy(update={"hidden": HIDDEN})
            adapter, head = fit_mlp(spec, every, val, weights, seed=seed, progress=progress)
        case "knn":
            return fit_knn(spec, train, val, weights)
        case "linear":
            raise AssertionError("fit_linear_head fits the linear head")
        case _:
            assert_never(spec.kind)
    adapter, head = adapter.eval().requires_grad_(False), head.requires_grad_(False)
    correct = head(adapter(torch.from_numpy(train.features))).argmax(dim=1).numpy() == train.targets
    return FittedHead(spec, adapter, head, float(correct.mean()))
