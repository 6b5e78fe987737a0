"""Findings of frozen features for a data audit: near-duplicates, similar images and label errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.data.audit.audit import FeatureFindings
from edgetl.data.audit.copies import Joined, Pair
from edgetl.data.audit.result import LabelIssue, LeftOutCheck, SimilarPair
from edgetl.data.folder import ImageFolder
from edgetl.data.loading import labels_of
from edgetl.train.artifacts.loading.lineage import find_in_pretraining
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig
from edgetl.train.networks.backbone import with_intensity
from edgetl.train.workflows.audit.features import AuditFeatures, compute_features
from edgetl.train.workflows.audit.label_errors import LEAST_CLASSES, LEAST_IMAGES, find_label_errors, out_of_sample
from edgetl.train.workflows.audit.neighbors import find_near_duplicates
from edgetl.train.workflows.finetune import choose_device

LABEL_ERRORS = "label errors"


def find_by_features(
    folder: ImageFolder, copies: Sequence[Pair], config: BackboneConfig, *, progress: Progress = silent
) -> FeatureFindings:
    """Find near-duplicates and label errors with the frozen features of a backbone.

    Args:
        folder: scanned images.
        copies: identical images and copies that are known already.
        config: backbone options.
        progress: called for each step.

    Raises:
        BackboneError: the backbone cannot be found or loaded.
        ImageError: an image cannot be read any more.
    """
    backbone = with_intensity(load_backbone(config, LEAST_CLASSES), "auto", folder.samples)
    found = compute_features(folder, backbone, device=choose_device("auto"), progress=progress)
    joined = Joined(len(folder.samples), copies)
    near = find_near_duplicates(found, labels_of(folder.samples), joined, progress=progress)
    similar = tuple(
        SimilarPair(files=(_name(folder, first), _name(folder, second)), similarity=round(similarity, 3))
        for first, second, similarity in near.similar
    )
    issues, left_out = _label_issues(folder, found, joined, progress)
    pretraining = tuple(find_in_pretraining(folder.samples, config))
    return FeatureFindings(near.pairs, similar, issues, backbone.name, near.threshold, left_out, pretraining)


def _label_issues(
    folder: ImageFolder, found: AuditFeatures, joined: Joined, progress: Progress
) -> tuple[tuple[LabelIssue, ...], tuple[LeftOutCheck, ...]]:
    """Return the probable label errors, and the classes that were left out."""
    if folder.task != "classification":
        reason = f"the task is {folder.task}. The check needs one class for each image"
        return (), (LeftOutCheck(check=LABEL_ERRORS, reason=reason),)
    counts = folder.counts()
    small = [label for label, count in counts.items() if count < LEAST_IMAGES]
    known = np.array([index for index, sample in enumerate(folder.samples) if counts[folder.labels[sample.label]] >= LEAST_IMAGES], int)
    left_out: tuple[LeftOutCheck, ...] = ()
    if small:
        named = f"{', '.join(small[:5])}{' …' if len(small) > 5 else ''}"
        left_out = (LeftOutCheck(check=LABEL_ERRORS, reason=f"{named}: fewer than {LEAST_IMAGES} images"),)
    if len(counts) - len(small) < LEAST_CLASSES:
        return (), left_out
    names, labels = np.unique(labels_of(folder.samples)[known], return_inverse=True)
    groups = np.array([joined.root(int(index)) for index in known])
    probabilities = out_of_sample(found.stages[known], labels, groups, progress=progress)
    issues = []
    for row in find_label_errors(probabilities, labels).tolist():
        sample, best = folder.samples[known[row]], int(probabilities[row].argmax())
        issues.append(
            LabelIssue(
                file=_name(folder, int(known[row])),
                label=folder.labels[sample.label],
                suggested=folder.labels[names[best]],
                given_probability=round(float(probabilities[row, labels[row]]), 4),
                suggested_probability=round(float(probabilities[row, best]), 4),
            )
        )
    return tuple(issues), left_out


def _name(folder: ImageFolder, index: int) -> str:
    return printable(folder.samples[index].path.relative_to(folder.root).as_posix())
