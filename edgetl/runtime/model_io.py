"""Inputs and outputs of a loaded network, and their comparison with the manifest."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.core.manifest import Manifest, Variant
from edgetl.errors import EngineError

FLOAT32, UINT8 = "float32", "uint8"


@dataclass(frozen=True)
class Port:
    """Input or output of a network.

    Attributes:
        names: names of the tensor in the engine.
        kind: element type: ``float32``, ``uint8``, or the engine's name of another type.
        shape: sizes of the dimensions; None for a dynamic dimension. None instead of the tuple if the number of dimensions is dynamic.
    """

    names: frozenset[str]
    kind: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Ports:
    """All inputs and outputs of a network."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def check_ports(ports: Ports, variant: Variant, manifest: Manifest) -> None:
    """Check that the inputs and outputs of a network match the manifest.

    The batch dimension must be dynamic. Other dynamic dimensions are checked after a run, by ``Predictor.logits``.

    Raises:
        EngineError: they do not match. The message lists every difference.
    """
    kind = UINT8 if variant.input_form == "uint8" else FLOAT32
    problems = _problems("input", ports.inputs, kind, {variant.input: (None, *variant.input_shape(manifest.preprocess))})
    more = manifest.knn.outputs(len(manifest.labels)) if manifest.knn else {}
    problems += _problems("output", ports.outputs, FLOAT32, {variant.output: (None, manifest.decoding.outputs), **more})
    if problems:
        raise EngineError(
            f"the model does not match the manifest: {'; '.join(problems)}. The model was not loaded. Export the bundle again."
        )


def _problems(title: str, found: tuple[Port, ...], kind: str, expected: dict[str, tuple[int | None, ...]]) -> list[str]:
    if len(found) != len(expected):
        return [f"{len(found)} {title}s, expected {len(expected)}"]
    problems = []
    for port, (name, shape) in zip(found, expected.items(), strict=True):
        if name not in port.names:
            problems.append(f"{title} name {', '.join(sorted(port.names))[:60]!r}, expected {name[:60]!r}")
        if port.kind != kind:
            problems.append(f"{title} type {port.kind[:60]}, expected {kind}")
        if port.shape is not None and not _matches(port.shape, shape):
            problems.append(f"{title} shape {_describe(port.shape)}, expected {_describe(shape)}")
    return problems


def _matches(shape: tuple[int | None, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(side is None or side == other for side, other in zip(shape, expected, strict=True))


def _describe(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('dynamic' if side is None else str(side) for side in shape[:8])}]"
