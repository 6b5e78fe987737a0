"""Structured pruning: whole channels are taken out of a trained network, which is smaller and faster in every engine; then it is tuned.

Channels that depend on each other are found by torch-pruning (DepGraph: Fang et al. 2023, arXiv:2301.12900) and those whose weights are
smallest go (Li et al. 2017, arXiv:1608.08710).
"""

from __future__ import annotations

import copy
import json
import logging
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch_pruning
from torch import nn

from edgetl.core.bundle import RUN_RECORD_NAME
from edgetl.core.config import StrictModel
from edgetl.core.manifest import Parent
from edgetl.core.metrics import evaluate
from edgetl.core.output.folders import new_folder
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation
from edgetl.core.system.host import fingerprint, versions
from edgetl.data.folder import Part
from edgetl.data.loading import PixelSet, truth_of
from edgetl.errors import ConfigError, RunError, first_line
from edgetl.train.artifacts.plots import write_result
from edgetl.train.artifacts.run import METRICS_NAME, SPLITS_NAME, Run, hash_files, open_run, run_inputs
from edgetl.train.artifacts.writer import write_model
from edgetl.train.networks.backbone import Backbone, rebuild
from edgetl.train.networks.pruned import PRUNED, layer_sizes

_log = logging.getLogger(__name__)

# Engines' kernels work on 8 or 16 channels at a time: odd numbers of them are not faster.
ROUND_TO = 8


class Cost(StrictModel):
    """Of a network: parameters and multiply-accumulates of one image, in millions."""

    params_m: float
    mmacs: float


@dataclass(frozen=True)
class Pruned:
    """The run of the pruned, not yet tuned network, and both networks' costs."""

    run: Run
    before: Cost
    after: Cost


def prune_run(
    path: Path, out: Path, *, share: float = 0.3, data: Path | None = None, overwrite: bool = False, progress: Progress = silent
) -> Pruned:
    """Take ``share`` of the channels out of every group of layers of a run's network and write the rest as a run.

    Its accuracy has fallen: tune it with ``edgetl train DATA --backbone OUT --strategy full --teacher RUN``.

    Raises:
        RunError: not a run, or one whose network cannot be pruned.
        ConfigError: ``share`` is not between 0 and 0.9, or ``out`` exists.
        DataError: the run's images are not there.
    """
    if not 0 < share <= 0.9:
        raise ConfigError(f"--share {share:g}: give a share of the channels, more than 0 and at most 0.9.")
    run, started = open_run(path), time.monotonic()
    record = run.record
    if record.backbone.columns is not None or not record.head.plain:
        raise RunError(f"{path} has several networks, or another head than one linear layer; only a plain network can be pruned.")
    model = run.load_model()
    example = torch.zeros(1, 3, *record.preprocess.input_size)
    before = _cost(model, example)
    with new_folder(out, inputs=run_inputs([run], data), overwrite=overwrite) as folder:
        smaller = prune(model, record.backbone.head_name, example, share)
        backbone = _backbone(run, smaller)
        _check_rebuilds(run, backbone)
        validation = _measure(run, smaller, "val", data, progress)
        assert validation is not None, "a run has validation images"
        test = _measure(run, smaller, "test", data, progress)
        write_model(folder, backbone, record.labels)
        (folder / SPLITS_NAME).write_text(run.splits().model_dump_json(indent=1), "utf-8", newline="\n")
        run.seen_images().write(folder)
        (folder / METRICS_NAME).write_text(json.dumps({"val_accuracy": validation.accuracy.value}) + "\n", "utf-8", newline="\n")
        write_result(folder, validation, test)
        changes = {
            "name": out.name, "created": datetime.now(UTC).isoformat(timespec="seconds"), "validation": validation, "test": test,
            "backbone": record.backbone.model_copy(update={"model_args": backbone.model_args, "parents": backbone.parents}),
            "alarms": (), "soup": None, "seconds": round(time.monotonic() - started, 1), "versions": versions(), "host": fingerprint(),
            "files": hash_files(folder),
        }  # fmt: skip
        (folder / RUN_RECORD_NAME).write_text(record.model_copy(update=changes).model_dump_json(indent=1), "utf-8", newline="\n")
    return Pruned(open_run(out), before, _cost(smaller, example))


def prune(model: nn.Module, head_name: str, example: torch.Tensor, share: float) -> nn.Module:
    """A copy of ``model`` without ``share`` of its channels; the outputs of the layer ``head_name`` stay.

    Raises:
        RunError: its layers' dependence cannot be found.
    """
    smaller = copy.deepcopy(model).eval().requires_grad_(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parameters that belong to no layer it knows; the check of the shapes judges
            torch_pruning.pruner.BasePruner(
                smaller,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=share,
                ignored_layers=[smaller.get_submodule(head_name)],
                round_to=ROUND_TO,
            ).step()
            with torch.no_grad():
                smaller(example)
    except (RuntimeError, ValueError, KeyError, AttributeError, IndexError, TypeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{type(model).__name__} cannot be pruned: {reason}. Plain convolutional networks can.") from error
    return smaller.requires_grad_(False)


def _backbone(run: Run, smaller: nn.Module) -> Backbone:
    old = run.record.backbone
    parent = Parent(
        kind="run", name=run.record.name, architecture=old.architecture, sha256=run.digest(), license=old.license,
        data_fingerprint=run.record.data_fingerprint, validation=run.record.validation.score.value,
    )  # fmt: skip
    return Backbone(
        name=old.name,
        architecture=old.architecture,
        model=smaller,
        head_name=old.head_name,
        spec=run.record.preprocess,
        model_args={**old.model_args, PRUNED: layer_sizes(smaller)},
        weights_sha256=old.weights_sha256,
        parents=(*old.parents, parent),
    )


def _check_rebuilds(run: Run, backbone: Backbone) -> None:
    """Refuse what could not be loaded again, such as a pruned tensor that no layer of ``widths`` holds."""
    built = rebuild(backbone.architecture, backbone.model_args, len(run.record.labels))
    try:
        built.load_state_dict(backbone.model.state_dict())
        built.eval()(torch.zeros(1, 3, *backbone.spec.input_size))
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"{backbone.architecture} cannot be pruned: {first_line(error)} Plain convolutional networks can.") from error


def _measure(run: Run, model: nn.Module, part: Part, data: Path | None, progress: Progress) -> Evaluation | None:
    samples = run.samples(part, data)
    if not samples:
        return None
    rows = []
    with torch.inference_mode():
        for batch in PixelSet(samples, run.record.preprocess).batches():
            rows.append(model(torch.from_numpy(batch)).numpy())
            progress("measuring", sum(map(len, rows)), len(samples))
    return evaluate(run.record.decoding, truth_of(samples), np.concatenate(rows))


def _cost(model: nn.Module, example: torch.Tensor) -> Cost:
    macs, params = torch_pruning.utils.count_ops_and_params(model, example)
    return Cost(params_m=round(params / 1e6, 3), mmacs=round(macs / 1e6, 1))
