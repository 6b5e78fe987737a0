"""Pretraining of a small backbone from a recipe, by distillation from a larger network, labels, or both. Resumable and reproducible."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader

from edgetl.core.bundle import pack_prefixes
from edgetl.core.config import read_json
from edgetl.core.files.atomic import write_bytes, write_text
from edgetl.core.licenses import most_restrictive
from edgetl.core.output.folders import locked_folder
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.core.system.host import fingerprint, versions
from edgetl.errors import BackboneError, ConfigError, first_line
from edgetl.pretrain.compression import Coordinates, compress
from edgetl.pretrain.distillation import Distillation, TeacherFeatures, TeacherNetwork, load_teacher
from edgetl.pretrain.images import Pool, Views, count_labels, load_pools
from edgetl.pretrain.loop import CHECKPOINT_NAME, CHECKPOINT_STEPS, Checkpoint, Descent, descend
from edgetl.pretrain.recipe import TEACHER, Recipe
from edgetl.train.artifacts.loading.catalogue import HASHES_SUFFIX, Pretrained, Teacher, UsedImages
from edgetl.train.artifacts.loading.weights import load_weights
from edgetl.train.config.weights_dir import sha256_of
from edgetl.train.inputs.dataset import default_workers
from edgetl.train.networks.backbone import count_macs

# Number of batches for the compression of the teacher.
COMPRESSION_STEPS = 3
# Running means and variances fit the range of half precision. The batch counter is dropped, because a trained network does not use it.
_DROPPED = "num_batches_tracked"


@dataclass(frozen=True)
class Folders:
    """Folders of a pretraining.

    Attributes:
        out: folder of the results and the checkpoint.
        data: folder that contains the recipe's images.
        weights: folder that contains the teacher.
        recipes: folder to which the path ``Recipe.start`` is relative.
    """

    out: Path
    data: Path | None = None
    weights: Path | None = None
    recipes: Path = Path()


def pretrain(
    recipe: Recipe, folders: Folders, *, device: str = "cpu", checkpoint_steps: int = CHECKPOINT_STEPS, progress: Progress = silent
) -> Pretrained:
    """Pretrain a backbone, and write its weights (half precision), its record and perceptual hashes of its images into ``folders.out``.

    The files are ``<name>.safetensors``, ``<name>.json`` and ``<name>.hashes.bin``.

    A checkpoint is written there at regular intervals. After an interruption, the same call continues from it. The result is the same
    as without interruption, bit for bit, on a CPU with the same libraries and number of threads.

    Args:
        recipe: architecture, images, teacher and losses.
        folders: folders of results and inputs.
        device: ``cpu`` or ``cuda``.
        checkpoint_steps: steps between two checkpoints.
        progress: called after each step.

    Returns:
        The record in ``<name>.json``.

    Raises:
        ConfigError: the folder contains the checkpoint of another recipe, or files that edgetl did not write, or overlaps ``folders.data``.
        DataError: images are missing.
        BackboneError: the teacher or the starting weights cannot be used.
        StorageError: the folder cannot be written.
        TrainingError: the loss became infinite or not a number.
    """
    with locked_folder(folders.out, inputs={} if folders.data is None else {"--data": folders.data}):
        _check_own(folders.out, recipe.name)
        return _pretrain(recipe, folders, device, checkpoint_steps, progress)


def _pretrain(recipe: Recipe, folders: Folders, device: str, checkpoint_steps: int, progress: Progress) -> Pretrained:
    started = time.monotonic()
    pools = load_pools(recipe, folders.data, progress)
    compressed = recipe.start == TEACHER
    teacher = load_teacher(recipe.teacher, folders.weights, pads_as_torch=compressed) if recipe.teacher else None
    module = _build(recipe, pools, teacher, views := Views(recipe, pools), folders.recipes, device)
    start = folders.recipes / recipe.start if recipe.start and recipe.start != TEACHER else None
    origin = Origin(teacher.origin if teacher else None, pools, sha256_of(start) if start else None)
    path, identity = folders.out / CHECKPOINT_NAME, origin.identity(recipe)
    checkpoint = Checkpoint(path, module, checkpoint_steps, identity=identity, inputs="recipe, teacher or images")
    first = checkpoint.restore()
    batches = DataLoader(views, batch_size=None, sampler=range(first, recipe.steps), num_workers=min(4, default_workers()))
    descent = Descent(module, module.make_optimizer(), recipe.steps, recipe.seed, f"the recipe's lr (now {recipe.lr:g})", module.average)
    descend(descent, batches, checkpoint, device, progress)
    result = _publish(recipe, module.ema.module, folders.out, origin, time.monotonic() - started + checkpoint.seconds_before)
    checkpoint.path.unlink(missing_ok=True)
    return result


def _check_own(out: Path, name: str) -> None:
    """Check that existing weights and record were written by a pretraining. A checkpoint marks a stopped pretraining.

    Raises:
        ConfigError: another program wrote the files, or they changed.
    """
    weights, record = out / f"{name}.safetensors", out / f"{name}.json"
    if (out / CHECKPOINT_NAME).is_file() or not (os.path.lexists(weights) or os.path.lexists(record)):
        return
    try:
        own = read_json(record, Pretrained, ConfigError).weights_sha256 == sha256_of(weights)
    except (ConfigError, OSError):
        own = False
    if not own:
        raise ConfigError(f"{out} contains {name}.safetensors or {name}.json, which edgetl pretrain did not write. Choose another --out.")


@dataclass(frozen=True)
class Origin:
    """Inputs of a pretraining other than the recipe.

    Attributes:
        teacher: distillation teacher.
        pools: images of each source.
        start_sha256: SHA-256 of the starting weights. ``None`` if these are random or the teacher's.
    """

    teacher: Teacher | None
    pools: list[Pool]
    start_sha256: str | None

    def images_sha256(self) -> str:
        """Return the SHA-256 (hex) over the pixels of all sources."""
        return hashlib.sha256("".join(pool.sha256 for pool in self.pools).encode()).hexdigest()

    def identity(self, recipe: Recipe) -> str:
        """Return the SHA-256 (hex) over recipe and inputs. A checkpoint with another identity is not resumed."""
        teacher = self.teacher.weights_sha256 if self.teacher else ""
        return hashlib.sha256("\n".join((recipe.digest(), self.images_sha256(), teacher, self.start_sha256 or "")).encode()).hexdigest()


def _build(recipe: Recipe, pools: list[Pool], teacher: TeacherNetwork | None, views: Views, recipes: Path, device: str) -> Distillation:
    torch.manual_seed(recipe.seed)
    try:
        student = timm.create_model(recipe.architecture, num_classes=0)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(
            f"timm {timm.__version__} cannot build {recipe.architecture}: {first_line(error)} Correct the recipe's architecture."
        ) from error
    coordinates: list[Coordinates] = []
    if recipe.start == TEACHER and teacher is not None:
        images = torch.cat([views[step][0] for step in range(min(COMPRESSION_STEPS, len(views)))])
        coordinates = compress(teacher.model, student, images)
    elif recipe.start:
        load_weights(student, None, recipes / recipe.start, architecture=recipe.architecture)
    features = TeacherFeatures(teacher, coordinates if recipe.losses.maps else [], recipe.side, device) if teacher else None
    return Distillation(recipe, student, features, views, labels=count_labels(pools))


def _used(pool: Pool) -> UsedImages:
    return UsedImages(name=pool.source.source or str(pool.source.formula), count=len(pool.images), sha256=pool.sha256)


def _publish(recipe: Recipe, student: nn.Module, out: Path, origin: Origin, seconds: float) -> Pretrained:
    """Write the averaged weights in half precision, the perceptual hashes of the images, and the record."""
    tensors = {key: value.half().cpu().contiguous() for key, value in student.state_dict().items() if not key.endswith(_DROPPED)}
    data = safetensors.torch.save(tensors, {"format": "pt"})
    path = out / f"{recipe.name}.safetensors"
    write_bytes(path, data)
    write_bytes(out / f"{recipe.name}{HASHES_SUFFIX}", pack_prefixes(frozenset[int]().union(*(pool.hashes for pool in origin.pools))))
    spec = PreprocessSpec(
        input_size=(recipe.use_side, recipe.use_side), crop_pct=1.0, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    teacher = origin.teacher
    record = Pretrained(
        name=recipe.name,
        architecture=recipe.architecture,
        params_m=round(sum(parameter.numel() for parameter in student.parameters()) / 1e6, 3),
        mmacs=round(count_macs(student.cpu().eval(), (recipe.use_side, recipe.use_side)) / 1e6, 1),
        preprocess=spec,
        license=most_restrictive([recipe.license, *([teacher.license] if teacher else [])]),
        notes=recipe.notes,
        weights_sha256=sha256_of(path),
        recipe_sha256=recipe.digest(),
        start_sha256=origin.start_sha256,
        teacher=teacher,
        images=tuple(_used(pool) for pool in origin.pools),
        images_sha256=origin.images_sha256(),
        steps=recipe.steps,
        seconds=round(seconds, 1),
        versions=versions(),
        host=fingerprint(),
    )
    write_text(out / f"{recipe.name}.json", record.model_dump_json(indent=1) + "\n")
    return record
