"""Run folders: open a run, and read its network, images and lineage.

``run.json`` contains the hash of every other file. It is written last, into a staging folder that is renamed to the run in one step. A
partly written folder is therefore never a valid run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.bundle import RUN_RECORD_NAME, check_run_folder, unpack_hashes
from edgetl.core.config import parse_json, read_json
from edgetl.core.files.regular import open_plain
from edgetl.core.lineage import Parent
from edgetl.data.content.integrity import check_images
from edgetl.data.folder import Part, Sample
from edgetl.errors import DataError, RunError, first_line
from edgetl.train.artifacts.record import OUT_OF_FOLD_NAME, SPLITS_NAME, WEIGHTS_NAME, RunRecord
from edgetl.train.artifacts.seen_images import PERCEPTUAL_NAME, SELECTED_NAME, TRAINED_NAME, SeenImages
from edgetl.train.artifacts.splits_record import SplitsRecord
from edgetl.train.heads.modules import rebuild_headed
from edgetl.train.networks.backbone import Backbone, state_problem


@dataclass(frozen=True)
class Run:
    """Opened run folder.

    Every file is compared with its hash in ``run.json`` when it is read. Use ``open_run`` to open a folder.

    Attributes:
        path: the run folder.
        record: content of ``run.json``.
    """

    path: Path
    record: RunRecord

    def load_model(self) -> nn.Module:
        """Return the trained network in evaluation mode on the CPU.

        The network maps float32 ``[batch, 3, H, W]`` images, preprocessed with ``record.preprocess``, to logits ``[batch, outputs]``.

        Raises:
            RunError: the weights are damaged or do not fit the architecture.
            BackboneError: the installed library does not have the architecture.
        """
        state = self.read_tensors(WEIGHTS_NAME)
        backbone, path = self.record.backbone, self.path / WEIGHTS_NAME
        try:
            # The meta device allocates no memory: a damaged record may describe a network of any size.
            with torch.device("meta"):
                problem = state_problem(self._network(), state)
        except NotImplementedError:  # some torchvision networks cannot be built on the meta device
            problem = None
        if problem:
            raise RunError(f"{path} does not fit {backbone.architecture}: {problem}. The run is damaged; train again.")
        model = self._network()
        try:
            model.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            raise RunError(f"{path} does not fit {backbone.architecture}: {first_line(error)} The run is damaged; train again.") from error
        head = dict(model.named_modules()).get(backbone.head_name)
        if not isinstance(head, nn.Linear) or head.out_features != (1 if self.record.head.distances else len(self.record.labels)):
            raise RunError(
                f"{self.path}: {backbone.head_name!r} is not the head of {backbone.architecture}. The run is damaged; train again."
            )
        return model.eval()

    def _network(self) -> nn.Module:
        record, backbone = self.record, self.record.backbone
        args: dict[str, Any] = dict(backbone.model_args)
        return rebuild_headed(backbone.architecture, args, record.head, len(record.labels), backbone.columns)

    def backbone(self, model: nn.Module | None = None) -> Backbone:
        """Return the trained network together with its origin, preprocessing and license.

        Args:
            model: network to use in place of the run's own, which is loaded by default.

        Raises:
            RunError: the weights are damaged or do not fit the architecture.
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
        """Return the lineage entry for a network that starts from this run's weights."""
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
        """Return the tensors of the run's safetensors file ``name``.

        Raises:
            RunError: the file is missing, changed or damaged.
        """
        try:
            return safetensors.torch.load(self.read(name))
        except (safetensors.SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{self.path / name} cannot be read as safetensors: {first_line(error)} The run is damaged; train again."
            ) from error

    def splits(self) -> SplitsRecord:
        """Return the images of the run and the split of each. The root is an absolute path.

        Raises:
            RunError: ``splits.json`` is missing, changed, or does not fit the run.
        """
        name = str(self.path / SPLITS_NAME)
        splits = parse_json(self.read(SPLITS_NAME), SplitsRecord, RunError, name=name)
        if problem := splits.problem(self.record.task, len(self.record.labels)):
            raise RunError(f"{name}: {problem}. The run is damaged; train again.")
        # The images of an updated run are in its folder.
        return splits.model_copy(update={"root": str(self.path.absolute() / splits.root)})

    def seen_images(self) -> SeenImages:
        """Return the images that trained or selected this run or one of its ancestors."""
        trained, selected = (frozenset(unpack_hashes(self.read(name)).tolist()) for name in (TRAINED_NAME, SELECTED_NAME))
        perceptual = unpack_hashes(self.read(PERCEPTUAL_NAME)).tolist() if PERCEPTUAL_NAME in self.record.files else ()
        return SeenImages(trained, selected, frozenset(perceptual))

    def samples(self, part: Part, data: Path | None = None) -> list[Sample]:
        """Return the images of one split, and check that their content did not change since the training.

        Args:
            part: the split.
            data: folder that contains the images. The default is the folder that the run was trained on.

        Raises:
            DataError: images are missing, or their content changed.
        """
        splits = self.splits()
        root = data or Path(splits.root)
        try:
            there = root.is_dir()
        except OSError:  # the name is too long for the file system
            there = False
        if not there:
            raise DataError(
                f"the images of {self.path} are not at {root}. They are needed to calibrate and to check the accuracy. "
                f"Give their folder with --data."
            )
        entries = [entry for entry in splits.entries if entry.part == part]
        samples = [Sample(root / entry.file, entry.label, entry.content, part, entry.targets, entry.group) for entry in entries]
        found = check_images([sample.path for sample in samples], root)
        wrong = [sample.path for sample in samples if found[sample.path].content != sample.content]
        if wrong:
            raise DataError(
                f"{len(wrong)} of {len(samples)} {part} images in {root} are missing or changed since the training, "
                f"for example {wrong[0]}. Restore them, or give the right folder with --data."
            )
        return samples

    def out_of_fold_outputs(self) -> NDArray[np.float32]:
        """Return the out-of-fold outputs of a cross-validated run, float32 ``[n, outputs]``, in the order of ``samples("train")``.

        Raises:
            RunError: the file is missing, changed or damaged.
        """
        outputs = self.read_tensors(OUT_OF_FOLD_NAME).get("outputs")
        shape = (self.record.images["train"], len(self.record.labels))
        if outputs is None or outputs.shape != shape:
            raise RunError(f"{self.path / OUT_OF_FOLD_NAME} has no outputs for {shape[0]} images. The run is damaged; train again.")
        found: NDArray[np.float32] = outputs.numpy().astype(np.float32)
        return found

    def sizes(self) -> dict[str, int | None]:
        """Return the size in bytes of ``run.json`` and of each file that it lists. ``None`` marks a missing file."""
        paths = [self.path / name for name in (RUN_RECORD_NAME, *sorted(self.record.files))]
        return {path.name: path.stat().st_size if path.is_file() else None for path in paths}

    def digest(self) -> str:
        """Return the SHA-256 (hex) of ``run.json``. It covers the whole run, because ``run.json`` contains all other hashes."""
        with open_plain(self.path / RUN_RECORD_NAME) as file:
            return hashlib.sha256(file.read()).hexdigest()

    def read(self, name: str) -> bytes:
        """Return the bytes of the run's file ``name`` after a comparison with its hash in ``run.json``.

        Raises:
            RunError: the file is missing, or its hash differs.
        """
        path = self.path / name
        try:
            with open_plain(path) as file:
                data = file.read()
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}. The run is damaged; train again.") from error
        if hashlib.sha256(data).hexdigest() != self.record.files.get(name):
            raise RunError(f"{path} changed since the training: its SHA-256 differs. The run is damaged; train again.")
        return data


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    Args:
        path: folder that ``edgetl train`` wrote.

    Raises:
        RunError: the folder is missing or is not a run, for example because it is a bundle.
    """
    folder = check_run_folder(path)
    return Run(folder, read_json(folder / RUN_RECORD_NAME, RunRecord, RunError))


def run_inputs(runs: Sequence[Run], data: Path | None) -> dict[str, Path]:
    """Return the paths that a command on runs reads, by their names in error messages: each run, and the images of the first run."""
    adaptation = runs[0].record.adaptation
    images = {"the folder of images": data or Path(runs[0].splits().root)}
    images |= {"the target images": Path(adaptation.target)} if adaptation else {}
    return {**{f"the run {run.path}": run.path for run in runs}, **images}
