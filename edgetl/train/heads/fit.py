"""Head fitting on frozen features, for all kinds of heads and tasks."""

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
from edgetl.train.heads.multi_stage import MultiStageFeatures, check_stage_features
from edgetl.train.networks.backbone import Backbone, feature_extractor


def with_head_modules(backbone: Backbone, spec: HeadSpec) -> Backbone:
    """Return ``backbone`` with the features and the head modules of ``spec``. For the plain linear head, it is unchanged.

    Raises:
        ConfigError: If the backbone is a progressive network, or does not provide the feature maps of its stages.
    """
    if spec.plain:
        return backbone
    if backbone.columns:
        raise ConfigError(f"--head and --features: {backbone.name} is a progressive network and needs a linear head. Remove the options.")
    if spec.features == "layers":
        network = feature_extractor(backbone.model, backbone.head_name)
        check_stage_features(network, backbone.name, backbone.spec.input_size)
    classes = backbone.head.out_features
    # The adapters of knn and mlp get their sizes during the fit. Before that, the features pass unchanged.
    model = with_head(backbone.model, spec.model_copy(update={"kind": "linear"}), classes)
    return dataclasses.replace(backbone, model=model, head_name=HEAD_NAME)


def stage_extractor(backbone: Backbone) -> MultiStageFeatures | None:
    """Return the network that computes the joined features of all stages, or None if ``backbone`` does not provide them."""
    network = feature_extractor(backbone.model, backbone.head_name)
    if backbone.columns:
        return None
    try:
        check_stage_features(network, backbone.name, backbone.spec.input_size)
    except ConfigError:
        return None
    return MultiStageFeatures(network).eval()


def set_head(model: nn.Module, fitted: FittedHead) -> None:
    """Set the fitted head of a network that was made by ``with_head_modules``."""
    assert isinstance(model, HeadedNetwork)
    model.spec, model.adapter, model.head = fitted.spec, fitted.adapter, fitted.head


def set_linear_head(layer: nn.Linear, head: LinearHead) -> None:
    """Copy a fitted linear head into the last layer of a network."""
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight))
        layer.bias.copy_(torch.from_numpy(head.bias))


def draw_head(layer: nn.Linear, seed: int) -> None:
    """Initialize a head with random weights, as fastai does (He et al. 2015, arXiv:1502.01852).

    The initial head weights of some architectures are ten times as large.
    """
    torch.manual_seed(seed)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)


def fit_linear_head(
    train: LabeledFeatures,
    task: Task,
    classes: int,
    *,
    seed: int,
    balanced: bool = False,
    progress: Progress = silent,
) -> LinearHead:
    """Fit the linear probe of ``task``.

    Args:
        train: Training data. The targets of a regression or ordinal task are standardized.
        task: Task.
        classes: Number of classes. Other tasks ignore it.
        seed: Random seed of the folds.
        balanced: Give rare classes, or positive labels, a higher weight.
        progress: Callback, called after each fit.
    """
    match task:
        case "classification":
            return fit_logistic(train, classes, seed=seed, balanced=balanced, progress=progress)
        case "multi-label":
            return fit_multi_label(train, seed=seed, balanced=balanced, progress=progress)
        case "regression" | "ordinal":
            return fit_ridge(train)
        case "anomaly":
            raise AssertionError("edgetl.train.workflows.anomaly fits a detector")
        case _:
            assert_never(task)


def fit_other_head(
    spec: HeadSpec, train: LabeledFeatures, val: LabeledFeatures, weights: torch.Tensor, *, seed: int = 0, progress: Progress = silent
) -> FittedHead:
    """Fit the cosine, k-NN or MLP head of ``spec``.

    Args:
        spec: Kind and features of the head.
        train: Training data. k-NN ignores the augmented views, because several views of an image would vote several times.
        val: Validation data. Its log-loss selects the scale (cosine, k-NN) and the number of steps (MLP).
        weights: float32 ``[classes]``, class weights of the loss.
        seed: Random seed of the MLP's initial weights and batches.
        progress: Callback, called after each fit.
    """
    adapter: nn.Module
    all_views = LabeledFeatures(np.concatenate([train.features, *train.views]), np.tile(train.targets, 1 + len(train.views)))
    match spec.kind:
        case "cosine":
            adapter, head = fit_cosine(all_views, val, weights, progress=progress)
        case "mlp":
            spec = spec.model_copy(update={"hidden": HIDDEN})
            adapter, head = fit_mlp(spec, all_views, val, weights, seed=seed, progress=progress)
        case "knn":
            return fit_knn(spec, train, val, weights)
        case "linear" | "text":
            raise AssertionError("fit_linear_head fits the linear head, and a text head is not fitted")
        case _:
            assert_never(spec.kind)
    adapter, head = adapter.eval().requires_grad_(False), head.requires_grad_(False)
    correct = head(adapter(torch.from_numpy(train.features))).argmax(dim=1).numpy() == train.targets
    return FittedHead(spec, adapter, head, float(correct.mean()))
