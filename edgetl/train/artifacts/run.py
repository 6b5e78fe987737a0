"""Run folders: opening a run, its network, images and lineage.

``run.json`` is written last into a staging folder that becomes the run in one rename, and names the hash of every other file: a partly
written folder is no run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from edgetl.core.bundle import RUN_RECORD_NAME, check_run_folder, unpack_hashes
from edgetl.core.config import parse_json, read_json
from edgetl.core.files.regular import open_plain
from edgetl.core.manifest import Parent
from edgetl.data.content.integrity import check_images
from edgetl.data.folder import Part, Sample
from edgetl.errors import DataError, RunError, first_line
from edgetl.train.artifacts.record import SPLITS_NAME, WEIGHTS_NAME, RunRecord
from edgetl.train.artifacts.seen_images import SELECTED_NAME, TRAINED_NAME, SeenImages
from edgetl.train.artifacts.splits_record import SplitsRecord
from edgetl.train.heads.modules import rebuild_headed
from edgetl.train.networks.backbone import Backbone, state_problem


@dataclass(frozen=True)
class Run:
    """Run folder, opened.

    Every file is read with its hash checked against ``run.json``.
    """

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

    def backbone(self, model: nn.Module | None = None) -> Backbone:
        """The trained network with its origin, or ``model`` in its place.

        Raises:
            RunError: as ``load_model``.
        """
        old = self.record.backbone
        return Backbone(
            name=old.name,
            architecture=old.architecture,
            model=self.load_model() if model is None else model,
            head_name=old.head_name,
            spec=self.record.preprocess,
            model_args=dict(old.model_args),
            weights_sha256=old.weights_sha256,
            license=old.license,
            parents=old.parents,
            columns=old.columns,
        )

    def as_parent(self) -> Parent:
        """This run in the lineage of a network that starts from its weights."""
        record = self.record
        return Parent(
            kind="run",
            name=record.name,
            architecture=record.backbone.architecture,
            sha256=self.digest(),
            license=record.backbone.license,
            data_fingerprint=record.data_fingerprint,
            validation=record.validation.score.value,
        )

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
        """Images that this run, or one that its weights come from, was trained or selected on."""
        trained, selected = (frozenset(unpack_hashes(self.read(name)).tolist()) for name in (TRAINED_NAME, SELECTED_NAME))
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
        RunError: not a run; the text names a bundle if it is one.
    """
    folder = check_run_folder(path)
    return Run(folder, read_json(folder / RUN_RECORD_NAME, RunRecord, RunError))


def run_inputs(runs: Sequence[Run], data: Path | None) -> dict[str, Path]:
    """Paths that a command on runs reads: the runs, and the images of the first; by their names in messages."""
    return {**{f"the run {run.path}": run.path for run in runs}, "the folder of images": data or Path(runs[0].splits().root)}
