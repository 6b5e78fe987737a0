"""timm's architectures for the sweep of ``bench.zoo``: which ones, with weights and pictures that make a comparison say something."""

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
# Divisible by 64, so that networks of stride 32 and 64 still have a map at their end.
SMALL_SIDE = 128
CALIBRATION_IMAGES = 16
# Part of the cached list's name: raise it when what the list holds, or how a kind is told, changes.
_LIST_VERSION = 1
# Words and numbers of a timm name that tell a size: width, depth, resolution, patch.
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
    """One of timm's, as built for 1,000 classes.

    Attributes:
        family: the module of timm that holds its builder.
        kind: what it shares with its other sizes: the module, the name without sizes, and the kinds of its layers.
        sides: the input's height and width to try, px, the quickest first.
    """

    name: str
    family: str
    kind: str
    parameters: int
    sides: tuple[int, ...]


class _TooLargeError(Exception):
    pass


def smallest_of_each_kind(found: list[Architecture]) -> list[Architecture]:
    """The smallest architecture of each kind, by name; of equals the one with the smaller input."""
    best: dict[str, Architecture] = {}
    for item in sorted(found, key=lambda item: (item.parameters, item.sides[-1], item.name)):
        best.setdefault(item.kind, item)
    return sorted(best.values(), key=lambda item: item.name)


def architectures(*, progress: Callable[[int, int], None] = lambda _done, _total: None) -> list[Architecture]:
    """timm's architectures of at most ``MAX_PARAMETERS``, by name. Takes a minute the first time; the user's cache keeps the answer."""
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
    """What ``name`` is, found without making its weights; none if it is too large."""
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
    """Stop the building of a network that grows beyond this: two thirds of timm's are larger than the sweep wants, some by gigabytes."""
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
    """Its own side last; before it a smaller one, if the network's own record does not forbid that."""
    cfg = dict(model.pretrained_cfg)  # type: ignore[arg-type]  # timm sets it on every model
    own = int(cfg["input_size"][-1])
    least = max(SMALL_SIDE, (cfg.get("min_input_size") or (3, 0, 0))[-1])
    return (own,) if cfg.get("fixed_input_size") or own <= least else (least, own)


def seed_of(name: str) -> int:
    """A seed of its own for each architecture, so that the order of a sweep changes nothing."""
    return zlib.crc32(name.encode())


def pictures(count: int, side: int, seed: int) -> torch.Tensor:
    """Random pictures float32 ``[count, 3, side, side]`` with a colour, coarse and fine structure and a contrast of their own.

    White noise alone would look the same to every network that averages over the map.
    """
    random = torch.Generator().manual_seed(seed)
    total = torch.randn(count, 3, 1, 1, generator=random).repeat(1, 1, side, side)
    for cells in (3, 8, side):
        noise = torch.randn(count, 3, cells, cells, generator=random)
        strength = 0.2 + torch.rand(count, 1, 1, 1, generator=random)
        total += strength * nn.functional.interpolate(noise, size=(side, side), mode="bilinear")
    return total


def randomise(model: nn.Module, side: int, seed: int, *, strong: bool = False) -> None:
    """Give a fresh network weights and statistics under which no branch is silent.

    timm starts many branches at zero (the last normalisation of a residual block, layer scale, skip gains) and all BatchNorm statistics
    at zero and one, which would hide what an exporter does to them. Parameters that hold one value are drawn. BatchNorm statistics are
    first measured on random pictures, so that activations neither vanish nor grow from layer to layer, and then drawn around that.

    ``strong`` gives every layer a gain of about one. Transformers start with less and have no statistics that are measured on pictures:
    some (eva02) answer nearly the same to every picture without it.
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
        model(pictures(CALIBRATION_IMAGES, side, seed + 1))
        for module, momentum in zip(norms, momenta, strict=True):
            module.eval()
            module.momentum = momentum
            _perturb(module, random)


def _draw(parameter: nn.Parameter, random: torch.Generator) -> None:
    """Replace a parameter whose values are all the same."""
    value = float(parameter.flatten()[0])
    if parameter.numel() > 1 and not bool((parameter == value).all()):
        return
    uniform = torch.rand(parameter.shape, generator=random)
    if abs(value) > 1e-3:
        parameter.copy_(value * (0.5 + uniform))
    elif parameter.dim() <= 1 or parameter.shape[0] == 1:
        # Biases, layer scale, gains and positions: enough for the branch to be seen beside its shortcut.
        parameter.copy_(0.4 * (uniform - 0.5) + (0.3 if value else 0.0))
    else:
        parameter.copy_((2 * uniform - 1) / parameter[0].numel() ** 0.5)


def _strengthen(parameter: nn.Parameter) -> None:
    """Scale weak weights ``[out, in, …]`` so that inputs of variance one give outputs of variance one."""
    if parameter.dim() < 2 or parameter.shape[0] == 1:
        return
    gain = float(parameter.std()) * parameter[0].numel() ** 0.5
    if 0 < gain < 1:
        parameter.div_(gain)


def _perturb(module: nn.modules.batchnorm._BatchNorm, random: torch.Generator) -> None:
    mean, var = module.running_mean, module.running_var
    if mean is None or var is None:
        return
    # A channel without variance would be amplified by 1/sqrt(eps), and rounding errors with it.
    var.clamp_(min=float(var.mean()) * 1e-2 + 1e-6)
    mean += 0.3 * var.sqrt() * torch.randn(mean.shape, generator=random)
    var *= 0.5 + 1.5 * torch.rand(var.shape, generator=random)
