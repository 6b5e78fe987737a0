"""Findings of frozen features for a data audit: near-duplicates, similar images and label errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.data.audit.audit import FeatureFindings
from edgetl.data.audit.copies import Joined, Pair
from edgetl.data.audit.result import STRONG_MARGIN, LabelIssue, LeftOutCheck, SimilarPair, UncertainLabel
from edgetl.data.folder import ImageFolder
from edgetl.data.loading import labels_of
from edgetl.train.artifacts.loading.lineage import find_in_pretraining
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig
from edgetl.train.networks.backbone import with_intensity
from edgetl.train.workflows.audit.features import AuditFeatures, compute_features
from edgetl.train.workflows.audit.label_errors import LEAST_CLASSES, LEAST_IMAGES, find_label_errors, out_of_sample, self_confidence
from edgetl.train.workflows.audit.neighbors import find_near_duplicates
from edgetl.train.workflows.finetune import choose_device

LABEL_ERRORS = "label errors"
# Largest probability of an uncertain label, and largest number of uncertain labels: of one class, and of all classes together. A class
# has at least MIN_UNCERTAIN. In two folders of 600 photos of trashnet, 14 photos were in a wrong class folder. The label issues named 9 and
# 11 of them, and both lists together all 14.
UNCERTAIN, MOST_UNCERTAIN, ALL_UNCERTAIN, MIN_UNCERTAIN = 0.5, 40, 400, 8


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
        SimilarPair(
            files=(_name(folder, first), _name(folder, second)),
            labels=(folder.truth(folder.samples[first]), folder.truth(folder.samples[second])),
            similarity=round(similarity, 3),
        )
        for first, second, similarity in near.similar
    )
    labels = _check_labels(folder, found, joined, progress)
    pretraining = tuple(find_in_pretraining(folder.samples, config))
    return replace(labels, pairs=near.pairs, similar=similar, backbone=backbone.name, threshold=near.threshold, pretraining=pretraining)


def _check_labels(folder: ImageFolder, found: AuditFeatures, joined: Joined, progress: Progress) -> FeatureFindings:
    """Return the possible label errors, the accuracy of the probe, the predictions, and the classes that were left out."""
    if folder.task != "classification":
        reason = f"the task is {folder.task}. The check needs one class for each image"
        return FeatureFindings(left_out=(LeftOutCheck(check=LABEL_ERRORS, reason=reason),))
    counts = folder.counts()
    small = [label for label, count in counts.items() if 0 < count < LEAST_IMAGES]
    known = np.array([index for index, sample in enumerate(folder.samples) if counts[folder.labels[sample.label]] >= LEAST_IMAGES], int)
    left_out: tuple[LeftOutCheck, ...] = ()
    if small:
        named = f"{', '.join(small[:5])}{' …' if len(small) > 5 else ''}"
        left_out = (
            LeftOutCheck(check=LABEL_ERRORS, reason=f"fewer than {LEAST_IMAGES} images of {named}, which is neither checked nor suggested"),
        )
    if sum(count >= LEAST_IMAGES for count in counts.values()) < LEAST_CLASSES:
        return FeatureFindings(left_out=left_out)
    names, labels = np.unique(labels_of(folder.samples)[known], return_inverse=True)
    groups = np.array([joined.root(int(index)) for index in known])
    probabilities = out_of_sample(found.stages[known], labels, groups, progress=progress)
    best = probabilities.argmax(axis=1)
    predictions = {
        int(index): (folder.labels[names[place]], round(float(row[place]), 4))
        for index, place, row in zip(known, best, probabilities, strict=True)
    }
    confidence = self_confidence(probabilities, labels)
    given = {
        int(known[row]): round(float(confidence[row]), 4) for row in np.argsort(confidence, kind="stable") if not found.plain[known[row]]
    }
    errors = set(known[find_label_errors(probabilities, labels)].tolist())
    flagged, others = ({index: value for index, value in given.items() if (index in errors) == listed} for listed in (True, False))
    return FeatureFindings(
        label_issues=tuple(list_label_issues(folder, joined, flagged, predictions)),
        uncertain=tuple(list_uncertain_labels(folder, joined, others)),
        probe_accuracy=round(float((best == labels).mean()), 4),
        predictions=predictions,
        left_out=left_out,
    )


def list_label_issues(
    folder: ImageFolder, joined: Joined, flagged: Mapping[int, float], predictions: Mapping[int, tuple[str, float]]
) -> Iterator[LabelIssue]:
    """Return the first flagged image of each set, without sets of different labels. Strong indications come first.

    Args:
        folder: scanned images.
        joined: sets of copies and near-duplicates. Sets with different labels are reported as conflicts.
        flagged: probability of the given label of each flagged image, in the order of the report.
        predictions: most probable label of each image, with its probability.
    """
    shown = _first_of_sets(folder, joined, flagged)
    margins = {index: predictions[index][1] - flagged[index] for index in shown}
    for index in sorted(shown, key=lambda index: margins[index] < STRONG_MARGIN):
        yield LabelIssue(
            file=_name(folder, index),
            label=folder.labels[folder.samples[index].label],
            suggested=predictions[index][0],
            given_probability=flagged[index],
            suggested_probability=predictions[index][1],
            strong=margins[index] >= STRONG_MARGIN,
        )


def list_uncertain_labels(folder: ImageFolder, joined: Joined, given: Mapping[int, float]) -> Iterator[UncertainLabel]:
    """Return the images of each class with the lowest probability of their label, one of each set, without sets of different labels.

    Args:
        folder: scanned images.
        joined: sets of copies and near-duplicates.
        given: probability of the given label of each image, the lowest first.
    """
    shown = _first_of_sets(folder, joined, [index for index, value in given.items() if value < UNCERTAIN])
    classes = Counter(folder.samples[index].label for index in shown)
    most = min(MOST_UNCERTAIN, max(MIN_UNCERTAIN, ALL_UNCERTAIN // max(1, len(classes))))
    for label in sorted(classes):
        for index in [index for index in shown if folder.samples[index].label == label][:most]:
            yield UncertainLabel(file=_name(folder, index), label=folder.labels[label], probability=given[index])


def _first_of_sets(folder: ImageFolder, joined: Joined, indices: Iterable[int]) -> list[int]:
    """Return the first image of each set among ``indices``. Sets of different labels are left out: they are label conflicts."""
    conflicts = {joined.root(members[0]) for members in joined.sets() if len({folder.samples[index].label for index in members}) > 1}
    first: dict[int, int] = {}
    for index in indices:
        first.setdefault(joined.root(index), index)
    return [index for root, index in first.items() if root not in conflicts]


def _name(folder: ImageFolder, index: int) -> str:
    return printable(folder.samples[index].path.relative_to(folder.root).as_posix())
