"""Images of an export: of the splits of the run, or of the target domain for a run that ``edgetl adapt`` wrote.

The network of an adapted run is for the target domain. On PACS, a network that was adapted from photographs to sketches has an accuracy
of 0.72 on sketches and 0.19 on photographs (``python -m bench.accuracy.adaptation``). Its BatchNorm statistics are those of sketches, and
its activations have other ranges on photographs. All images of its export are therefore target images, and those of the training are not
read:

- Calibration of int8 and re-fitted heads: half of the target images. Re-fitting needs no labels, because its targets are the trained
  model's outputs.
- Accuracy gate: the labeled target images that selected the network (``edgetl adapt --target-labels``). Without them, the other half of the
  target images: the gate then limits the expected drop and the other measures of agreement with the trained model.
- Comparison of fp32 files with the trained model, execution settings and latency: the images of the gate. The ranges of the activations
  are those of the device.
- Golden images: images of the gate. A wrong kernel changes the scores of any image, but int8 kernels are exercised in the calibrated
  ranges only by images of the target domain.
- Monitoring reference: target images of both halves in their natural frequencies. With a reference of training images, a device in the
  target domain would report drift from its first window on.
- Test images: none. Those of the training are of another domain.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetl.core.bundle import hash_prefix
from edgetl.core.lineage import TargetImages
from edgetl.core.progress import Progress, silent
from edgetl.data.anomalies.defects import with_defects
from edgetl.data.folder import Sample
from edgetl.errors import ConfigError, DataError
from edgetl.export.config import ExportConfig
from edgetl.export.gate.agreement import GateKind
from edgetl.export.gate.unlabeled import read_unlabeled
from edgetl.train.artifacts.run import Run
from edgetl.train.config.adaptation.options import MIN_TARGET, AdaptationRecord
from edgetl.train.workflows.runs.adapt import read_labeled

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportImages:
    """Images of an export.

    Attributes:
        fitting: images for the calibration of int8 and for re-fitting heads.
        gate: images on which the accuracy gate decides. In a cross-validated run, ``fitting``. Unlabeled images have the label 0.
        unlabeled: additional images without labels, on which the gate compares predictions.
        reference: images of the monitoring reference.
        test: images that are reported only.
        folds: number of folds of a cross-validated run, otherwise 0.
        kind: kind of the gate's images.
        target: record of the target images of an adapted run; none for other runs.
    """

    fitting: Sequence[Sample]
    gate: Sequence[Sample]
    unlabeled: Sequence[Sample]
    reference: Sequence[Sample]
    test: Sequence[Sample] = ()
    folds: int = 0
    kind: GateKind = "validation"
    target: TargetImages | None = None

    @property
    def source(self) -> Literal["training", "target"]:
        """Kind of the images in ``fitting``."""
        return "training" if self.target is None else "target"


def read_images(run: Run, config: ExportConfig, *, progress: Progress = silent) -> ExportImages:
    """Find the images of an export.

    Raises:
        DataError: images are missing or changed, or ``config.unlabeled`` has too few.
        ConfigError: ``config.data`` is set for an adapted run.
    """
    if run.record.adaptation is not None:
        return _target_images(run, run.record.adaptation, config, progress)
    train, test = run.samples("train", config.data), run.samples("test", config.data)
    folds = run.record.folds
    val = train if folds else run.samples("val", config.data)
    unlabeled = read_unlabeled(config.unlabeled, train) if config.unlabeled else []
    gate, tested = (with_defects(part) if run.record.task == "anomaly" else part for part in (val, test))
    return ExportImages(train, gate, unlabeled, val, tested, folds)


def _target_images(run: Run, record: AdaptationRecord, config: ExportConfig, progress: Progress) -> ExportImages:
    """Read the target images of an adapted run, and divide them by content."""
    if config.data is not None:
        raise ConfigError(
            f"--data is not used: {run.path} is an adapted run, whose export reads images of the target domain only. Remove --data, and "
            f"give other target images with --unlabeled."
        )
    target, adapted = _read_target(run, record, config)
    labeled = _read_labels(run, record, config, progress)
    known = {sample.content for sample in labeled}
    # Images with labels are more useful for the gate.
    ordered = sorted(target, key=lambda sample: (sample.content in known, sample.content))
    fitting, rest = ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]
    used = {sample.content for sample in fitting}
    gate = [sample for sample in labeled if sample.content not in used]
    found = TargetImages(n=len(target), adapted=adapted, labeled=len(gate), images_sha256=_digest(target))
    if not labeled:
        return ExportImages(fitting, rest, [], target, kind="unlabeled target", target=found)
    others = [sample for sample in rest if sample.content not in known]
    return ExportImages(fitting, gate, others, target, kind="labeled target", target=found)


def _read_target(run: Run, record: AdaptationRecord, config: ExportConfig) -> tuple[list[Sample], int]:
    """Return the target images, and the number of them that adapted the network."""
    folder = config.unlabeled or Path(record.target)
    if not _exists(folder) and config.unlabeled is None:
        raise DataError(
            f"the target images of {run.path} are not at {folder}. They are needed to calibrate and to compare the files. Give a folder "
            f"of images of the target domain with --unlabeled."
        )
    option = "--unlabeled" if config.unlabeled else "the folder of target images"
    target = read_unlabeled(folder, (), option=option)
    training = {entry.content for entry in run.splits().entries}
    seen = run.seen_images().trained
    adapted = sum(hash_prefix(sample.content) in seen and sample.content not in training for sample in target)
    if _digest(target) == record.fingerprint:  # the run may have been adapted to images of its training
        adapted = len(target)
    elif config.unlabeled and (source := sum(sample.content in training for sample in target)):
        _log.warning("%s: %d of %d images are of the training before the adaptation, not of the target domain", option, source, len(target))
    if not adapted and config.unlabeled is None:
        raise DataError(
            f"{folder} has none of the images that {run.path} was adapted to. Give a folder of images of the target domain with "
            f"--unlabeled."
        )
    if len(target) < MIN_TARGET:
        raise DataError(
            f"{folder} has {len(target)} different images. The export of an adapted run needs at least {MIN_TARGET}. Add images."
        )
    return target, adapted


def _read_labels(run: Run, record: AdaptationRecord, config: ExportConfig, progress: Progress) -> Sequence[Sample]:
    """Return the labeled target images that selected the network; none if the run has none, or ``config.unlabeled`` replaces them."""
    if record.labels is None:
        return ()
    labels, folder = Path(record.labels), Path(record.target)
    if _exists(labels) and (labels.is_dir() or _exists(folder)):
        return read_labeled(run, folder, labels, every_image=True, progress=progress)
    if config.unlabeled is None:
        raise DataError(
            f"the labeled target images of {run.path} are not at {labels}. Restore them, or give target images with --unlabeled, which "
            f"decide without labels."
        )
    _log.warning("the labeled target images are not at %s. The accuracy gate decides without labels", labels)
    return ()


def _digest(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 (hex) over the contents of images, as in ``AdaptationRecord.fingerprint``."""
    return hashlib.sha256("\n".join(sorted(sample.content for sample in samples)).encode()).hexdigest()


def _exists(path: Path) -> bool:
    """Return true if the file or folder of a record exists on this host."""
    try:
        return path.exists()
    except OSError:  # the name is too long for the file system
        return False
