"""Lineage of runs: images on which an ancestor was trained or selected cannot measure the new network."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from edgetl.core.bundle import hash_prefix, is_run
from edgetl.data.split import Splits
from edgetl.errors import DataError
from edgetl.train.artifacts.loading.catalogue import embedded_names
from edgetl.train.artifacts.loading.libraries import HUB
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.seen_images import SeenImages
from edgetl.train.config.options import BackboneConfig
from edgetl.train.config.weights_dir import LOCAL_DIR, find_weights

_log = logging.getLogger(__name__)


def parent_runs(backbone: BackboneConfig, teacher: str | None = None, *, scratch: bool = False) -> list[Run]:
    """The runs among the backbone (unless it starts from ``scratch``), its weights file and the distillation ``teacher``.

    Raises:
        RunError: one of them is damaged.
    """
    folders = [_folder(teacher, backbone.weights_dir)] if teacher else []
    if backbone.pretrained and not scratch:
        folders.append(Path(backbone.weights).parent if backbone.weights else _folder(backbone.name, backbone.weights_dir))
    return [open_run(folder) for folder in dict.fromkeys(folders) if folder is not None and is_run(folder)]


def _folder(name: str, weights_dir: str | None) -> Path | None:
    """Folder of a backbone's weights; none if they are not in a folder (see ``edgetl.train.artifacts.loading.load``)."""
    if is_run(name) or name.startswith(LOCAL_DIR):
        return Path(name.removeprefix(LOCAL_DIR))
    if weights_dir is None or name in embedded_names() or name.startswith(HUB):
        return None
    return find_weights(name, Path(weights_dir))


def seen_by_ancestors(backbone: BackboneConfig, teacher: str | None = None, *, scratch: bool = False) -> SeenImages:
    """Images that the parent runs (see ``parent_runs``), or runs before them, were trained or selected on.

    Raises:
        RunError: a parent run is damaged.
    """
    seen = SeenImages()
    for run in parent_runs(backbone, teacher, scratch=scratch):
        seen |= run.seen_images()
    return seen


def without_seen(splits: Splits, seen: SeenImages) -> Splits:
    """Leave out test images on which an ancestor was trained or selected, and validation images on which one was trained.

    Figures on such images would measure memory. Validation images that only selected an ancestor stay: they select here too.

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
    if not val:
        raise DataError(
            f"{splits.folder.root}: {counts} validation images were seen by a run that the weights come from, and none is left to validate "
            f"on. Give the --seed, --val and --test of that run, or add images."
        )
    _log.warning("%s validation images are left out: a run that the weights come from was trained or selected on them.", counts)
    return dataclasses.replace(splits, val=val, test=test, excluded=tuple(excluded))
