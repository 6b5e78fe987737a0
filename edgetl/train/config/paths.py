"""Paths that a training reads, checked before torch is imported."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.bundle import is_run
from edgetl.core.files.plain import open_plain
from edgetl.data.folder import check_folder
from edgetl.errors import BackboneError, DataError, EdgetlError
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.recipe import with_recipe
from edgetl.train.config.weights_dir import LOCAL_DIR, check_mirror, find_in_mirror

# Beginnings of explicit paths; `hf-hub:ORG/NAME` and timm's names never begin so.
_PATH_STARTS = ("/", "./", "../", "~")


def training_inputs(data: Path, config: TrainConfig) -> dict[str, Path]:
    """Paths that a training reads, by their names in messages; without backbones and teachers that timm names.

    Raises:
        EdgetlError: as ``check_training_paths``.
    """
    return {"the folder of images": data, **config_inputs(config)}


def config_inputs(config: TrainConfig) -> dict[str, Path]:
    """Paths in the options of a training: backbone and teacher (if they are folders), replay, labels, weights, recipe."""
    found: dict[str, Path] = {}
    for option, name in (("--backbone", config.backbone.name), ("--teacher", config.distillation.teacher)):
        if name is not None and (path := _folder_of(name) or _in_mirror(name, config.backbone.weights_dir)) is not None:
            found[option] = path
    named = (("--replay", config.continual.replay), ("--labels", config.data.labels), ("--weights", config.backbone.weights))
    found |= {option: Path(value) for option, value in named if value is not None}
    if config.optim.recipe is not None and config.optim.recipe.endswith(".toml"):
        found["--recipe"] = Path(config.optim.recipe)
    return found


def check_training_paths(data: Path, config: TrainConfig) -> None:
    """Refuse wrong paths at once: before seconds of imports, and before the images are decoded.

    Raises:
        DataError: ``data``, ``--labels`` or ``--replay`` is not there.
        BackboneError: ``--backbone``, ``--teacher``, ``--weights`` or ``--weights-dir`` is a path that is not there.
        ConfigError: ``--recipe`` cannot be read.
    """
    check_folder(data)
    check_file(config.data.labels, "--labels", DataError, "Give a table of labels.")
    check_file(config.backbone.weights, "--weights", BackboneError, "Give a .safetensors or .pth file.")
    if config.backbone.weights_dir is not None:
        check_mirror(Path(config.backbone.weights_dir))
    if config.continual.replay is not None and not Path(config.continual.replay).is_dir():
        raise DataError(f"--replay {config.continual.replay} is not a folder. Give a run, or a folder of class folders.")
    for option, name in (("--backbone", config.backbone.name), ("--teacher", config.distillation.teacher)):
        path = None if name is None else _folder_of(name)
        if path is not None and not path.is_dir():
            raise BackboneError(
                f"{option} {name}: there is no such folder. Give a run, a folder in timm's form, or the name of a backbone."
            )
    with_recipe(config)


def check_file(path: str | Path | None, option: str, error: type[EdgetlError], remedy: str) -> None:
    """Refuse a file that is not there or is no regular file.

    Raises:
        EdgetlError: as the class ``error``, naming the option.
    """
    if path is None:
        return
    try:
        open_plain(Path(path)).close()
    except OSError as cause:
        raise error(f"{option} {path} cannot be read: {cause.strerror}. {remedy}") from cause


def _in_mirror(name: str, weights_dir: str | None) -> Path | None:
    """Weights of ``name`` in the weights directory. The directory itself is no input: a run may be written into it."""
    return find_in_mirror(name, Path(weights_dir)) if weights_dir is not None and Path(weights_dir).is_dir() else None


def _folder_of(name: str) -> Path | None:
    """Folder of a backbone's name; none for a name of timm, torchvision or a hub."""
    if name.startswith(LOCAL_DIR):
        return Path(name.removeprefix(LOCAL_DIR))
    path = Path(name)
    return path if is_run(path) or name.startswith(_PATH_STARTS) else None
