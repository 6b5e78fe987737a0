"""Options that a training from shards does not support, because they need all images in memory."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from edgetl.errors import ConfigError, MissingExtraError
from edgetl.train.config.options import TrainConfig

LIBRARY, EXTRA = "webdataset", "shards"
# Options about copies of images. A search for copies compares all images with each other.
_OF_COPIES = ("near_duplicates", "allow_leakage")


def check_sharded(config: TrainConfig) -> None:
    """Check that a training from shards supports the options, and that its library is installed.

    Raises:
        ConfigError: an option is not supported. The message lists all of them.
        MissingExtraError: webdataset is not installed.
    """
    if found := [*_unsupported(config)]:
        copies = (
            " A training from shards does not search for copies of images. `edgetl pack` does: it gives the copies of an image one group, "
            "and a group stays in one split."
        )
        raise ConfigError(
            f"{', '.join(found)}: not supported with shards, which are read as a stream. Remove {'it' if len(found) == 1 else 'them'}, or "
            f"train on a folder of images.{copies if config.given().keys() & set(_OF_COPIES) else ''}"
        )
    if find_spec(LIBRARY) is None:
        raise MissingExtraError(LIBRARY, EXTRA, alternative="A training on a folder of images does not need it.")


def _unsupported(config: TrainConfig) -> Iterator[str]:
    data, given = config.data, config.given()
    if data.task not in (None, "classification"):
        yield f"--task {data.task}"
    if config.optim.strategy == "compare":
        yield "--strategy compare"
    if config.head.kind != "linear":
        yield f"--head {config.head.kind}"
    if given.get("augmented_views", 1) > 1:
        yield f"--augmented-views {config.head.augmented_views}"
    if data.balance in ("sampler", "head"):
        yield f"--balance {data.balance}"
    if config.continual.replay:
        yield "--replay"
    # The activation cache stores activations of all images, for --strategy partial on a folder.
    for name in ("columns", "group", "groups", "balance_by", "include", "exclude", *_OF_COPIES, "cache_views", "cache_gb"):
        if given.get(name):
            yield f"--{name.replace('_', '-')}"
