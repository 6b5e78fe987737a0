"""New images of an update: scan, classes of the run followed by new classes, and split."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from edgetl.core.bundle import hash_prefix
from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import ImageFolder, Sample, check_broken, scan_without_limits
from edgetl.data.selection import Selection
from edgetl.data.split import Splits, split
from edgetl.data.table.captured import find_capture
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import scan_table
from edgetl.errors import DataError
from edgetl.train.artifacts.run import Run
from edgetl.train.config.update.options import UpdateConfig

_log = logging.getLogger(__name__)

# Fewest images of a new class: two in each of the five folds that estimate its accuracy.
LEAST_IMAGES = 10


def read_new_images(run: Run, data: Path, config: UpdateConfig, *, progress: Progress = silent) -> Splits:
    """Scan the new images, and split them into training and validation images.

    Images that trained or selected the run or an ancestor are left out. The classes of the run keep their order; new classes follow.

    Args:
        run: run to update.
        data: folder with one folder of images per class, folder of the images in ``config.labels``, or folder of ``--capture``.
        config: update options.
        progress: called for each decoded image, and during the search for copies.

    Raises:
        ConfigError: a column of the label table does not exist.
        DataError: the images or the table cannot be used, no image is new, a new class has too few images, or its name differs from a
            known class only in case or spaces.
    """
    found = _scan(data, config, progress)
    check_broken(found)
    known, seen = run.record.labels, run.seen_images().all
    samples = [sample for sample in distinct(found.samples) if hash_prefix(sample.content) not in seen]
    if left_out := len(found.samples) - len(samples):
        _log.info(
            "%d of %d images are left out: they are copies, or %s was trained or selected on them", left_out, len(found.samples), run.path
        )
    if not samples:
        raise DataError(
            f"{printable(data)} has no new image: all {len(found.samples)} images were used by {run.path} or its ancestors. Add images."
        )
    used = {found.labels[sample.label] for sample in samples}
    labels = (*known, *(label for label in found.labels if label in used - set(known)))
    _check_new_classes(data, labels, len(known))
    samples = [replace(sample, label=labels.index(found.labels[sample.label])) for sample in samples]
    folder = replace(found, labels=labels, samples=tuple(samples))
    if small := [f"{name} ({count})" for name, count in folder.counts().items() if name not in known and count < LEAST_IMAGES]:
        raise DataError(f"{printable(data)}: too few images of the new class {', '.join(small)}. At least {LEAST_IMAGES} are needed.")
    splits = split(folder, seed=config.seed, val=config.val, test=0.0, progress=progress)
    if len({sample.group or sample.content for sample in splits.train}) < 2 or not splits.val:
        raise DataError(f"{printable(data)}: {len(samples)} new images in one group are too few to compare the models. Add images.")
    return splits


def distinct(samples: Iterable[Sample]) -> list[Sample]:
    """Return one sample for each image and label. Copies are left out, because a run with a replay memory lists each image once."""
    return list({(sample.content, sample.label): sample for sample in samples}.values())


def _scan(data: Path, config: UpdateConfig, progress: Progress) -> ImageFolder:
    selection = Selection(exclude=config.exclude)
    columns = (config.columns,) if config.columns else ()
    if config.labels is not None:
        table = Table(Path(config.labels), "classification", columns, selection=selection)
        return scan_table(data, table, limits=False, progress=progress)
    if capture := find_capture(data):
        _log.info("%s is a folder of --capture: its labels are read from %s", capture.folder, capture.table)
        table = Table(capture.table, "classification", columns or ("label",), selection=selection)
        return scan_table(capture.folder, table, limits=False, progress=progress)
    return scan_without_limits(data, selection=selection, progress=progress)


def _check_new_classes(data: Path, labels: tuple[str, ...], known: int) -> None:
    """Check that no new class is a known class in another spelling.

    Raises:
        DataError: two names differ only in case or spaces.
    """
    spelled = {_plain(label): label for label in labels[:known]}
    for label in labels[known:]:
        if (same := spelled.setdefault(_plain(label), label)) != label:
            raise DataError(f"{printable(data)}: the new class {label!r} and the class {same!r} differ only in case or spaces. Rename it.")


def _plain(label: str) -> str:
    return " ".join(label.casefold().split())
