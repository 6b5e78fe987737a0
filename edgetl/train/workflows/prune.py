"""Structured pruning: remove whole channels from a trained network, which is then fine-tuned; smaller and faster in every engine.

torch-pruning finds the channels that depend on each other (DepGraph: Fang et al. 2023, arXiv:2301.12900); those with the smallest weights
are removed (Li et al. 2017, arXiv:1608.08710).
"""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch_pruning
from torch import nn

from edgetl.core.config import StrictModel
from edgetl.core.output.folders import new_folder
from edgetl.core.progress import Progress, silent
from edgetl.data.loading import truth_of
from edgetl.errors import ConfigError, RunError, first_line
from edgetl.train.artifacts.record import BackboneRecord
from edgetl.train.artifacts.run import Run, open_run, run_inputs
from edgetl.train.artifacts.writer import Results, RunContents, provenance, write_run
from edgetl.train.inputs.features import features_of
from edgetl.train.networks.backbone import Backbone, count_macs, rebuild
from edgetl.train.networks.pruned import PRUNED, layer_sizes

# Engines' kernels work on 8 or 16 channels at a time: odd numbers of them are not faster.
ROUND_TO = 8


class Cost(StrictModel):
    """Size and cost of a network: parameters, and multiply-accumulates of one image, in millions."""

    params_m: float
    mmacs: float


@dataclass(frozen=True)
class Pruned:
    """The run of the pruned, not yet fine-tuned network, and both networks' costs."""

    run: Run
    before: Cost
    after: Cost


def prune_run(
    path: Path, out: Path, *, ratio: float = 0.3, data: Path | None = None, overwrite: bool = False, progress: Progress = silent
) -> Pruned:
    """Remove the share ``ratio`` of the channels from every group of layers of a run's network and write the rest as a run.

    Its accuracy is lower: fine-tune it with ``edgetl train DATA --backbone OUT --strategy full --teacher RUN``.

    Raises:
        RunError: not a run, or one whose network cannot be pruned.
        ConfigError: ``ratio`` is not between 0 and 0.9, or ``out`` exists.
        DataError: the run's images are not there.
    """
    if not 0 < ratio <= 0.9:
        raise ConfigError(f"--ratio {ratio:g}: give a share of the channels, more than 0 and at most 0.9.")
    run, started = open_run(path), time.monotonic()
    record = run.record
    if record.backbone.columns is not None or not record.head.plain:
        raise RunError(f"{path} has several networks, or another head than one linear layer; only a plain network can be pruned.")
    whole = run.backbone()
    with new_folder(out, inputs=run_inputs([run], data), overwrite=overwrite) as folder:
        smaller = prune(whole.model, whole.head_name, whole.spec.input_size, ratio)
        args = {**whole.model_args, PRUNED: layer_sizes(smaller)}
        pruned = dataclasses.replace(whole, model=smaller, model_args=args, parents=(*whole.parents, run.as_parent()))
        _check_rebuilds(pruned, len(record.labels))
        results = _evaluate(run, pruned, data, progress)
        changes = {
            "backbone": BackboneRecord.of(pruned),
            "validation": results.validation,
            "test": results.test,
            "alarms": (),
            "compared": (),
            "forgetting": None,
        }
        write_run(
            folder,
            RunContents(pruned, run.splits(), run.seen_images(), results),
            lambda files: record.model_copy(update={**changes, **provenance(out.name, started), "files": files}),
        )
    return Pruned(open_run(out), _cost(whole), _cost(pruned))


def prune(model: nn.Module, head_name: str, size: tuple[int, int], ratio: float) -> nn.Module:
    """A copy of ``model`` without the share ``ratio`` of its channels; the outputs of the layer ``head_name`` stay.

    Args:
        model: in evaluation mode.
        head_name: of its last layer.
        size: height and width of an image, px.
        ratio: above 0, below 1.

    Raises:
        RunError: the dependence of its layers cannot be found.
    """
    smaller, example = copy.deepcopy(model).eval().requires_grad_(True), torch.zeros(1, 3, *size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parameters that belong to no layer it knows; the check of the shapes decides
            torch_pruning.pruner.BasePruner(
                smaller,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                ignored_layers=[smaller.get_submodule(head_name)],
                round_to=ROUND_TO,
            ).step()
            with torch.no_grad():
                smaller(example)
    except (RuntimeError, ValueError, KeyError, AttributeError, IndexError, TypeError, AssertionError) as error:
        raise RunError(f"{type(model).__name__} cannot be pruned: {first_line(error)} Plain convolutional networks can.") from error
    return smaller.requires_grad_(False)


def _check_rebuilds(backbone: Backbone, classes: int) -> None:
    """Refuse a network that could not be loaded again, such as one with a pruned tensor that no layer's size describes."""
    built = rebuild(backbone.architecture, backbone.model_args, classes)
    try:
        built.load_state_dict(backbone.model.state_dict())
        built.eval()(torch.zeros(1, 3, *backbone.spec.input_size))
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"{backbone.architecture} cannot be pruned: {first_line(error)} Plain convolutional networks can.") from error


def _evaluate(run: Run, backbone: Backbone, data: Path | None, progress: Progress) -> Results:
    val, test = run.samples("val", data), run.samples("test", data)
    samples = [*val, *test]
    features = features_of(backbone, device="cpu", images=len(samples))(samples, progress=progress)
    with torch.no_grad():
        outputs = backbone.head(torch.from_numpy(features)).numpy()
    return Results.of(run.record.decoding, truth_of(samples), outputs, validation=len(val))


def _cost(backbone: Backbone) -> Cost:
    params = sum(parameter.numel() for parameter in backbone.model.parameters())
    macs = count_macs(backbone.model, backbone.spec.input_size)
    return Cost(params_m=round(params / 1e6, 3), mmacs=round(macs / 1e6, 1))
