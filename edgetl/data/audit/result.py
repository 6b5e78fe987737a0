"""Result of a data audit: the object that ``edgetl check --json`` prints and the page shows."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.data.audit.copies import Kind
from edgetl.data.folder import Part
from edgetl.data.scan_notes import ScanNote

Flaw: TypeAlias = Literal["uniform", "dark", "bright", "blurred", "odd-size"]
# Least margin between the probabilities of the suggested and the given label of a strong indication. With 8 % changed labels of trashnet,
# 63 to 68 % of the strong indications and 10 to 16 % of the weak ones are changed labels. See bench/accuracy/audit.py.
STRONG_MARGIN = 0.5


class BrokenFile(StrictModel):
    """File that cannot be decoded, with the reason."""

    file: str
    reason: str


class CopySet(StrictModel):
    """Images that show one photo.

    Attributes:
        kind: weakest relation in the set: identical pixels, copies, or near-duplicates.
        files: paths relative to the data folder.
        labels: label of each file.
        parts: split of each file; empty without ready-made splits.
        conflict: true if the labels differ.
        suggested: of a conflict, the label with the highest out-of-sample probability; empty without features.
        suggested_probability: its probability.
    """

    kind: Kind
    files: tuple[str, ...]
    labels: tuple[str, ...]
    parts: tuple[Part, ...] = ()
    conflict: bool = False
    suggested: str = ""
    suggested_probability: float | None = None


class SimilarPair(StrictModel):
    """Two images with similar features whose details differ: often two photos of one object.

    Attributes:
        files: paths of the two images.
        labels: their labels.
        similarity: cosine similarity of their features.
    """

    files: tuple[str, str]
    labels: tuple[str, str]
    similarity: float


class LabelIssue(StrictModel):
    """Image whose label is possibly wrong, for a review.

    Attributes:
        file: path relative to the data folder.
        label: given label.
        suggested: label with the highest probability.
        given_probability: out-of-sample probability of the given label.
        suggested_probability: out-of-sample probability of the suggested label.
        strong: true if the two probabilities differ by at least ``STRONG_MARGIN``.
    """

    file: str
    label: str
    suggested: str
    given_probability: float
    suggested_probability: float
    strong: bool


class UncertainLabel(StrictModel):
    """Image whose given label has a low out-of-sample probability, although no other label is probable enough for a label issue.

    Attributes:
        file: path relative to the data folder.
        label: given label.
        probability: its out-of-sample probability.
    """

    file: str
    label: str
    probability: float


class FlawedImage(StrictModel):
    """Image with a possible flaw.

    Attributes:
        file: path relative to the data folder.
        flaw: kind of the flaw.
        text: measured value, as text.
    """

    file: str
    flaw: Flaw
    text: str


class ImageSeries(StrictModel):
    """Images that were probably taken together, and should be in one split.

    Attributes:
        source: burst (camera and time from EXIF), file names, or the given groups.
        name: group key, camera, or common start of the file names.
        files: paths relative to the data folder.
        parts: ready-made splits that have its images.
    """

    source: Literal["burst", "file names", "group"]
    name: str
    files: tuple[str, ...]
    parts: tuple[Part, ...] = ()


class Leakage(StrictModel):
    """Evaluation images of ready-made splits that the training images reveal.

    The levels are exclusive: an image counts once, at its lowest level.

    Attributes:
        part: split with the evaluation images.
        images: number of its images.
        identical: level L0: images with the pixels of a training image.
        near_duplicates: level L1: copies and near-duplicates of a training image.
        same_group: level L2: images of a group, burst or series of a training image.
        earlier_run: level L3: images that trained or selected the run of ``--run`` or its ancestors, or that pretrained the backbone.
    """

    part: Part
    images: int
    identical: int = 0
    near_duplicates: int = 0
    same_group: int = 0
    earlier_run: int = 0


class LeftOutCheck(StrictModel):
    """Check that was not made, with the reason."""

    check: str
    reason: str


class RemovedFile(StrictModel):
    """File that the cleaned list leaves out, with the reason."""

    file: str
    reason: str


class AuditReport(StrictModel):
    """Result of ``edgetl check``.

    Attributes:
        data: checked folder.
        images: number of readable images.
        distinct: number of images without copies and near-duplicates.
        counts: number of images of each label.
        parts: number of images of each ready-made split; empty without them.
        broken: files that cannot be decoded.
        notes: scan notes: files that were left out, and why.
        copies: sets of images that show one photo.
        similar: most similar pairs among the other images, for a review. Pairs with different labels come first.
        label_issues: images whose label is possibly wrong, for a review. Strong indications come first. Of copies and
            near-duplicates, one image is named. Images of sets with different labels are left out.
        uncertain: of each label, the other images with the lowest probability of it, below one half. Label errors that are no label
            issue are often among them.
        probe_accuracy: ratio of the labels that the probe of the label check predicts, without the label of the image; none without
            the check. A low value means that many label issues are errors of the probe.
        flaws: images with a possible flaw.
        small_classes: labels with images, but fewer than ``edgetl.data.audit.quality.SMALL_CLASS``.
        imbalance: number of images of the most frequent label relative to the rarest one that has images.
        series: images that were probably taken together.
        leakage: evaluation images that the training images reveal, by split.
        seen: images that the run of ``--run`` or its ancestors used, or copies of them.
        pretraining: images that pretrained the embedded backbone, or copies of them.
        backbone: backbone of the features; empty without features.
        threshold: similarity above which two images are compared in detail, calibrated for the backbone.
        left_out: checks that were not made.
        removed: files that the cleaned list leaves out.
        remaining: number of findings that the cleaned list still contains, by kind (``edgetl.data.audit.dropped.KINDS``).
        seconds: duration, s.
    """

    schema_version: Literal[1] = 1
    data: str
    images: int
    distinct: int
    counts: dict[str, int]
    parts: dict[Part, int] = Field(default_factory=dict)
    broken: tuple[BrokenFile, ...] = ()
    notes: tuple[ScanNote, ...] = ()
    copies: tuple[CopySet, ...] = ()
    similar: tuple[SimilarPair, ...] = ()
    label_issues: tuple[LabelIssue, ...] = ()
    uncertain: tuple[UncertainLabel, ...] = ()
    probe_accuracy: float | None = None
    flaws: tuple[FlawedImage, ...] = ()
    small_classes: tuple[str, ...] = ()
    imbalance: float = 1.0
    series: tuple[ImageSeries, ...] = ()
    leakage: tuple[Leakage, ...] = ()
    seen: tuple[str, ...] = ()
    pretraining: tuple[str, ...] = ()
    backbone: str = ""
    threshold: float | None = None
    left_out: tuple[LeftOutCheck, ...] = ()
    removed: tuple[RemovedFile, ...] = ()
    remaining: dict[str, int] = Field(default_factory=dict)
    seconds: float = 0.0

    @property
    def empty_classes(self) -> list[str]:
        """Labels without images."""
        return [label for label, count in self.counts.items() if not count]
