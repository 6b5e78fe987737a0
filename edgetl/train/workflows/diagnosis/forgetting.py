"""Catastrophic forgetting of the source task, measured on its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import hash_prefix, is_run
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Forgetting
from edgetl.data.folder import scan
from edgetl.data.loading import labels_of
from edgetl.data.split import Splits, split
from edgetl.errors import DataError
from edgetl.train.artifacts.loading.lineage import seen_by_ancestors
from edgetl.train.artifacts.seen_images import prefixes
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.resolve import resolve
from edgetl.train.continual.previous_task import compare_predictions, find_previous_task, measure_forgetting
from edgetl.train.heads.linear import fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.features import features_of
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import Backbone
from edgetl.train.workflows.diagnosis.trials import Division, training_config
from edgetl.train.workflows.finetune import choose_device, prepare


def measure_source(
    division: Division, config: TrainConfig, trained: Backbone, source: str | None, *, progress: Progress = silent
) -> tuple[Forgetting | None, str]:
    """Measure how much of the source task a training forgot. Also return the reason if it cannot be measured, else an empty text.

    With images of the source, linear probes on the features before and after the training are compared (representation forgetting: Davari
    et al. 2022, arXiv:2203.13381). Without, a parent run is measured with its own head, on its unseen test images.

    Args:
        division: images of the training.
        config: training options. The backbone has the weights before the training.
        trained: network after the training.
        source: folder of labeled images of the source task, if it was given.
        progress: called after each batch.
    """
    seen = seen_by_ancestors(config.backbone).all | prefixes((*division.splits.train, *division.splits.val))
    if source is not None:
        return _compare_probes(Path(source), division.splits, config, trained, seen, progress), ""
    if not is_run(config.backbone.name):
        return None, "no images of the source task were given (--source)"
    previous = find_previous_task(config.backbone, trained, division.splits.folder.labels)
    if previous is None:
        return None, f"{config.backbone.name} is not a classification with a linear head"
    execution = Execution(choose_device(config.run.device), Path(), progress, config.run.seed, config.optim.batch_size)
    found = measure_forgetting(trained, previous, execution, seen)
    return found, "" if found else f"no unseen test image of {config.backbone.name} is at hand"


def _compare_probes(
    source: Path, splits: Splits, config: TrainConfig, trained: Backbone, seen: frozenset[int], progress: Progress
) -> Forgetting:
    task = split(scan(source, progress=progress), seed=config.run.seed, progress=progress)
    fitted, tested = [*task.train, *task.val], [sample for sample in task.test if hash_prefix(sample.content) not in seen]
    if not tested:
        raise DataError(f"--source {source} has no test image that the training did not use. Add images to the folder.")
    start, _ = prepare(splits, resolve(training_config(config, pretrained=True, seed=config.run.seed), splits))

    def predictions(backbone: Backbone) -> NDArray[np.int64]:
        extract = features_of(backbone, config.optim.batch_size, device="cpu", images=len(fitted) + len(tested))
        train, test = (extract(samples, progress=progress) for samples in (fitted, tested))
        head = fit_logistic(LabeledFeatures(train, labels_of(fitted)), len(task.folder.labels), seed=config.run.seed)
        predicted: NDArray[np.int64] = (test @ head.weight.T + head.bias).argmax(axis=1)
        return predicted

    before, after = predictions(start), predictions(trained)
    return compare_predictions((start.name, "probe"), task.folder.labels, labels_of(tested), before, after)
