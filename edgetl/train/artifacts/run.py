"""A run on disk: what was trained, on what, and what it measured.

``run.json`` is written last into a staging folder that becomes the run in one rename, and names the hash of every other file, so
that a half-written run cannot be mistaken for a whole one.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field, JsonValue, model_validator
from torch import nn

from edgetl.core.bundle import RUN_RECORD_NAME, check_run_folder, hash_prefix, unpack_hashes
from edgetl.core.config import StrictModel, parse_json, read_json
from edgetl.core.files.plain import open_plain
from edgetl.core.manifest import Parent, Sha256
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.results import Evaluation, Forgetting, Proportion
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task
from edgetl.data.content.integrity import check_images
from edgetl.data.folder import Part, Sample
from edgetl.data.groups import Grouping
from edgetl.data.notes import ScanNote
from edgetl.errors import DataError, RunError, first_line
from edgetl.train.artifacts.seen_images import SELECTED_NAME, TRAINED_NAME, SeenImages
from edgetl.train.artifacts.splits_record import SplitsRecord
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.heads.modules import HeadSpec, rebuild_headed
from edgetl.train.networks.backbone import state_problem
from edgetl.train.networks.model_args import architecture_problem, args_problem
from edgetl.train.networks.progressive import ProgressiveRecord

_log = logging.getLogger(__name__)

WEIGHTS_NAME = "weights.safetensors"
SPLITS_NAME = "splits.json"
# Of safetensors' format, but not of its ending: timm takes the first such file of a folder for the weights.
FISHER_NAME = "fisher.tensors"
TIMM_CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"


class BackboneRecord(StrictModel):
    """Where a run's network comes from; fields as in ``Backbone``."""

    name: str
    architecture: str
    head_name: str
    model_args: dict[str, JsonValue]
    weights_sha256: Sha256 | None
    license: str | None
    pretrained: bool
    parents: tuple[Parent, ...] = ()
    columns: ProgressiveRecord | None = None

    @model_validator(mode="after")
    def _can_be_built(self) -> BackboneRecord:
        if problem := architecture_problem(self.architecture) or args_problem(self.model_args):
            raise ValueError(problem)
        return self


class Compared(StrictModel):
    """One strategy of ``--strategy compare``."""

    strategy: str
    steps: int
    validation: Proportion
    seconds: float


class Ingredient(StrictModel):
    """A run that ``edgetl soup`` tried: the hash of its ``run.json``, validation figures, and whether it is in the average."""

    name: str
    sha256: str
    val_accuracy: float
    val_loss: float
    used: bool


class SoupRecord(StrictModel):
    """How a run was averaged from others, the best of which comes first."""

    method: Literal["greedy", "uniform"]
    ingredients: tuple[Ingredient, ...]


class RunRecord(StrictModel):
    """``run.json``.

    Attributes:
        task, decision: the task, and the decision rule for the network's outputs.
        head: the head on the backbone.
        given: options of ``config`` that were given; the others are defaults.
        plan: the configuration with its data-dependent defaults.
        alarms: warnings to read before the run is used.
        head_penalty: the L2 strength of the probe that fitted (or, before tuning, started) the head; none if it started at random.
        interpolation_weight: of the tuned weights; below 1 where they were mixed with the starting ones (``--wise-ft``).
        soup: ingredients of averaged weights; none for others. Configuration and plan are those of the best ingredient.
        seconds: of the last call; a training that was stopped took longer.
        compared: results of the compared strategies (``--strategy compare``).
        forgetting: accuracy drop of the parent run's task; none without a parent, or if its images are gone.
        grouping: groups of images that stay in one split; none where there are no groups.
        validation: figures on the images that select; ``test`` is computed once, at the end.
        high_bit_images: training images with more than 8 bits a channel, which ``preprocess.intensity`` is for.
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
    soup: SoupRecord | None = None
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
        """How the network's outputs are read."""
        return OutputDecoding(self.task, self.labels, self.decision_rule)


@dataclass(frozen=True)
class Run:
    """An opened run folder."""

    path: Path
    record: RunRecord

    def load_model(self) -> nn.Module:
        """The trained network in evaluation mode, on the CPU.

        Raises:
            RunError: the weights are damaged or do not fit.
            BackboneError: the installed library does not have the architecture.
        """
        state = self.read_tensors(WEIGHTS_NAME)
        backbone, path = self.record.backbone, self.path / WEIGHTS_NAME
        try:
            # First without memory for the weights: a record may describe a network of any size.
            with torch.device("meta"):
                problem = state_problem(self._network(), state)
        except NotImplementedError:  # some of torchvision's, which take no arguments, cannot be built so
            problem = None
        if problem:
            raise RunError(f"{path} does not fit {backbone.architecture}: {problem}. The run is damaged; train again.")
        model = self._network()
        try:
            model.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            raise RunError(f"{path} does not fit {backbone.architecture}: {first_line(error)} Train again.") from error
        head = dict(model.named_modules()).get(backbone.head_name)
        if not isinstance(head, nn.Linear) or head.out_features != len(self.record.labels):
            raise RunError(
                f"{self.path}: {backbone.head_name!r} is not the head of {backbone.architecture}. The run is damaged; train again."
            )
        return model.eval()

    def _network(self) -> nn.Module:
        record, backbone = self.record, self.record.backbone
        args: dict[str, Any] = dict(backbone.model_args)
        return rebuild_headed(backbone.architecture, args, record.head, len(record.labels), backbone.columns)

    def read_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Another safetensors file of the run.

        Raises:
            RunError: it is damaged.
        """
        try:
            return safetensors.torch.load(self.read(name))
        except (safetensors.SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self.path / name} cannot be read as safetensors: {first_line(error)} Train again.") from error

    def splits(self) -> SplitsRecord:
        """The images of the run.

        Raises:
            RunError: they do not fit the run, or the file changed.
        """
        name = str(self.path / SPLITS_NAME)
        splits = parse_json(self.read(SPLITS_NAME), SplitsRecord, RunError, name=name)
        if problem := splits.problem(self.record.task, len(self.record.labels)):
            raise RunError(f"{name}: {problem}. The run is damaged; train again.")
        return splits

    def seen_images(self) -> SeenImages:
        """Images that this run, or one that its weights come from, was trained or selected on.

        A run of an earlier release names its own images only; a log line reports that those of its parents are not known.
        """
        if TRAINED_NAME in self.record.files:
            trained, selected = (frozenset(unpack_hashes(self.read(name)).tolist()) for name in (TRAINED_NAME, SELECTED_NAME))
            return SeenImages(trained, selected)
        if any(parent.kind == "run" for parent in self.record.backbone.parents):
            _log.warning("%s does not name the images that its parent runs were trained on; they cannot be left out.", self.path)
        entries = self.splits().entries
        trained, selected = (frozenset(hash_prefix(entry.content) for entry in entries if entry.part == part) for part in ("train", "val"))
        return SeenImages(trained, selected)

    def samples(self, part: Part, data: Path | None = None) -> list[Sample]:
        """The images of one split, found below ``data`` or the folder that the run was trained on, and checked to be the same.

        Raises:
            DataError: images are missing, or are not those of the training.
        """
        splits = self.splits()
        root = data or Path(splits.root)
        try:
            there = root.is_dir()
        except OSError:  # a name that no file system takes
            there = False
        if not there:
            raise DataError(
                f"the images of {self.path} are not at {root}. They are needed to calibrate and to check accuracy; "
                f"say where they are with --data."
            )
        entries = [entry for entry in splits.entries if entry.part == part]
        samples = [Sample(root / entry.file, entry.label, entry.content, part, entry.targets, entry.group) for entry in entries]
        found = check_images([sample.path for sample in samples], root)
        wrong = [sample.path for sample in samples if found[sample.path].content != sample.content]
        if wrong:
            raise DataError(
                f"{len(wrong)} of {len(samples)} {part} images below {root} are missing or not those of the training, "
                f"for instance {wrong[0]}. Restore them, or name the right folder with --data."
            )
        return samples

    def sizes(self) -> dict[str, int | None]:
        """Bytes of ``run.json`` and of every file that it names; none for one that is missing."""
        paths = [self.path / name for name in (RUN_RECORD_NAME, *sorted(self.record.files))]
        return {path.name: path.stat().st_size if path.is_file() else None for path in paths}

    def digest(self) -> str:
        """SHA-256 (hex) of ``run.json``, which names the hashes of the other files."""
        with open_plain(self.path / RUN_RECORD_NAME) as file:
            return hashlib.sha256(file.read()).hexdigest()

    def read(self, name: str) -> bytes:
        """The bytes of one of the run's files, compared with the hash that ``run.json`` names.

        Raises:
            RunError: it is missing, or changed.
        """
        path = self.path / name
        try:
            with open_plain(path) as file:
                data = file.read()
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}. The run is damaged; train again.") from error
        if hashlib.sha256(data).hexdigest() != self.record.files.get(name):
            raise RunError(f"{path} changed since the training (SHA-256 differs). The run is damaged; train again.")
        return data


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    Raises:
        RunError: not a run; a bundle is recognised and the text says so.
    """
    folder = check_run_folder(path)
    return Run(folder, read_json(folder / RUN_RECORD_NAME, RunRecord, RunError))


def run_inputs(runs: Sequence[Run], data: Path | None) -> dict[str, Path]:
    """Paths that a command on runs reads: the runs, and the images of the first; by their names in messages."""
    return {**{f"the run {run.path}": run.path for run in runs}, "the folder of images": data or Path(runs[0].splits().root)}


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of ``folder``."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()}
