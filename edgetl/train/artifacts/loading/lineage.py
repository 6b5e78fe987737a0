"""Lineage of runs: exclude images that trained or selected an ancestor, because they cannot measure the new network."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from edgetl.core.bundle import hash_prefix, is_run
from edgetl.data.folder import Sample
from edgetl.data.split import Splits
from edgetl.errors import DataError
from edgetl.train.artifacts.continued import is_continued, labeled_images, unlabeled_images
from edgetl.train.artifacts.loading.catalogue import packaged_names, pretraining_images
from edgetl.train.artifacts.loading.libraries import HUB
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.seen_images import SeenImages
from edgetl.train.config.options import BackboneConfig
from edgetl.train.config.weights_dir import LOCAL_DIR, find_weights

_log = logging.getLogger(__name__)

# Largest number of different bits of a copy of a pretraining image. Of 10,000 other images, none had 1 bit, and a symmetric object had 2.
PRETRAINING_BITS = 1


def parent_runs(backbone: BackboneConfig, teacher: str | None = None, *, scratch: bool = False) -> list[Run]:
    """Return the runs that a training starts from: its backbone or weights file, and its distillation teacher.

    Args:
        backbone: backbone options.
        teacher: name of the distillation teacher.
        scratch: True if the training starts from random weights. The backbone does not count then.

    Raises:
        RunError: a run is damaged.
    """
    return [open_run(folder) for folder in _parent_folders(backbone, teacher, scratch=scratch) if is_run(folder)]


def _parent_folders(backbone: BackboneConfig, teacher: str | None, *, scratch: bool) -> list[Path]:
    """Return the folders of the weights that a training starts from, and of its teacher."""
    folders = [_folder(teacher, backbone.weights_dir)] if teacher else []
    if backbone.pretrained and not scratch:
        folders.append(Path(backbone.weights).parent if backbone.weights else _folder(backbone.name, backbone.weights_dir))
    return [folder for folder in dict.fromkeys(folders) if folder is not None]


def _folder(name: str, weights_dir: str | None) -> Path | None:
    """Return the folder of a backbone's weights, or ``None`` if they are not in a folder."""
    if is_run(name) or name.startswith(LOCAL_DIR):
        return Path(name.removeprefix(LOCAL_DIR))
    if weights_dir is None or name in packaged_names() or name.startswith(HUB):
        return None
    return find_weights(name, Path(weights_dir))


def seen_by_ancestors(backbone: BackboneConfig, teacher: str | None = None, *, scratch: bool = False) -> SeenImages:
    """Return the labeled images that trained or selected a parent run (see ``parent_runs``) or one of its ancestors.

    A continued pretraining has the ancestors of its start and its teacher.

    Raises:
        RunError: a parent run is damaged.
        BackboneError: the folder of a continued pretraining is damaged.
    """
    seen = SeenImages()
    for folder in _parent_folders(backbone, teacher, scratch=scratch):
        if is_run(folder):
            seen |= open_run(folder).seen_images()
        elif is_continued(folder):
            seen |= labeled_images(folder)
    return seen


def pretraining_of(backbone: BackboneConfig) -> SeenImages:
    """Return the images that pretrained an embedded backbone, or those of a continued pretraining. Other weights have no list of images.

    Raises:
        BackboneError: the file of hashes cannot be read.
        IntegrityError: the file of hashes is damaged.
    """
    if not backbone.pretrained or backbone.weights is not None:
        return SeenImages()
    folder = _folder(backbone.name, backbone.weights_dir)
    return unlabeled_images(folder) if folder is not None and is_continued(folder) else pretraining_images(backbone.name)


def find_in_pretraining(samples: Sequence[Sample], backbone: BackboneConfig) -> list[int]:
    """Return the indices of images that pretrained the backbone, or are copies of them (see ``pretraining_of``).

    Raises:
        BackboneError, IntegrityError: as for ``pretraining_of``.
    """
    return pretraining_of(backbone).find(samples, most_bits=PRETRAINING_BITS)


def without_seen(splits: Splits, seen: SeenImages) -> Splits:
    """Exclude test images that trained or selected an ancestor, and validation images that trained one.

    The accuracy on such images would measure memorization. Validation images that only selected an ancestor stay, because they also
    only select here.

    Raises:
        DataError: no validation image is left.
    """
    val = tuple(sample for sample in splits.val if hash_prefix(sample.content) not in seen.trained)
    test = tuple(sample for sample in splits.test if hash_prefix(sample.content) not in seen.all)
    kept = {sample.path for sample in (*val, *test)}
    excluded = [sample.path.relative_to(splits.folder.root).as_posix() for sample in (*splits.val, *splits.test) if sample.path not in kept]
    if not excluded:
        return splits
    counts = f"{len(splits.test) - len(test)} of {len(splits.test)} test images and {len(splits.val) - len(val)} of {len(splits.val)}"
    if not val and not splits.cross_validated:
        raise DataError(
            f"{splits.folder.root}: {counts} validation images were used by a run that the weights come from. No validation image is left. "
            f"Give the --seed, --val and --test of that run, or add images."
        )
    _log.warning("%s validation images are excluded, because a run that the weights come from was trained or selected on them.", counts)
    return dataclasses.replace(splits, val=val, test=test, excluded=tuple(excluded))


def pretraining_alarms(splits: Splits, backbone: BackboneConfig) -> tuple[str, ...]:
    """Return a warning if evaluation images are among the images that pretrained the backbone (see ``find_in_pretraining``)."""
    name, images = ("test", splits.test) if splits.test else ("validation", splits.val)
    found = find_in_pretraining(images, backbone)
    if not found:
        return ()
    return (
        f"{len(found)} of {len(images)} {name} images, or copies of them, are among the images that pretrained {backbone.name}: the "
        f"accuracy may be too high. Use another backbone, or other {name} images.",
    )
