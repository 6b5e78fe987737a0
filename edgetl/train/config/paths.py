"""Paths that a training reads, checked before torch is imported."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.bundle import is_run
from edgetl.core.files.regular import open_plain
from edgetl.data.folder import check_folder
from edgetl.errors import BackboneError, DataError, EdgetlError
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.recipe import with_recipe
from edgetl.train.config.weights_dir import LOCAL_DIR, check_weights_dir, find_weights

# Beginnings of explicit paths; `hf-hub:ORG/NAME` and timm's names never begin so.
_PATH_STARTS = ("/", "./", "../", "~")


def training_inputs(data: Path, config: TrainConfig) -> dict[str, Path]:
    """Check the paths that a training reads, and return them by their names in messages; without backbones and teachers that timm names.

    It needs no torch and decodes no image, so that a wrong path is reported at once.

    Raises:
        DataError: ``data``, ``--labels`` or ``--replay`` is not there.
        BackboneError: ``--backbone``, ``--teacher``, ``--weights`` or ``--weights-dir`` is a path that is not there.
        ConfigError: ``--recipe`` cannot be read.
    """
    backbone, labels, replay, recipe = config.backbone, config.data.labels, config.continual.replay, config.optim.recipe
    check_folder(data)
    check_file(labels, "--labels", DataError, "Give a table of labels.")
    check_file(backbone.weights, "--weights", BackboneError, "Give a .safetensors or .pth file.")
    if backbone.weights_dir is not None:
        check_weights_dir(Path(backbone.weights_dir))
    if replay is not None and not Path(replay).is_dir():
        raise DataError(f"--replay {replay} is not a folder. Give a run, or a folder of class folders.")
    with_recipe(config)
    named = {"the folder of images": data, "--replay": replay, "--labels": labels, "--weights": backbone.weights}
    found = {name: Path(path) for name, path in named.items() if path is not None}
    if recipe is not None and recipe.endswith(".toml"):
        found["--recipe"] = Path(recipe)
    for option, name in (("--backbone", backbone.name), ("--teacher", config.distillation.teacher)):
        if name is not None and (path := _network_folder(option, name, backbone.weights_dir)) is not None:
            found[option] = path
    return found


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


def _network_folder(option: str, name: str, weights_dir: str | None) -> Path | None:
    """Folder or file of a backbone's name; none for a name of timm, torchvision or a hub."""
    path = Path(name.removeprefix(LOCAL_DIR))
    if name.startswith(LOCAL_DIR) or is_run(path) or name.startswith(_PATH_STARTS):
        if not path.is_dir():
            raise BackboneError(
                f"{option} {name}: there is no such folder. Give a run, a folder in timm's form, or the name of a backbone."
            )
        return path
    # The weights directory itself is no input: a run may be written into it.
    return find_weights(name, Path(weights_dir)) if weights_dir is not None else None
