"""Manifest of a bundle (``manifest.json``): labels, preprocessing, variants with their files, metrics and lineage.

These models specify the format. ``schema_version`` increases when readers must change.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from edgetl.core.config import StrictModel
from edgetl.core.contract import ContractRecord, Outcome
from edgetl.core.files.names import label_problem
from edgetl.core.lineage import Lineage, Sha256, TargetImages
from edgetl.core.preprocess import InputForm, PreprocessSpec
from edgetl.core.reference import Reference
from edgetl.core.results import AccuracyDrop, Agreement, Attempt, Proportion, UnlabeledAgreement, validation_images
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting
from edgetl.core.system.host_load import HostLoad
from edgetl.core.tasks import CLASS_TASKS, SCORE_NAMES, DecisionRule, KnnHead, OutputDecoding, Task

MANIFEST_NAME = "manifest.json"
# Optional detached signature over the exact bytes of the manifest (``edgetl.device.signature``).
SIGNATURE_NAME = "manifest.sig"

Format: TypeAlias = Literal["onnx", "openvino"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8", "int8-weights"]
# Largest allowed difference of a golden score, which exports also write. fp32 scores differ between CPUs by rounding. int8 kernels may
# also round ranges differently. A wrong kernel, a saturating kernel or other weights differ by more.
GOLDEN_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2, "int8-weights": 1e-2}


def _plain_relative_path(path: str) -> str:
    """Reject paths that could leave the bundle, or could mean the same file on some file systems."""
    parts = path.split("/")
    reason = None
    if not path or len(path) > 255 or path != unicodedata.normalize("NFC", path):
        reason = "is empty, longer than 255 characters, or not in Unicode normal form C"
    elif any(part in ("", ".", "..") or part != part.strip(" ") or part.endswith(".") for part in parts):
        reason = "is absolute or has an empty part, '.', '..', or an outer space or dot"
    elif re.search(r'[\\:\x00-\x1f<>"|?*]', path):
        reason = "has a character that some file systems forbid"
    if reason:
        raise ValueError(f"the path {path[:80]!r} {reason}")
    return path


def parents_of(path: str) -> list[str]:
    """Return the parent folders of a relative POSIX path, the outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


class BundleFile(StrictModel):
    """Entry of a file in the bundle.

    Attributes:
        path: path relative to the bundle folder, with ``/``, in Unicode normal form C. It cannot leave the folder.
        size_bytes: size, bytes; less than 2 GiB.
        sha256: SHA-256 of the content, 64 hex digits.
    """

    path: Annotated[str, AfterValidator(_plain_relative_path)]
    size_bytes: int = Field(ge=0, lt=2**31)
    sha256: Sha256


class Sensitivity(StrictModel):
    """Sensitivity of a network to the quantization of an operation.

    Attributes:
        operation: name of the operation in the exported file.
        kind: operation type.
        divergence: decrease of the divergence from the trained model's outputs when only this operation computes in fp32. Unit: nats of the
            scores; for regression a ratio of the variance. Negative if its error compensates another error.
        layer: module of the trained model that the operation comes from; empty if unknown.
    """

    operation: str
    kind: str
    divergence: float
    layer: str = ""

    @property
    def title(self) -> str:
        """Name and kind of the operation."""
        return f"{self.layer or self.operation} ({self.kind})"


class MeasuredSetting(StrictModel):
    """Execution setting of a variant with the results of the accuracy gate. A device may use it only if ``kept`` is true.

    A static batch does not change the arithmetic. It is allowed wherever the same setting with any batch size is.

    Attributes:
        setting: execution setting.
        kept: true if the accuracy gate accepted the setting.
        reason: reason of the rejection; empty if kept.
        agreement: agreement with the trained model on the validation images. None if nothing was measured.
        validation: task metric on the validation images.
        test: the same on the test images, for information.
        accuracy_drop: accuracy drop against the trained model. Classification only.
        scaled_images: number of validation images that the setting decodes at a smaller scale.
        golden_difference: largest difference of a golden score from the default setting on the exporting host. For numbers: relative to
            ``DecisionRule.spread``.
    """

    setting: ExecutionSetting
    kept: bool
    reason: str = ""
    agreement: Agreement | None = None
    validation: Proportion | None = None
    test: Proportion | None = None
    accuracy_drop: AccuracyDrop | None = None
    scaled_images: int = 0
    golden_difference: float = Field(default=0.0, ge=0.0)


class Variant(StrictModel):
    """Variant of the model: one ONNX file, or an OpenVINO pair of ``.xml`` and ``.bin``.

    Attributes:
        name: ``<format>-<precision>``, also the name of the variant's folder.
        format: file format.
        precision: precision of the computation. ``int8``: weights and activations. ``int8-weights``: weights only.
        files: one ``.onnx`` file; or ``.xml`` and ``.bin``.
        input: name of the input tensor.
        input_form: ``float``: the input is float32 ``[batch, 3, H, W]``, RGB, normalized. ``uint8``: the input is uint8
            ``[batch, H, W, 3]``, RGB pixels after resize and crop, and the file normalizes them.
        output: name of the output tensor, float32 ``[batch, labels]``: logits, or the numbers of a regression. Anomaly detection: the heat
            map, ``[batch, height * width]``, in rows.
        agreement: agreement with the trained model on validation images.
        validation: accuracy, or the task metric (``Evaluation.score``), on the validation images. The accuracy gate uses it. See
            ``Manifest.trained`` for the images of an adapted run.
        test: the same on the test images, for information; none without test images.
        accuracy_drop: accuracy drop against the trained model on the validation images, with its interval. Classification only.
        unlabeled: agreement on unlabeled images; none for fp32.
        median_ms: median latency of one image on one thread of the exporting host, ms. It only sorts the variants.
        load: load of the host during this measurement, if it was busy. ``median_ms`` then does not sort the variants.
        golden_tolerance: largest allowed difference of a score on the golden images. For numbers: relative to ``DecisionRule.spread``.
        attempts: attempts of the quantization search, in order; empty for fp32 and fp16.
        sensitivities: sensitivities of the operations, in descending order, if they were measured.
        settings: execution settings besides the default, as far as the exporting host supports them.
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
    settings: tuple[MeasuredSetting, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Total size of the variant's files, bytes."""
        return sum(file.size_bytes for file in self.files)

    def kept_settings(self) -> dict[ExecutionSetting, float]:
        """Return the settings that the accuracy gate kept, the default first, each with the allowed difference of a golden score.

        The golden scores are those of the default setting. Another setting may differ by twice its difference on the exporting host, in
        addition to the tolerance of the variant, because CPUs round bfloat16 sums in different orders.
        """
        kept = {DEFAULT_SETTING: self.golden_tolerance}
        return kept | {item.setting: self.golden_tolerance + 2 * item.golden_difference for item in self.settings if item.kept}

    def allows(self, setting: ExecutionSetting) -> bool:
        """Return true if the accuracy gate kept a setting."""
        return setting.measured in self.kept_settings()

    def input_shape(self, spec: PreprocessSpec) -> tuple[int, int, int]:
        """Return the input shape without the batch axis: ``(3, H, W)``, or ``(H, W, 3)`` for ``uint8``."""
        height, width = spec.input_size
        return (height, width, 3) if self.input_form == "uint8" else (3, height, width)


class Golden(StrictModel):
    """Golden image: an image with the scores of each variant on the exporting host.

    Attributes:
        image: encoded image file.
        label: true label as text: the class, the labels joined by commas, or the number. For an image without a label, the class that the
            trained model predicts.
        scores: scores of each variant with the temperature 1, by its name, in the order of ``Manifest.labels``. They do not depend on the
            calibration of the scores.
    """

    image: BundleFile
    label: str
    scores: dict[str, tuple[float, ...]]


class Calibration(StrictModel):
    """Calibration of int8 ranges: training or target images, preprocessed as ``Manifest.preprocess``.

    Attributes:
        n: number of images.
        source: ``training`` images, or ``target`` images of an adapted run.
        images_sha256: SHA-256 over the content hashes of the images.
        preprocess_sha256: SHA-256 of the preprocessing settings (``PreprocessSpec.digest``).
    """

    n: int
    source: Literal["training", "target"] = "training"
    images_sha256: Sha256
    preprocess_sha256: Sha256

    def describe(self, task: Task) -> str:
        """Return the images as text. Anomaly detection also uses a copy of each with confetti noise."""
        return f"{self.n} {self.source} images{', and a copy of each with confetti noise' if task == 'anomaly' else ''}"


class Rejected(StrictModel):
    """Rejected variant: requested, but not in the bundle.

    Attributes:
        name: ``<format>-<precision>``.
        reason: reason of the rejection, with the measured values.
        by: ``gate``: rejected by the accuracy gate. ``contract``: by a clause of the contract. ``export``: no file could be made.
        attempts: attempts of the quantization search, in order.
        sensitivities: sensitivities of the operations, in descending order, if they were measured.
    """

    name: str
    reason: str
    by: Literal["gate", "contract", "export"] = "gate"
    attempts: tuple[Attempt, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()


class Manifest(StrictModel):
    """Content of ``manifest.json``.

    Attributes:
        schema_version: version of this format.
        name: name of the bundle.
        release: release number, set with ``--release``. Servers report it as the version of the model.
        created: time of the export, ISO 8601, UTC.
        task: ``classification``, ``multi-label``, ``regression`` or ``ordinal``.
        decision_rule: parameters that turn scores into predictions.
        labels: names of the outputs, in the order of the output tensor.
        knn: record of the k-NN head, with the outputs that a gallery needs; none for other heads.
        preprocess: preprocessing settings of all variants.
        variants: model files. The first is the default.
        rejected: requested variants that are not in the bundle.
        max_drop: largest accuracy drop that the accuracy gate allows, 0..1.
        max_changed: number of validation images (of ``trained.n``) that a file of reduced precision may lose on balance. Classification
            only.
        trained: task metric (``Evaluation.score``) of the trained model on the images of the accuracy gate, at the bundle's input size.
            These are validation images, or those of ``target``. Without labels, this metric and ``Variant.validation`` are the agreement
            with the trained model at the input size of the training: 1 for the trained model itself.
        folds: number of folds if the training was cross-validated. Validation figures are then out-of-fold figures of the training images.
            0: there were separate validation images.
        trained_at_run_size: the same at the input size of the training, if it differs.
        target: target images of an adapted run, which replace validation and training images; none for other runs.
        golden: golden images.
        reference: monitoring reference for drift detection; none with fewer than 50 images.
        calibration: images for the calibration of int8; none without int8 variants.
        contract: limits that every variant keeps; none without a contract.
        outcomes: outcomes of all attempted variants, input sizes and thread counts; empty without a contract.
        sorted_by: order of the variants: ``time`` (latency), or ``accuracy`` if the host was too busy to measure latency. With a contract
            the variants are sorted by accuracy first.
        lineage: origin of the weights.
        seen_images: file with the hash prefixes of all images used for training or model selection (``Bundle.seen_images``).
        card: model card (Markdown).
        versions: versions of edgetl and its libraries at the export.
        host: CPU, cores and system of the exporting host.
    """

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w][\w .-]*$")
    release: int = Field(default=1, ge=1, lt=2**53)
    created: str
    task: Task = "classification"
    decision_rule: DecisionRule = DecisionRule()
    labels: tuple[str, ...] = Field(min_length=1)
    knn: KnnHead | None = None
    preprocess: PreprocessSpec
    variants: tuple[Variant, ...] = Field(min_length=1)
    rejected: tuple[Rejected, ...] = ()
    max_drop: float
    max_changed: int | None = None
    trained: Proportion
    folds: int = Field(default=0, ge=0)
    trained_at_run_size: Proportion | None = None
    target: TargetImages | None = None
    golden: tuple[Golden, ...] = Field(min_length=1)
    reference: Reference | None = None
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
        paths = [MANIFEST_NAME, SIGNATURE_NAME, *files, *folders]
        if len({path.casefold() for path in paths}) != len(paths):
            raise ValueError("two paths are equal, or differ only in upper and lower case")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("two labels are equal")
        if problems := [f"the label {label!r} {problem}" for label in self.labels if (problem := label_problem(label))]:
            raise ValueError(problems[0])
        if problem := self.decision_rule.problem(self.task, len(self.labels)):
            raise ValueError(problem)
        if self.knn is not None and (self.task != "classification" or len(self.knn.weights) != len(self.labels)):
            raise ValueError("the k-NN head does not have one weight for each class of a classification")
        if self.task == "classification" and len(self.labels) < 2:
            raise ValueError("fewer than two labels")
        if any(variant.name != f"{variant.format}-{variant.precision}" for variant in self.variants):
            raise ValueError("the name of a variant is not <format>-<precision>")
        for variant in self.variants:
            if variant.golden_tolerance > GOLDEN_TOLERANCE[variant.precision]:
                raise ValueError(
                    f"{variant.name} has the golden tolerance {variant.golden_tolerance:g}, "
                    f"but the largest for {variant.precision} is {GOLDEN_TOLERANCE[variant.precision]:g}"
                )
        if self.reference and (problem := self.reference.problem(self.decoding)):
            raise ValueError(f"the monitoring reference is invalid: {problem}")
        if self.decoding.has_scores and self.decision_rule.spread != 1.0:
            raise ValueError(f"a {self.task} model has the spread {self.decision_rule.spread:g}, but only numbers have one")
        names = {variant.name for variant in self.variants}
        if len(names) != len(self.variants):
            raise ValueError("two variants have the same name")
        for golden in self.golden:
            if (
                (self.task in CLASS_TASKS and golden.label not in self.labels)
                or set(golden.scores) != names
                or any(len(row) != len(self.labels) for row in golden.scores.values())
            ):
                raise ValueError(f"golden image {golden.image.path} has an unknown label, or not one score per label for each variant")
        return self

    @property
    def decoding(self) -> OutputDecoding:
        """Output decoding of the variants."""
        return OutputDecoding(self.task, self.labels, self.decision_rule)

    @property
    def gate_images(self) -> str:
        """Name of the images on which the accuracy gate decided, such as ``validation images``."""
        if self.target is None:
            return validation_images(self.folds)
        return "labeled target images" if self.target.labeled else "unlabeled target images"

    @property
    def monitored_images(self) -> str:
        """Name of the images of the monitoring reference."""
        return validation_images(self.folds) if self.target is None else "target images"

    @property
    def score_name(self) -> str:
        """Name of the metric of ``trained`` and ``Variant.validation``: ``agreement`` without labels, otherwise that of the task."""
        return "agreement" if self.target is not None and not self.target.labeled else SCORE_NAMES[self.task]

    def drop_of(self, variant: Variant) -> float:
        """Return the accuracy drop of a variant, 0..1. Without labels, it is the expected drop; 0 for fp32."""
        if self.target is None or self.target.labeled:
            return self.trained.value - variant.validation.value
        return (variant.unlabeled.expected_drop if variant.unlabeled else None) or 0.0

    def all_files(self) -> tuple[BundleFile, ...]:
        """Return the entries of all files of the bundle, without the manifest."""
        models = [file for variant in self.variants for file in variant.files]
        return (*models, *(golden.image for golden in self.golden), self.seen_images, self.card)
