"""Several fine-tunings of one backbone averaged into one network (model soups: Wortsman et al. 2022, arXiv:2203.05482)."""

from __future__ import annotations

import functools
import logging
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.core.output.folders import new_folder
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation
from edgetl.data.folder import Sample
from edgetl.data.loading import batches, labels_of, stratified
from edgetl.errors import RunError
from edgetl.train.artifacts.record import BackboneRecord, Ingredient, SoupRecord
from edgetl.train.artifacts.run import Run, open_run, run_inputs
from edgetl.train.artifacts.writer import Results, RunContents, provenance, write_run
from edgetl.train.networks.backbone import rebuild

_log = logging.getLogger(__name__)

Method: TypeAlias = Literal["greedy", "uniform"]
Weights: TypeAlias = dict[str, torch.Tensor]

# Training images on which BatchNorm's statistics are computed again: more change them little.
STATISTICS_IMAGES = 2000


@dataclass(frozen=True)
class Taste:
    """How a network does on the validation images; the greater of two is the better one, by accuracy and then by loss."""

    accuracy: float
    minus_loss: float

    def __ge__(self, other: Taste) -> bool:
        return (self.accuracy, self.minus_loss) >= (other.accuracy, other.minus_loss)


def make_soup(
    paths: Sequence[Path], out: Path, *, method: Method = "greedy", data: Path | None = None, overwrite: bool = False,
    progress: Progress = silent,
) -> Run:  # fmt: skip
    """Average the weights of runs and write the result as a run.

    ``greedy`` begins with the best run on the validation images and keeps each next one that does not make the average worse on them;
    ``uniform`` takes them all. Test images are looked at once, at the end. BatchNorm statistics that differ between the runs are computed
    again on training images, since the average of two networks' statistics is not that of the averaged network.

    Args:
        paths: two runs at least, of the same backbone, starting weights, classes and splits.
        out: the run folder to write.
        method: which runs go in.
        data: where the images are now, if not where they were.
        overwrite: replace an existing ``out``.
        progress: told of each stage.

    Raises:
        RunError: a folder is no run, or the runs do not fit together; all reasons are named.
        DataError: the images are not there.
        ConfigError: ``out`` exists.
        StorageError: the run cannot be written.
    """
    runs = [open_run(path) for path in paths]
    check_fit(runs)
    started = time.monotonic()
    with new_folder(out, inputs=run_inputs(runs, data), overwrite=overwrite) as folder:
        kitchen = _Kitchen(runs[0], data, progress)
        tasted = [(run, kitchen.taste(run.load_model())) for run in runs]
        tasted.sort(key=lambda item: (-item[1].accuracy, -item[1].minus_loss))
        used, model = _choose(tasted, method, kitchen)
        rows = tuple(
            Ingredient(name=run.record.name, sha256=run.digest(), val_accuracy=taste.accuracy, val_loss=-taste.minus_loss, used=run in used)
            for run, taste in tasted
        )
        _log.info("%d of %d runs are in the soup: %s", len(used), len(runs), ", ".join(run.record.name for run in used))
        _write(folder, out.name, used, model, SoupRecord(method=method, ingredients=rows), kitchen=kitchen, started=started)
    return open_run(out)


def check_fit(runs: Sequence[Run]) -> None:
    """Refuse runs whose weights have no common meaning.

    Raises:
        RunError: naming every reason.
    """
    if len({run.digest() for run in runs}) < 2:
        raise RunError(
            "a soup needs two different runs at least. Train another one from the same backbone, for instance with another --lr."
        )
    first, reasons = runs[0], []
    for run in runs:
        record = run.record
        if not record.backbone.pretrained or record.backbone.weights_sha256 is None:
            reasons.append(f"{run.path} started from random weights, which no other run shares")
        if record.task != "classification":
            reasons.append(f"{run.path} is for {record.task}, and soups are tasted by classes")
        if not record.head.plain:
            reasons.append(f"{run.path} has another head than the plain linear one ({record.head.describe()})")
    for run in runs[1:]:
        for what, of in _COMPARED.items():
            if of(run) != of(first):
                reasons.append(f"{run.path} has another {what} than {first.path}")
    if reasons:
        raise RunError(
            f"these runs cannot be averaged: {'; '.join(reasons)}. Train them on the same folder, from the same --backbone and with the "
            f"same --seed (it chooses the splits), and vary --lr, --augment or --weight-decay."
        )


def _network_of(backbone: BackboneRecord) -> tuple[object, ...]:
    return backbone.architecture, backbone.model_args, backbone.head_name, backbone.columns


_COMPARED: dict[str, Callable[[Run], object]] = {
    "architecture": lambda run: _network_of(run.record.backbone),
    "start (its weights' SHA-256)": lambda run: run.record.backbone.weights_sha256,
    "list of classes": lambda run: run.record.labels,
    "preprocessing": lambda run: run.record.preprocess,
    "data set (its fingerprint)": lambda run: run.record.data_fingerprint,
    "split into train, val and test": lambda run: sorted((entry.part, entry.content, entry.label) for entry in run.splits().entries),
}


class _Kitchen:
    """The images of the runs, and networks made of weights."""

    def __init__(self, run: Run, data: Path | None, progress: Progress) -> None:
        self.run = run
        self.progress = progress
        self.val, self.test = run.samples("val", data), run.samples("test", data)
        self.train = stratified(run.samples("train", data), STATISTICS_IMAGES)

    @property
    def spec(self) -> PreprocessSpec:
        return self.run.record.preprocess

    def logits(self, model: nn.Module, samples: Sequence[Sample], stage: str) -> torch.Tensor:
        """Float32 ``[n, classes]``."""
        rows: list[torch.Tensor] = []
        with torch.no_grad():
            for batch in batches(samples, self.spec):
                rows.append(model(torch.from_numpy(batch)))
                self.progress(stage, sum(map(len, rows)), len(samples))
        return torch.cat(rows)

    def taste(self, model: nn.Module) -> Taste:
        """On the validation images."""
        logits, truth = self.logits(model, self.val, "tasting"), torch.from_numpy(labels_of(self.val))
        accuracy = int((logits.argmax(dim=1) == truth).sum()) / len(truth)
        return Taste(accuracy, -float(nn.functional.cross_entropy(logits, truth)))

    def cook(self, ingredients: Sequence[Weights]) -> nn.Module:
        """The network whose weights are the mean of ``ingredients``, in evaluation mode."""
        backbone = self.run.record.backbone
        model = rebuild(backbone.architecture, dict(backbone.model_args), len(self.run.record.labels), backbone.columns)
        model.load_state_dict(average(ingredients))
        if stale := _stale_statistics(model, ingredients):
            _recompute(model.eval(), stale, lambda: self.logits(model, self.train, "BatchNorm statistics"))
        return model.eval()


def average(ingredients: Sequence[Weights]) -> Weights:
    """The mean of each tensor, computed in float64; of counters the first."""
    first = ingredients[0]
    if len(ingredients) == 1:
        return dict(first)
    return {
        key: torch.stack([weights[key].double() for weights in ingredients]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in first.items()
    }


def _stale_statistics(model: nn.Module, ingredients: Sequence[Weights]) -> list[_BatchNorm]:
    """BatchNorm layers whose statistics differ between the ingredients; those that stayed frozen fit the average as they are."""
    first = ingredients[0]
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and any(
            not torch.equal(first[f"{name}.{key}"], other[f"{name}.{key}"])
            for other in ingredients
            for key in ("running_mean", "running_var")
        )
    ]


def _recompute(model: nn.Module, layers: Sequence[_BatchNorm], run: Callable[[], object]) -> None:
    """Give ``layers`` the mean of their statistics over all batches of one pass (as ``torch.optim.swa_utils.update_bn``)."""
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean of all batches, each as much as any other
        layer.train()
    run()
    model.eval()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _choose(tasted: Sequence[tuple[Run, Taste]], method: Method, kitchen: _Kitchen) -> tuple[list[Run], nn.Module]:
    """The runs that go in, the best first, and their average."""
    runs = [run for run, _ in tasted]
    weights = {run.path: dict(run.load_model().state_dict()) for run in runs}
    if method == "uniform":
        return runs, kitchen.cook([weights[run.path] for run in runs])
    used, best = runs[:1], tasted[0][1]
    model = kitchen.cook([weights[runs[0].path]])
    for run in runs[1:]:
        tried = kitchen.cook([weights[item.path] for item in [*used, run]])
        taste = kitchen.taste(tried)
        if taste >= best:
            used, best, model = [*used, run], taste, tried
    return used, model


def _write(
    folder: Path, name: str, used: Sequence[Run], model: nn.Module, soup: SoupRecord, *, kitchen: _Kitchen, started: float
) -> None:  # fmt: skip
    """Measure the soup, test images included, and write its run: the best ingredient's, but for what changed."""
    best = used[0]
    backbone = best.backbone(model)
    backbone = replace(backbone, parents=(*backbone.parents, *(run.as_parent() for run in used)))
    samples = [*kitchen.val, *kitchen.test]
    outputs = kitchen.logits(model, samples, "measuring").numpy()
    results = Results.of(best.record.decoding, labels_of(samples), outputs, validation=len(kitchen.val))
    seen = functools.reduce(operator.or_, (run.seen_images() for run in used))
    changes = {
        "soup": soup, "validation": results.validation, "test": results.test, "backbone": BackboneRecord.of(backbone),
        "alarms": _alarms(soup, results.validation), "interpolation_weight": 1.0,
    }  # fmt: skip
    write_run(
        folder,
        RunContents(backbone, best.splits(), seen, results),
        lambda files: best.record.model_copy(update={**changes, **provenance(name, started), "files": files}),
    )


def _alarms(soup: SoupRecord, validation: Evaluation) -> tuple[str, ...]:
    best = soup.ingredients[0]
    if validation.accuracy.value >= best.val_accuracy:
        return ()
    return (
        f"on the validation images the average ({validation.accuracy.value:.3f}) is worse than {best.name} ({best.val_accuracy:.3f}). "
        f"Use that run, or --method greedy.",
    )
