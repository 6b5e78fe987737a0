"""Run record: ``run.json``, and the file names of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from edgetl.core.config import StrictModel
from edgetl.core.group_metrics import GroupTable
from edgetl.core.lineage import Parent, Sha256
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.results import Evaluation, Forgetting, Proportion, validation_name
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task
from edgetl.data.folder import Part
from edgetl.data.groups import Grouping
from edgetl.data.scan_notes import ScanNote
from edgetl.train.config.adaptation.options import AdaptationRecord
from edgetl.train.config.calibration import CalibrationRecord
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.config.update.result import UpdateRecord
from edgetl.train.heads.modules import HeadSpec
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.model_args import architecture_problem, args_problem
from edgetl.train.networks.progressive import ProgressiveRecord

WEIGHTS_NAME = "weights.safetensors"
SPLITS_NAME = "splits.json"
# A safetensors file with another suffix, because timm loads the first .safetensors file of a folder as the weights.
FISHER_NAME = "fisher.tensors"
OUT_OF_FOLD_NAME = "out-of-fold.tensors"
TIMM_CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"


class BackboneRecord(StrictModel):
    """Origin and structure of a run's network.

    Attributes:
        name: name that the user gave, such as a timm name or a run folder.
        architecture: timm or ``torchvision:`` name of the architecture.
        head_name: module name of the linear head.
        model_args: arguments of the network's constructor.
        weights_sha256: SHA-256 of the starting weights. ``None`` for random weights.
        license: most restrictive license of the parents' weights. ``None`` if it is not stated.
        pretrained: True if the training started from pretrained weights.
        parents: networks that the weights come from, from the oldest to the newest.
        columns: columns of a progressive network. ``None`` for a plain network.
    """

    name: str
    architecture: str
    head_name: str
    model_args: dict[str, JsonValue]
    weights_sha256: Sha256 | None
    license: str | None
    pretrained: bool
    parents: tuple[Parent, ...] = ()
    columns: ProgressiveRecord | None = None

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneRecord:
        """Return the record of ``backbone``. A distillation teacher among the parents does not count as pretrained weights."""
        fields = {name: getattr(backbone, name) for name in cls.model_fields if name != "pretrained"}
        return cls(**fields, pretrained=any(parent.kind != "teacher" for parent in backbone.parents))

    @model_validator(mode="after")
    def _can_be_built(self) -> BackboneRecord:
        if problem := architecture_problem(self.architecture) or args_problem(self.model_args):
            raise ValueError(problem)
        return self


class Compared(StrictModel):
    """Result of one strategy in ``--strategy compare``.

    Attributes:
        strategy: name of the strategy.
        steps: optimizer steps. 0 for a probe.
        validation: accuracy on the validation images, with interval.
        seconds: duration of the training, s.
    """

    strategy: str
    steps: int
    validation: Proportion
    seconds: float


class RunRecord(StrictModel):
    """Run record: the content of ``run.json``.

    Attributes:
        name: name of the run folder.
        created: end of the training, ISO 8601, UTC.
        task: task of the network.
        decision_rule: rule that turns the network's outputs into labels.
        labels: names of the classes, labels or the value, in the order of the outputs.
        config: training options.
        given: names of the options that the user set. All other options have their defaults.
        backbone: origin and structure of the network.
        head: kind of the head.
        expected_false_alarms: expected rate of false alarms of the threshold. None for other tasks than anomaly detection.
        preprocess: preprocessing of the images.
        plan: strategy, steps and rates after the data-dependent defaults.
        alarms: warnings to read before you use the run.
        head_penalty: L2 strength of the linear probe that fitted or initialized the head. ``None`` if the head started at random.
        interpolation_weight: weight of the fine-tuned weights. Below 1 if WiSE-FT (``--wise-ft``) mixed them with the starting weights.
        compared: results of the compared strategies (``--strategy compare``).
        calibration: calibration of the scores. ``None`` if none was requested. ``decision_rule`` has the temperature and the threshold.
        adaptation: domain adaptation of the parent run to unlabeled images (``edgetl adapt``). ``None`` for other runs.
        balancing: accuracy of each group of the validation images without and with ``--balance``. ``None`` if it was not measured.
        forgetting: accuracy drop on the parent run's task. ``None`` without a parent run, or if its images are missing.
        update: record of the update, if `edgetl update` wrote the run.
        images: number of images in each split.
        leaked_test_images: number of test images of ready-made splits that are copies of training images.
        high_bit_images: number of training images with more than 8 bits per channel (see ``preprocess.intensity``).
        data_fingerprint: SHA-256 over the content and labels of all images.
        grouping: number of image groups. A group stays in one split. ``None`` without groups.
        folds: number of folds of the cross-validation that replaces validation images. 0: there are validation images.
        validation: scores on the validation images, which select the weights. With ``folds``, scores of the out-of-fold outputs for the
            training images: each output is from a head that was fitted without the image.
        test: scores on the test images, computed once at the end. ``None`` without test images.
        seconds: duration of the last call, s. A resumed training took longer in total.
        notes: files that the scan left out or read in an unusual way.
        versions: versions of Python and the libraries.
        host: description of the machine.
        files: SHA-256 of every other file that a later stage reads.
    """

    schema_version: Literal[1] = 1
    name: str
    created: str
    task: Task = "classification"
    decision_rule: DecisionRule = DecisionRule()
    labels: tuple[str, ...] = Field(min_length=1)
    config: TrainConfig
    given: tuple[str, ...] = ()
    backbone: BackboneRecord
    head: HeadSpec = HeadSpec()
    expected_false_alarms: float | None = None
    preprocess: PreprocessSpec
    plan: Plan
    alarms: tuple[str, ...] = ()
    head_penalty: float | None
    interpolation_weight: float = 1.0
    compared: tuple[Compared, ...] = ()
    calibration: CalibrationRecord | None = None
    adaptation: AdaptationRecord | None = None
    balancing: GroupTable | None = None
    forgetting: Forgetting | None = None
    update: UpdateRecord | None = None
    images: dict[Part, Annotated[int, Field(ge=0)]]
    leaked_test_images: int = Field(default=0, ge=0)
    high_bit_images: int = Field(default=0, ge=0)
    data_fingerprint: Sha256
    grouping: Grouping | None = None
    folds: int = Field(default=0, ge=0)
    validation: Evaluation
    test: Evaluation | None
    seconds: float
    notes: tuple[ScanNote, ...] = ()
    versions: dict[str, str]
    host: dict[str, str]
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")], Sha256]

    @model_validator(mode="after")
    def _is_consistent(self) -> RunRecord:
        outputs = len(self.labels)
        if len(set(self.labels)) != outputs or any(not label.strip() for label in self.labels):
            raise ValueError("labels: two labels are equal, or a label is empty")
        if problem := self.decision_rule.problem(self.task, outputs) or self.head.problem:
            raise ValueError(problem)
        if (self.head.distances.heat_map if self.head.distances else None) != self.decision_rule.heat_map:
            raise ValueError("the heat map of the head is not that of the decision rule")
        if missing := {WEIGHTS_NAME, SPLITS_NAME, *([OUT_OF_FOLD_NAME] if self.folds else [])} - set(self.files):
            raise ValueError(f"files: {min(missing)} is missing")
        if set(self.images) != {"train", "val", "test"}:
            raise ValueError("images: the counts of train, val and test are required, and no others")
        for part, figures in (("validation", self.validation), ("test", self.test)):
            if figures and (problem := figures.problem(self.task, outputs)):
                raise ValueError(f"{part}: {problem}")
        return self

    @property
    def validation_name(self) -> str:
        """Name of the figures of ``validation``: ``validation``, or ``cross-validation (5 folds)``."""
        return validation_name(self.folds)

    @property
    def selection_part(self) -> Part:
        """Split of the images that ``validation`` is measured on: ``val``, or ``train`` with cross-validation."""
        return "train" if self.folds else "val"

    @property
    def decoding(self) -> OutputDecoding:
        """Task, labels and decision rule that decode the network's outputs."""
        return OutputDecoding(self.task, self.labels, self.decision_rule)
