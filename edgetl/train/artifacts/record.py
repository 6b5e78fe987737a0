"""Run record: ``run.json`` and the names of a run's files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from edgetl.core.config import StrictModel
from edgetl.core.manifest import Parent, Sha256
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.results import Evaluation, Forgetting, Proportion
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task
from edgetl.data.folder import Part
from edgetl.data.groups import Grouping
from edgetl.data.scan_notes import ScanNote
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.heads.modules import HeadSpec
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.model_args import architecture_problem, args_problem
from edgetl.train.networks.progressive import ProgressiveRecord

WEIGHTS_NAME = "weights.safetensors"
SPLITS_NAME = "splits.json"
# Of safetensors' format, but not of its ending: timm takes the first such file of a folder for the weights.
FISHER_NAME = "fisher.tensors"
TIMM_CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"


class BackboneRecord(StrictModel):
    """Origin and structure of a run's network; fields as in ``Backbone``."""

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
        """Record of ``backbone``. A distillation teacher among its parents does not count as pretrained weights."""
        fields = {name: getattr(backbone, name) for name in cls.model_fields if name != "pretrained"}
        return cls(**fields, pretrained=any(parent.kind != "teacher" for parent in backbone.parents))

    @model_validator(mode="after")
    def _can_be_built(self) -> BackboneRecord:
        if problem := architecture_problem(self.architecture) or args_problem(self.model_args):
            raise ValueError(problem)
        return self


class Compared(StrictModel):
    """Result of a strategy in ``--strategy compare``."""

    strategy: str
    steps: int
    validation: Proportion
    seconds: float


class RunRecord(StrictModel):
    """``run.json``.

    Attributes:
        task, decision_rule: the task, and the decision rule for the network's outputs.
        head: the head on the backbone.
        given: options of ``config`` that were given; the others are defaults.
        plan: the configuration with its data-dependent defaults.
        alarms: warnings to read before the run is used.
        head_penalty: the L2 strength of the probe that fitted (or, before tuning, started) the head; none if it started at random.
        interpolation_weight: weight of the tuned weights; below 1 if WiSE-FT interpolated them with the starting ones (``--wise-ft``).
        seconds: of the last call; a training that was stopped took longer.
        compared: results of the compared strategies (``--strategy compare``).
        forgetting: accuracy drop of the parent run's task; none without a parent, or if its images are gone.
        grouping: groups of images that stay in one split; none where there are no groups.
        validation: figures on the images that select; ``test`` is computed once, at the end.
        high_bit_images: number of training images with more than 8 bits a channel (see ``preprocess.intensity``).
        notes: of the scan: files that were left out or read in an unusual way.
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
    preprocess: PreprocessSpec
    plan: Plan
    alarms: tuple[str, ...] = ()
    head_penalty: float | None
    interpolation_weight: float = 1.0
    compared: tuple[Compared, ...] = ()
    forgetting: Forgetting | None = None
    images: dict[Part, Annotated[int, Field(ge=0)]]
    high_bit_images: int = Field(default=0, ge=0)
    data_fingerprint: Sha256
    grouping: Grouping | None = None
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
            raise ValueError("two labels are equal, or one is empty")
        if problem := self.decision_rule.problem(self.task, outputs) or self.head.problem:
            raise ValueError(problem)
        if missing := {WEIGHTS_NAME, SPLITS_NAME} - set(self.files):
            raise ValueError(f"files: {min(missing)} is missing")
        if set(self.images) != {"train", "val", "test"}:
            raise ValueError("images: not the counts of train, val and test")
        for part, figures in (("validation", self.validation), ("test", self.test)):
            if figures and (problem := figures.problem(self.task, outputs)):
                raise ValueError(f"{part}: {problem}")
        return self

    @property
    def decoding(self) -> OutputDecoding:
        """Decoding of the network's outputs."""
        return OutputDecoding(self.task, self.labels, self.decision_rule)
