"""Manifest of a bundle (``manifest.json``): labels, preprocessing, variants with their files, metrics and lineage.

The format is specified by these models; ``schema_version`` rises when a reader must change.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from edgetl.core.config import StrictModel
from edgetl.core.contract import ContractRecord, Outcome
from edgetl.core.files.names import label_problem
from edgetl.core.preprocess import InputForm, PreprocessSpec
from edgetl.core.results import AccuracyDrop, Proportion
from edgetl.core.system.host_load import HostLoad
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task

MANIFEST_NAME = "manifest.json"

Format: TypeAlias = Literal["onnx", "openvino"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8", "int8-weights"]
# Largest difference of a golden score that a variant may claim, and the one that exports write. fp32 differs between CPUs by rounding;
# int8 kernels may also round ranges differently, but a wrong kernel, a saturating one or other weights are off by more.
GOLDEN_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2, "int8-weights": 1e-2}
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _plain_relative_path(path: str) -> str:
    """Refuse every path that could leave the bundle or name the same file twice on some file system."""
    parts = path.split("/")
    reason = None
    if not path or len(path) > 255 or path != unicodedata.normalize("NFC", path):
        reason = "is empty, longer than 255 characters, or not in Unicode normal form C"
    elif any(part in ("", ".", "..") or part != part.strip(" ") or part.endswith(".") for part in parts):
        reason = "is absolute or holds an empty part, '.', '..', or an outer space or dot"
    elif re.search(r'[\\:\x00-\x1f<>"|?*]', path):
        reason = "holds a character that some file system forbids"
    if reason:
        raise ValueError(f"the path {path[:80]!r} {reason}")
    return path


def parents_of(path: str) -> list[str]:
    """The folders that a file's relative POSIX path names."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


class BundleFile(StrictModel):
    """One file of the bundle; ``path`` is relative, POSIX, and stays inside."""

    path: Annotated[str, AfterValidator(_plain_relative_path)]
    size_bytes: int = Field(ge=0, lt=2**31)
    sha256: Sha256


class Agreement(StrictModel):
    """Agreement of an exported file with the trained model on the same images.

    Attributes:
        n: images compared.
        max_relative_error: largest difference of a logit, relative to the largest logit.
        top1_agreement: ratio of images with the same prediction: top class, number within the tolerance, grade. For a multi-label model
            the ratio of equal decisions (images times labels).
        confident_n: images (decisions) of which the trained model is sure, for instance a top class scored at least 0.6.
        confident_agreement: ratio of those with the same prediction; 1 when there is none.
        median_cosine: of several labels: the median over the images of the cosine similarity of both models' outputs, each less the
            trained model's mean output.
    """

    n: int
    max_relative_error: float
    top1_agreement: float
    confident_n: int
    confident_agreement: float
    median_cosine: float | None = None


class UnlabeledAgreement(StrictModel):
    """Agreement of an exported file with the trained model on images whose labels are not used.

    Attributes:
        n: number of validation images, random crops of them, and unlabeled images together.
        top1_agreement: share of equal predictions, as in ``Agreement``.
        expected_drop: of classes: the loss of accuracy that the trained model's own scores predict, 0..1: the mean of its score for its
            class less its score for the file's class. A change between two classes that it holds for equally likely costs nothing.
        beyond_half_margin: share of images whose logit error is above half the margin. The margin is the trained model's largest logit
            less its second; the error is the largest change of the difference between the top class's logit and another's.
        relative_error: median error over median margin.
    """

    n: int
    top1_agreement: float
    expected_drop: float | None = None
    beyond_half_margin: float | None = None
    relative_error: float | None = None


class Attempt(StrictModel):
    """Attempt of the quantization search: its method, and its figures on the validation images.

    ``accuracy`` is the task's figure as in ``Evaluation.score``, ``drop`` the accuracy drop that the gate limits, ``accuracy_drop`` (of
    classes) its interval, ``unlabeled`` the agreement on unlabeled images if the labeled ones passed, and ``reason`` the reason of a
    failure. An attempt for which the tools wrote no file has no figures.
    """

    method: str
    accuracy: float | None = None
    drop: float | None = None
    confident_agreement: float | None = None
    passed: bool = False
    accuracy_drop: AccuracyDrop | None = None
    unlabeled: UnlabeledAgreement | None = None
    reason: str = ""


class Sensitivity(StrictModel):
    """Sensitivity of a network to the quantization of one operation.

    ``divergence`` is the divergence from the trained model's outputs that disappears when this operation alone computes in fp32: nats of
    the scores; for numbers a ratio of their variance. Negative where its error compensates another's. ``layer`` is the trained model's
    module that the operation comes from, if its weights name one.
    """

    operation: str
    kind: str
    divergence: float
    layer: str = ""

    @property
    def title(self) -> str:
        """Name and kind of the operation."""
        return f"{self.layer or self.operation} ({self.kind})"


class Variant(StrictModel):
    """One file, or pair of files, that an engine can load.

    Attributes:
        name: ``<format>-<precision>``, also the folder's name.
        input: name of the tensor float32 ``[batch, 3, H, W]``, or as ``input_form``.
        input_form: ``uint8``: the network takes pixels ``[batch, H, W, 3]``, RGB, resized and cropped, and normalises them itself.
        output: name of the tensor float32 ``[batch, labels]``: logits, or a regression's number.
        validation: accuracy (or the task's figure, see ``Evaluation.score``) on the validation images, which decided; ``test`` is
            reported and decided nothing.
        accuracy_drop: of classes: the drop on the validation images against the trained model, with its interval.
        unlabeled: of reduced precision: agreement on unlabeled images.
        median_ms: one image on one thread, on the machine that exported; orders the variants, nothing more.
        load: of that machine during this timing, where it was busy; the timing then orders nothing.
        golden_tolerance: largest allowed difference of a score on the golden images; of a number, relative to ``DecisionRule.spread``.
        attempts: of the quantization search, in order; empty for fp32 and fp16.
        sensitivities: of the operations, the costliest first, where they were measured.
    """

    name: str = Field(pattern=r"^(onnx|openvino)-(fp32|fp16|int8|int8-weights)$")
    format: Format
    precision: Precision
    files: tuple[BundleFile, ...] = Field(min_length=1, max_length=2)
    input: str
    input_form: InputForm = "float"
    output: str
    agreement: Agreement
    validation: Proportion
    test: Proportion | None
    accuracy_drop: AccuracyDrop | None = None
    unlabeled: UnlabeledAgreement | None = None
    median_ms: float = Field(ge=0.0)
    load: HostLoad | None = None
    golden_tolerance: float = Field(gt=0.0, le=1.0)
    attempts: tuple[Attempt, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of the model's files."""
        return sum(file.size_bytes for file in self.files)

    def input_shape(self, spec: PreprocessSpec) -> tuple[int, int, int]:
        """The input's sides after the batch."""
        height, width = spec.input_size
        return (height, width, 3) if self.input_form == "uint8" else (3, height, width)


class Golden(StrictModel):
    """Golden image: a real image, and the scores of each variant on the exporting host.

    ``label`` is the image's class; its labels joined by a comma; or its number.
    """

    image: BundleFile
    label: str
    scores: dict[str, tuple[float, ...]]


class Calibration(StrictModel):
    """What int8 ranges were measured on: images of the training split, through the bundle's own preprocessing."""

    n: int
    images_sha256: Sha256
    preprocess_sha256: Sha256


class Parent(StrictModel):
    """One thing that the weights were made from.

    Attributes:
        kind: ``embedded`` and ``weights`` are weights files, ``run`` is an earlier fine-tuning,
            and ``teacher`` a network whose outputs were targets of the training (its own parents too).
        sha256: of the weights file, or of the run's ``run.json``, which names its weights' hash; none for a network that started at
            random.
        license: of the weights, as their card or the user states it.
        data_fingerprint: of the images that it was trained on, where they are known.
        validation: of a run: its figure on its own validation images.
    """

    kind: Literal["embedded", "weights", "run", "teacher"]
    name: str
    architecture: str
    sha256: Sha256 | None
    license: str | None
    data_fingerprint: Sha256 | None = None
    validation: float | None = None


def describe_parent(parent: Parent) -> str:
    """The parent in one line."""
    kind = {"embedded": "embedded backbone", "weights": "weights", "run": "run", "teacher": "teacher"}[parent.kind]
    digest = f"SHA-256 {parent.sha256[:12]}…" if parent.sha256 else "no hash"
    images = f", trained on images {parent.data_fingerprint[:12]}…" if parent.data_fingerprint else ""
    figure = "" if parent.validation is None else f", {parent.validation:.4f} on its validation images"
    return f"{kind} {parent.name} ({parent.architecture}), license {parent.license or 'not stated'}, {digest}{images}{figure}"


class Lineage(StrictModel):
    """Where the weights come from.

    Attributes:
        license: the most restrictive of the parents' licenses.
        parents: all that the weights were made from, the oldest first.
    """

    backbone: str
    architecture: str
    weights_sha256: Sha256 | None
    license: str | None
    parents: tuple[Parent, ...] = ()
    strategy: str
    run_sha256: Sha256
    data_fingerprint: Sha256
    train_images: int


class Rejected(StrictModel):
    """Rejected variant: requested, but not in the bundle, with the figures that kept it out.

    ``by`` names the rejecting rule: the accuracy ``gate``, a clause of the ``contract``, or ``export``: no file could be made.
    """

    name: str
    reason: str
    by: Literal["gate", "contract", "export"] = "gate"
    attempts: tuple[Attempt, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()


class Manifest(StrictModel):
    """Content of ``manifest.json``.

    Attributes:
        max_drop: largest accuracy drop that the accuracy gate allowed, 0..1.
        max_changed: of classes: number of the ``trained.n`` validation images that a file of reduced precision may lose, on balance.
        trained: the task's figure (``Evaluation.score``) of the trained model at the bundle's input size.
        trained_at_run_size: the same at the input size of the training, where it is another one.
        contract: limits that every variant keeps; the best variant is the first.
        outcomes: one row for each attempted variant, input size and thread count; empty without a contract.
        sorted_by: order of the variants: latency, or accuracy where the host was too busy to measure latency. A contract sorts by
            accuracy first; ``time`` then orders equal ones.
    """

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w][\w .-]*$")
    release: int = Field(default=1, ge=1, lt=2**53)
    created: str
    task: Task = "classification"
    decision_rule: DecisionRule = DecisionRule()
    labels: tuple[str, ...] = Field(min_length=1)
    preprocess: PreprocessSpec
    variants: tuple[Variant, ...] = Field(min_length=1)
    rejected: tuple[Rejected, ...] = ()
    max_drop: float
    max_changed: int | None = None
    trained: Proportion
    trained_at_run_size: Proportion | None = None
    golden: tuple[Golden, ...] = Field(min_length=1)
    calibration: Calibration | None
    contract: ContractRecord | None = None
    outcomes: tuple[Outcome, ...] = ()
    sorted_by: Literal["time", "accuracy"] = "time"
    lineage: Lineage
    seen_images: BundleFile
    card: BundleFile
    versions: dict[str, str]
    host: dict[str, str]

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        files = [file.path for file in self.all_files()]
        folders = {parent for path in files for parent in parents_of(path)}
        paths = [MANIFEST_NAME, *files, *folders]
        if len({path.casefold() for path in paths}) != len(paths):
            raise ValueError("two files share a path, or their folders one but for upper and lower case")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("two labels are equal")
        if problems := [f"the label {label!r} {problem}" for label in self.labels if (problem := label_problem(label))]:
            raise ValueError(problems[0])
        if problem := self.decision_rule.problem(self.task, len(self.labels)):
            raise ValueError(problem)
        if self.task == "classification" and len(self.labels) < 2:
            raise ValueError("fewer than two labels")
        if any(variant.name != f"{variant.format}-{variant.precision}" for variant in self.variants):
            raise ValueError("a variant's name is not its format and precision")
        for variant in self.variants:
            if variant.golden_tolerance > GOLDEN_TOLERANCE[variant.precision]:
                raise ValueError(
                    f"{variant.name} has the golden tolerance {variant.golden_tolerance:g}; "
                    f"{GOLDEN_TOLERANCE[variant.precision]:g} is the largest for {variant.precision}"
                )
        if self.task in ("classification", "multi-label") and self.decision_rule.spread != 1.0:
            raise ValueError(f"a spread of {self.decision_rule.spread:g}, by which differences would be judged, in a {self.task} model")
        names = {variant.name for variant in self.variants}
        if len(names) != len(self.variants):
            raise ValueError("two variants share a name")
        for golden in self.golden:
            if (
                (self.task == "classification" and golden.label not in self.labels)
                or set(golden.scores) != names
                or any(len(row) != len(self.labels) for row in golden.scores.values())
            ):
                raise ValueError(f"golden image {golden.image.path} has an unknown label, or not one score a label for each variant")
        return self

    @property
    def decoding(self) -> OutputDecoding:
        """Output decoding of the variants."""
        return OutputDecoding(self.task, self.labels, self.decision_rule)

    def all_files(self) -> tuple[BundleFile, ...]:
        """Every file that the bundle holds besides the manifest."""
        models = [file for variant in self.variants for file in variant.files]
        return (*models, *(golden.image for golden in self.golden), self.seen_images, self.card)
