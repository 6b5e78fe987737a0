"""A run on disk: what was trained, on what, and what it measured.

``run.json`` is written last into a staging folder that becomes the run in one rename, and names the hash of every other file, so
that a half-written run cannot be mistaken for a whole one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

import safetensors
import safetensors.torch
import torch
from pydantic import JsonValue, model_validator
from torch import nn

from edgetl.core.bundle import RUN_RECORD_NAME, hash_prefix, unpack_hashes
from edgetl.core.config import LeanModel, StrictModel, read_json
from edgetl.core.manifest import MANIFEST_NAME, Parent
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.results import Evaluation, Forgetting, Proportion
from edgetl.core.tasks import Decision, Reading, Task
from edgetl.core.text import printable
from edgetl.data.folder import Part, Sample
from edgetl.data.groups import Grouping
from edgetl.data.integrity import check_images
from edgetl.data.notes import ScanNote
from edgetl.data.split import Splits
from edgetl.errors import DataError, RunError
from edgetl.train.backbones import Backbone
from edgetl.train.budget import Plan
from edgetl.train.columns import ColumnsRecord
from edgetl.train.config import TrainConfig
from edgetl.train.heads import HeadSpec, rebuild_headed
from edgetl.train.seen_images import SELECTED_NAME, TRAINED_NAME, SeenImages
from edgetl.train.widths import PRUNED

_log = logging.getLogger(__name__)

WEIGHTS_NAME = "weights.safetensors"
SPLITS_NAME = "splits.json"
# Of safetensors' format, but not of its ending: timm takes the first such file of a folder for the weights.
FISHER_NAME = "fisher.tensors"
TIMM_CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
MAX_SPLITS_BYTES = 500_000_000


class BackboneRecord(LeanModel):
    """Where a run's network comes from; fields as in ``Backbone``."""

    lean: ClassVar[frozenset[str]] = frozenset({"columns"})

    name: str
    architecture: str
    head_name: str
    model_args: dict[str, JsonValue]
    weights_sha256: str | None
    licence: str | None
    pretrained: bool
    parents: tuple[Parent, ...] = ()
    columns: ColumnsRecord | None = None


class SplitEntry(LeanModel):
    """One image of a run: its path below the root, label (or stratum) index, content hash, split, targets from a table, and group.

    ``raw`` holds the bytes of a path that is not UTF-8, percent-encoded; ``path`` has escapes such as ``\\xe9`` in their place then.
    """

    lean: ClassVar[frozenset[str]] = frozenset({"targets", "group", "raw"})

    path: str
    label: int
    content: str
    part: Literal["train", "val", "test"]
    targets: tuple[float, ...] = ()
    group: str = ""
    raw: str = ""

    @model_validator(mode="after")
    def _raw_is_the_path(self) -> SplitEntry:
        if self.raw and (printable(self.file) != self.path or "\0" in self.file):
            raise ValueError(f"the bytes of {self.path[:80]!r} are those of another path")
        return self

    @property
    def file(self) -> str:
        """The path as this system's functions take it."""
        return os.fsdecode(unquote_to_bytes(self.raw)) if self.raw else self.path


def path_fields(path: PurePath) -> dict[str, str]:
    """The fields ``path`` and ``raw`` of an image at the relative ``path``."""
    text = path.as_posix()
    try:
        text.encode()
    except UnicodeEncodeError:
        return {"path": printable(text), "raw": quote_from_bytes(os.fsencode(text))}
    return {"path": text}


class SplitsRecord(LeanModel):
    """``splits.json``; ``excluded`` images are in no split, because a run that the weights come from has seen them."""

    lean: ClassVar[frozenset[str]] = frozenset({"excluded"})

    schema_version: Literal[1] = 1
    root: str
    fingerprint: str
    entries: tuple[SplitEntry, ...]
    broken: tuple[str, ...]
    conflicts: tuple[tuple[str, ...], ...]
    excluded: tuple[str, ...] = ()


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


class RunRecord(LeanModel):
    """``run.json``.

    Attributes:
        task, decision: what was asked, and how the network's outputs are read.
        head: what follows the trunk.
        plan: what the data budget made of the configuration.
        alarms: sentences on what should be looked at before the run is used.
        head_penalty: the L2 strength of the probe that fitted (or, before tuning, started) the head; none if it started at random.
        tuned_share: of the tuned weights; below 1 where they were mixed with the starting ones (``--wise``).
        soup: what the weights are the average of, if they are; configuration and plan are the best ingredient's then.
        seconds: of the last call; a training that was stopped took longer.
        compared: the strategies that were tried, where they were.
        forgetting: what the run that this one started from lost of its task; none where there is none, or its images are gone.
        grouping: groups of images that stay in one split; none where there are no groups.
        validation: figures that chose; ``test`` was looked at once, at the end.
        wide_images: training images with more than 8 bits a channel, which ``preprocess.intensity`` is for.
        notes: files that the scan left out, or read in a way worth knowing.
        files: SHA-256 of every other file that a later stage reads.
    """

    lean: ClassVar[frozenset[str]] = frozenset({"task", "decision", "head", "grouping", "notes", "wide_images"})

    schema_version: Literal[1] = 1
    name: str
    created: str
    task: Task = "classification"
    decision: Decision = Decision()
    labels: tuple[str, ...]
    config: TrainConfig
    backbone: BackboneRecord
    head: HeadSpec = HeadSpec()
    preprocess: PreprocessSpec
    plan: Plan
    alarms: tuple[str, ...] = ()
    head_penalty: float | None
    tuned_share: float = 1.0
    soup: SoupRecord | None = None
    compared: tuple[Compared, ...] = ()
    forgetting: Forgetting | None = None
    images: dict[str, int]
    wide_images: int = 0
    data_fingerprint: str
    grouping: Grouping | None = None
    validation: Evaluation
    test: Evaluation | None
    seconds: float
    notes: tuple[ScanNote, ...] = ()
    versions: dict[str, str]
    host: dict[str, str]
    files: dict[str, str]

    @property
    def reading(self) -> Reading:
        """How the network's outputs are read."""
        return Reading(self.task, self.labels, self.decision)


@dataclass(frozen=True)
class Run:
    """An opened run folder."""

    path: Path
    record: RunRecord

    def load_model(self) -> nn.Module:
        """The trained network in evaluation mode, on the CPU; ``edgetl.train.columns.Columns`` where it has several.

        Raises:
            RunError: the weights are damaged or do not fit.
        """
        backbone = self.record.backbone
        args: dict[str, Any] = dict(backbone.model_args)
        model = rebuild_headed(backbone.architecture, args, self.record.head, len(self.record.labels), backbone.columns)
        try:
            state = safetensors.torch.load(self.read(WEIGHTS_NAME))
            model.load_state_dict(state)
        except (safetensors.SafetensorError, RuntimeError) as error:
            raise RunError(
                f"{self.path / WEIGHTS_NAME} does not fit {backbone.architecture}: {str(error).splitlines()[0]}. Train again."
            ) from error
        return model.eval()

    def read_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Another safetensors file of the run.

        Raises:
            RunError: it is damaged.
        """
        return safetensors.torch.load(self.read(name))

    def splits(self) -> SplitsRecord:
        """The images of the run."""
        self.read(SPLITS_NAME)
        return read_json(self.path / SPLITS_NAME, SplitsRecord, RunError, max_bytes=MAX_SPLITS_BYTES)

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
        if not root.is_dir():
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

    def digest(self) -> str:
        """SHA-256 (hex) of ``run.json``, which names the hashes of the other files."""
        return hashlib.sha256((self.path / RUN_RECORD_NAME).read_bytes()).hexdigest()

    def read(self, name: str) -> bytes:
        """The bytes of one of the run's files, compared with the hash that ``run.json`` names.

        Raises:
            RunError: it is missing, or changed.
        """
        path = self.path / name
        try:
            data = path.read_bytes()
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
    folder = Path(path)
    if not (folder / RUN_RECORD_NAME).is_file():
        if (folder / MANIFEST_NAME).is_file():
            raise RunError(f"{folder} is a bundle, not a run; this command needs the folder that `edgetl train` wrote.")
        what = "has no run.json" if folder.is_dir() else "does not exist"
        raise RunError(f"{folder} is not a run: it {what}. Give the folder that `edgetl train` wrote.")
    return Run(folder, read_json(folder / RUN_RECORD_NAME, RunRecord, RunError))


def write_model(folder: Path, backbone: Backbone, labels: tuple[str, ...]) -> None:
    """Write the weights, and for timm architectures the ``config.json`` that makes the folder a ``local-dir:`` of timm.

    Several columns, another head than the architecture's own, and a pruned network are nothing that timm could build.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.model.state_dict().items()}
    (folder / WEIGHTS_NAME).write_bytes(safetensors.torch.save(state, {"format": "pt"}))
    if hasattr(backbone.model, "pretrained_cfg") and PRUNED not in backbone.model_args:
        (folder / TIMM_CONFIG_NAME).write_text(json.dumps(_timm_config(backbone, labels), indent=2) + "\n", "utf-8")


def _timm_config(backbone: Backbone, labels: tuple[str, ...]) -> dict[str, Any]:
    spec = backbone.spec
    old = dict(getattr(backbone.model, "pretrained_cfg", {}))
    kept = {key: old[key] for key in ("pool_size", "first_conv", "classifier", "fixed_input_size") if key in old}
    if backbone.licence:
        kept["license"] = backbone.licence
    return {
        "architecture": backbone.architecture,
        "num_classes": len(labels),
        "num_features": backbone.head.in_features,
        "label_names": list(labels),
        "model_args": backbone.model_args,
        "pretrained_cfg": {
            **kept,
            "tag": "edgetl",
            "custom_load": False,
            "input_size": [3, *spec.input_size],
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop_pct,
            "crop_mode": spec.crop_mode,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": len(labels),
        },
    }


def record_splits(splits: Splits) -> SplitsRecord:
    """What ``splits.json`` says of ``splits``."""
    root = splits.folder.root.resolve()
    parts: tuple[Part, ...] = ("train", "val", "test")
    entries = tuple(
        SplitEntry(
            **path_fields(sample.path.relative_to(splits.folder.root)),
            label=sample.label,
            content=sample.content,
            part=part,
            targets=sample.targets,
            group=sample.group,
        )
        for part in parts
        for sample in splits.part(part)
    )
    broken = tuple(printable(item.path.relative_to(splits.folder.root)) for item in splits.folder.broken)
    conflicts = tuple(tuple(map(printable, conflict.paths)) for conflict in splits.conflicts)
    return SplitsRecord(
        root=printable(root),
        fingerprint=splits.folder.fingerprint(),
        entries=entries,
        broken=broken,
        conflicts=conflicts,
        excluded=tuple(map(printable, splits.excluded)),
    )


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of ``folder``."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()}
