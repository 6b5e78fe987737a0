"""Structured pruning: remove whole channels from a trained network, which is smaller and faster in every engine.

torch-pruning finds groups of dependent channels (DepGraph: Fang et al. 2023, arXiv:2301.12900). The channels with the smallest weights
are removed (Li et al. 2017, arXiv:1608.08710). The pruned network needs fine-tuning.
"""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import nn

from edgetl.core.config import StrictModel
from edgetl.core.output.folders import new_folder
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample
from edgetl.data.loading import truth_of
from edgetl.errors import ConfigError, RunError, first_line
from edgetl.train.artifacts.record import BackboneRecord
from edgetl.train.artifacts.run import Run, open_run, run_inputs
from edgetl.train.artifacts.writer import Results, RunContents, provenance, write_run
from edgetl.train.inputs.features import features_of
from edgetl.train.networks.backbone import Backbone, count_macs, rebuild
from edgetl.train.networks.pruned import PRUNED, layer_sizes

# Kernels of the engines process 8 or 16 channels at a time, so other channel counts are not faster.
ROUND_TO = 8


class Cost(StrictModel):
    """Size and cost of a network.

    Attributes:
        params_m: parameters, millions.
        mmacs: multiply-accumulates for one image, millions.
    """

    params_m: float
    mmacs: float


@dataclass(frozen=True)
class Pruned:
    """Result of a pruning.

    Attributes:
        run: run of the pruned network, not yet fine-tuned.
        before: cost of the original network.
        after: cost of the pruned network.
    """

    run: Run
    before: Cost
    after: Cost


def prune_run(
    path: Path, out: Path, *, ratio: float = 0.3, data: Path | None = None, overwrite: bool = False, progress: Progress = silent
) -> Pruned:
    """Prune the network of a run, and write the smaller network as a new run.

    Pruning lowers the accuracy. Fine-tune the result with ``edgetl train DATA --backbone OUT --strategy full --teacher RUN``.

    Args:
        path: run folder.
        out: run folder to write.
        ratio: pruning ratio: fraction of the channels to remove from every group of layers, above 0 and at most 0.9.
        data: folder of the run's images. The default is the folder that the run was trained on.
        overwrite: replace ``out``.
        progress: called for each batch of the evaluation.

    Raises:
        RunError: ``path`` is not a run, or its network cannot be pruned.
        ConfigError: ``ratio`` is out of range, or ``out`` exists.
        DataError: the run's images are missing.
    """
    if not 0 < ratio <= 0.9:
        raise ConfigError(f"--ratio {ratio:g} is out of range. Give a fraction of the channels above 0 and at most 0.9.")
    run, started = open_run(path), time.monotonic()
    record = run.record
    if record.backbone.columns is not None or not record.head.plain:
        raise RunError(
            f"{path} cannot be pruned, because it has progressive columns or a head other than one linear layer. "
            f"Give a run with one network and a linear head."
        )
    whole = run.backbone()
    with new_folder(out, inputs=run_inputs([run], data), overwrite=overwrite) as folder:
        smaller = prune(whole.model, whole.head_name, whole.spec.input_size, ratio)
        args = {**whole.model_args, PRUNED: layer_sizes(smaller)}
        pruned = dataclasses.replace(whole, model=smaller, model_args=args, parents=(*whole.parents, run.as_parent()))
        _check_rebuilds(pruned, len(record.labels))
        results = _evaluate(run, whole, pruned, data, progress)
        _write(folder, run, pruned, results, lambda: provenance(out.name, started))
    return Pruned(open_run(out), _cost(whole), _cost(pruned))


def _write(folder: Path, run: Run, pruned: Backbone, results: Results, call: Callable[[], dict[str, Any]]) -> None:
    """Write the run of the pruned network. ``call`` returns the record's fields about this call, including its duration."""
    changes = {
        "backbone": BackboneRecord.of(pruned),
        "validation": results.validation,
        "test": results.test,
        "alarms": (),
        "compared": (),
        "calibration": None,
        "forgetting": None,
    }
    write_run(
        folder,
        RunContents(pruned, run.splits(), run.seen_images(), results, cross_validated=run.record.folds > 0),
        lambda files: run.record.model_copy(update={**changes, **call(), "files": files}),
    )


def prune(model: nn.Module, head_name: str, size: tuple[int, int], ratio: float) -> nn.Module:
    """Return a copy of ``model`` without the fraction ``ratio`` of its channels. The outputs of the head are kept.

    Args:
        model: network in evaluation mode.
        head_name: name of its last layer.
        size: height and width of an image, px.
        ratio: pruning ratio, above 0 and below 1.

    Raises:
        RunError: the network cannot be pruned, because the dependencies of its layers cannot be resolved.
    """
    smaller, example = copy.deepcopy(model).eval().requires_grad_(True), torch.zeros(1, 3, *size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-pruning warns about parameters outside its known layers; a forward pass checks them
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
        raise RunError(
            f"{type(model).__name__} cannot be pruned: {first_line(error)} Use a run with a plain convolutional network."
        ) from error
    return smaller.requires_grad_(False)


def _check_rebuilds(backbone: Backbone, classes: int) -> None:
    """Check that the pruned network can be rebuilt from its layer sizes, which the run record contains."""
    built = rebuild(backbone.architecture, backbone.model_args, classes)
    try:
        built.load_state_dict(backbone.model.state_dict())
        built.eval()(torch.zeros(1, 3, *backbone.spec.input_size))
    except (RuntimeError, AssertionError) as error:
        raise RunError(
            f"{backbone.architecture} cannot be pruned: {first_line(error)} Use a run with a plain convolutional network."
        ) from error


def _evaluate(run: Run, whole: Backbone, pruned: Backbone, data: Path | None, progress: Progress) -> Results:
    """Evaluate the pruned network on validation and test images.

    In a cross-validated run, the out-of-fold outputs for the training images change as the network's outputs do.
    """
    val, test = run.samples(run.record.selection_part, data), run.samples("test", data)
    outputs = _outputs(pruned, [*val, *test], progress)
    if run.record.folds:
        outputs[: len(val)] += run.out_of_fold_outputs() - _outputs(whole, val, progress)
    return Results.of(run.record.decoding, truth_of([*val, *test]), outputs, validation=len(val))


def _outputs(backbone: Backbone, samples: list[Sample], progress: Progress) -> NDArray[np.float32]:
    features = features_of(backbone, device="cpu", images=len(samples))(samples, progress=progress)
    with torch.no_grad():
        outputs: NDArray[np.float32] = backbone.head(torch.from_numpy(features)).numpy()
    return outputs


def _cost(backbone: Backbone) -> Cost:
    params = sum(parameter.numel() for parameter in backbone.model.parameters())
    macs = count_macs(backbone.model, backbone.spec.input_size)
    return Cost(params_m=round(params / 1e6, 3), mmacs=round(macs / 1e6, 1))
