"""Architectures of timm for the export sweep, with random weights and images that make a comparison meaningful."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import timm
import torch
from timm.models._registry import model_entrypoint
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from edgetl.core.files.atomic import write_text

MAX_PARAMETERS = 12_000_000
# Divisible by 64, because networks of stride 32 or 64 need at least one position in their last feature map.
SMALL_SIDE = 128
CALIBRATION_IMAGES = 16
# Part of the name of the cached list. Raise it when the content of the list or the definition of a kind changes.
_LIST_VERSION = 1
# Words and numbers of a timm name that describe a size: width, depth, resolution, patch.
_SIZE_WORDS = frozenset(
    [
        "zepto",
        "atto",
        "femto",
        "pico",
        "nano",
        "xxtiny",
        "tiny",
        "mini",
        "small",
        "medium",
        "base",
        "large",
        "xsmall",
        "xxs",
        "xs",
        "xx",
        "x",
        "s",
        "m",
        "l",
        "xl",
        "t",
        "ti",
        "es",
        "em",
        "el",
    ]
)
_SIZE_NUMBER = re.compile(r"(patch|[a-z])?\d+")


@dataclass(frozen=True)
class Architecture:
    """Architecture of timm with 1,000 classes.

    Attributes:
        name: name in timm.
        family: module of timm with its builder.
        kind: identifier shared by all sizes: module, name without sizes, kinds of layers.
        parameters: number of parameters.
        sides: heights and widths of the input to try, px, the fastest first.
    """

    name: str
    family: str
    kind: str
    parameters: int
    sides: tuple[int, ...]


class _TooLargeError(Exception):
    pass


def smallest_of_each_kind(found: list[Architecture]) -> list[Architecture]:
    """Return the smallest architecture of each kind, by name. Of equal sizes, the one with the smaller input is returned."""
    best: dict[str, Architecture] = {}
    for item in sorted(found, key=lambda item: (item.parameters, item.sides[-1], item.name)):
        best.setdefault(item.kind, item)
    return sorted(best.values(), key=lambda item: item.name)


def architectures(*, progress: Callable[[int, int], None] = lambda _done, _total: None) -> list[Architecture]:
    """Return the architectures of timm with at most ``MAX_PARAMETERS``, by name.

    The first call takes a minute. Its result is stored in the user's cache folder.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(base) if base else Path.home() / ".cache") / "edgetl" / f"zoo-{_LIST_VERSION}-timm-{timm.__version__}.json"
    if cache.is_file():
        known = [Architecture(**item) for item in json.loads(cache.read_text("utf-8"))]
        return [replace(item, sides=tuple(item.sides)) for item in known]
    names = timm.list_models()
    found = []
    for index, name in enumerate(names):
        progress(index, len(names))
        if (item := describe(name)) is not None:
            found.append(item)
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_text(cache, json.dumps([asdict(item) for item in found]))
    return found


def describe(name: str) -> Architecture | None:
    """Return the architecture ``name`` without allocating its weights; none if it is too large."""
    try:
        with _at_most(2 * MAX_PARAMETERS), torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except _TooLargeError:
        return None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > MAX_PARAMETERS:
        return None
    family = model_entrypoint(name).__module__.rpartition(".")[2]
    layers = zlib.crc32(" ".join(sorted({_layer(module) for module in model.modules()})).encode())
    return Architecture(name, family, f"{family}/{_without_sizes(name)}/{layers:08x}", parameters, _sides(model))


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Abort building a network with more parameters. Two thirds of timm's networks are too large for the sweep, some by gigabytes."""
    seen = 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal seen
        seen += 0 if parameter is None else parameter.numel()
        if seen > parameters:
            raise _TooLargeError

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _without_sizes(name: str) -> str:
    first, *rest = name.split("_")
    return "_".join([first, *(part for part in rest if part not in _SIZE_WORDS and not _SIZE_NUMBER.fullmatch(part))])


def _layer(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return type(module).__name__
    groups = "dense" if module.groups == 1 else "depthwise" if module.groups == module.in_channels else "grouped"
    return f"{type(module).__name__}-{module.kernel_size}-{module.stride}-{groups}".replace(" ", "")


def _sides(model: nn.Module) -> tuple[int, ...]:
    """Return the input sides to try: a smaller one, if the configuration of the network allows it, and then the default side."""
    cfg = dict(model.pretrained_cfg)  # type: ignore[arg-type]  # timm sets it on every model
    own = int(cfg["input_size"][-1])
    least = max(SMALL_SIDE, (cfg.get("min_input_size") or (3, 0, 0))[-1])
    return (own,) if cfg.get("fixed_input_size") or own <= least else (least, own)


def seed_of(name: str) -> int:
    """Return a seed for each architecture. The results are then independent of the order of the sweep."""
    return zlib.crc32(name.encode())


def random_images(count: int, side: int, seed: int) -> torch.Tensor:
    """Return random images float32 ``[count, 3, side, side]`` with different colors, coarse and fine structures, and contrasts.

    White noise is not sufficient: after the average over the feature map, all images would be equal.
    """
    random = torch.Generator().manual_seed(seed)
    total = torch.randn(count, 3, 1, 1, generator=random).repeat(1, 1, side, side)
    for cells in (3, 8, side):
        noise = torch.randn(count, 3, cells, cells, generator=random)
        strength = 0.2 + torch.rand(count, 1, 1, 1, generator=random)
        total += strength * nn.functional.interpolate(noise, size=(side, side), mode="bilinear")
    return total


def randomize(model: nn.Module, side: int, seed: int, *, strong: bool = False) -> None:
    """Set random weights and BatchNorm statistics with which every branch of a new network affects the output.

    timm initializes many branches with zero (the last normalization of a residual block, layer scale, skip gains), and BatchNorm statistics
    with zero and one. Export errors in these branches would be invisible. Constant parameters become random. BatchNorm statistics are first
    measured on random images, which keeps the scale of the activations constant over the layers, and then perturbed.

    ``strong`` scales every layer to a gain of about one. Transformers start with a smaller gain and have no measured statistics. Without
    it, the outputs of some of them (eva02) hardly depend on the image.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            _draw(parameter, random)
            if strong:
                _strengthen(parameter)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        momenta = [module.momentum for module in norms]
        for module in norms:
            module.train()
            module.momentum = 1.0
        model(random_images(CALIBRATION_IMAGES, side, seed + 1))
        for module, momentum in zip(norms, momenta, strict=True):
            module.eval()
            module.momentum = momentum
            _perturb(module, random)


def _draw(parameter: nn.Parameter, random: torch.Generator) -> None:
    """Replace a parameter with equal values by random values."""
    value = float(parameter.flatten()[0])
    if parameter.numel() > 1 and not bool((parameter == value).all()):
        return
    uniform = torch.rand(parameter.shape, generator=random)
    if abs(value) > 1e-3:
        parameter.copy_(value * (0.5 + uniform))
    elif parameter.dim() <= 1 or parameter.shape[0] == 1:
        # Biases, layer scale, gains and positions: large enough for the branch to affect the output next to its shortcut.
        parameter.copy_(0.4 * (uniform - 0.5) + (0.3 if value else 0.0))
    else:
        parameter.copy_((2 * uniform - 1) / parameter[0].numel() ** 0.5)


def _strengthen(parameter: nn.Parameter) -> None:
    """Scale small weights ``[out, in, …]`` to a gain of one: inputs of variance 1 give outputs of variance 1."""
    if parameter.dim() < 2 or parameter.shape[0] == 1:
        return
    gain = float(parameter.std()) * parameter[0].numel() ** 0.5
    if 0 < gain < 1:
        parameter.div_(gain)


def _perturb(module: nn.modules.batchnorm._BatchNorm, random: torch.Generator) -> None:
    mean, var = module.running_mean, module.running_var
    if mean is None or var is None:
        return
    # A channel without variance would be amplified by 1/sqrt(eps), with its rounding errors.
    var.clamp_(min=float(var.mean()) * 1e-2 + 1e-6)
    mean += 0.3 * var.sqrt() * torch.randn(mean.shape, generator=random)
    var *= 0.5 + 1.5 * torch.rand(var.shape, generator=random)
