"""Input paths of a training: checks that run before torch is imported."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.bundle import is_run
from edgetl.core.files.regular import open_plain
from edgetl.data.folder import check_folder
from edgetl.data.shards.names import find_shards, is_shards
from edgetl.errors import BackboneError, ConfigError, DataError, EdgetlError
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.recipe import with_recipe
from edgetl.train.config.sharding.conflicts import check_sharded
from edgetl.train.config.weights_dir import LITE0, LOCAL_DIR, check_weights_dir, find_weights, lite0_weights

# Prefixes of explicit paths. `hf-hub:ORG/NAME` and timm's names never start with one of them.
_PATH_STARTS = ("/", "./", "../", "~")


def training_inputs(data: Path, config: TrainConfig) -> dict[str, Path]:
    """Check the input paths of a training, and return them by the names that messages use.

    The function imports no torch and decodes no image. A wrong path is therefore reported at once. Backbones and teachers that are named
    by timm, torchvision or a hub have no path and are not in the result.

    Raises:
        DataError: If ``data``, a shard, ``--labels``, ``--groups`` or ``--replay`` does not exist.
        BackboneError: If ``--backbone``, ``--teacher``, ``--weights`` or ``--weights-dir`` is a path that does not exist.
        ConfigError: If ``--recipe`` or ``--text-embeddings`` cannot be read, or shards do not support an option.
        MissingExtraError: If ``data`` are shards, and webdataset is not installed. Or if ``--backbone`` or ``--teacher`` is ``lite0``,
            and its package is not installed.
    """
    backbone, labels, replay, recipe = config.backbone, config.data.labels, config.continual.replay, config.optim.recipe
    images = _images_input(data, config)
    check_file(labels, "--labels", DataError, "Give a table of labels.")
    check_file(config.data.groups, "--groups", DataError, "Give a table with a column `file`.")
    check_file(backbone.weights, "--weights", BackboneError, "Give a .safetensors or .pth file.")
    check_file(config.head.text_embeddings, "--text-embeddings", ConfigError, "Give a .npz, .safetensors or .npy file.")
    if backbone.weights_dir is not None:
        check_weights_dir(Path(backbone.weights_dir))
    if replay is not None and not Path(replay).is_dir():
        raise DataError(f"--replay {replay} is not a folder. Give a run, or a folder of class folders.")
    with_recipe(config)
    named = {
        **images,
        "--replay": replay,
        "--labels": labels,
        "--groups": config.data.groups,
        "--weights": backbone.weights,
        "--text-embeddings": config.head.text_embeddings,
    }
    found = {name: Path(path) for name, path in named.items() if path is not None}
    if recipe is not None and recipe.endswith(".toml"):
        found["--recipe"] = Path(recipe)
    for option, name in (("--backbone", backbone.name), ("--teacher", config.distillation.teacher)):
        if name is not None and (path := _network_folder(option, name, backbone.weights_dir)) is not None:
            found[option] = path
    return found


def _images_input(data: Path, config: TrainConfig) -> dict[str, Path]:
    """Return the folder of images, or the first of the shards, by its name in messages."""
    if not is_shards(data):
        return {"the folder of images": check_folder(data)}
    check_sharded(config)
    return {"the shards": find_shards(data)[0]}


def check_file(path: str | Path | None, option: str, error: type[EdgetlError], remedy: str) -> None:
    """Check that the file of an option exists and is a regular file.

    Args:
        path: File to check. None is accepted.
        option: Name of the option, for the message.
        error: Class of the exception.
        remedy: Last sentence of the message.

    Raises:
        EdgetlError: If the file cannot be opened, as an instance of ``error``.
    """
    if path is None:
        return
    try:
        open_plain(Path(path)).close()
    except OSError as cause:
        raise error(f"{option} {path} cannot be read: {cause.strerror}. {remedy}") from cause


def _network_folder(option: str, name: str, weights_dir: str | None) -> Path | None:
    """Return the folder or file of a backbone, or None for a name of timm, torchvision or a hub."""
    if name == LITE0:
        return lite0_weights()
    path = Path(name.removeprefix(LOCAL_DIR))
    if name.startswith(LOCAL_DIR) or is_run(path) or name.startswith(_PATH_STARTS):
        if not path.is_dir():
            raise BackboneError(
                f"{option} {name}: the folder does not exist. Give a run, a folder in timm's format, or the name of a backbone."
            )
        return path
    # The weights directory itself is not an input path, because a run may be written into it.
    return find_weights(name, Path(weights_dir)) if weights_dir is not None else None
