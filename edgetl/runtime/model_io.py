"""What a loaded network takes and gives, compared with what its manifest promises."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.core.manifest import Variant
from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import EngineError

FLOAT32, UINT8 = "float32", "uint8"


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        names: of the tensor in the engine.
        kind: of its numbers, ``float32``, ``uint8`` or the engine's own word.
        shape: none for a side that is free; none for the whole where even the number of sides is.
    """

    names: frozenset[str]
    kind: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Ports:
    """All inputs and outputs."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def check_ports(ports: Ports, variant: Variant, spec: PreprocessSpec, labels: int) -> None:
    """Refuse a network that is not the one that the manifest describes.

    Sides that the network leaves free can only be checked after a run, as ``Predictor.logits`` does; the batch must be free.

    Raises:
        EngineError: and every difference.
    """
    kind = UINT8 if variant.input_form == "uint8" else FLOAT32
    problems = _problems("input", ports.inputs, (variant.input, kind, (None, *variant.input_shape(spec))))
    problems += _problems("output", ports.outputs, (variant.output, FLOAT32, (None, labels)))
    if problems:
        raise EngineError(f"the model is not the one that the manifest describes: {'; '.join(problems)}. Nothing was loaded.")


def _problems(title: str, found: tuple[Port, ...], promised: tuple[str, str, tuple[int | None, ...]]) -> list[str]:
    if len(found) != 1:
        return [f"it has {len(found)} {title}s and not one"]
    (port,) = found
    name, kind, wanted = promised
    problems = []
    if name not in port.names:
        problems.append(f"its {title} is called {', '.join(sorted(port.names))[:60]!r} and not {name[:60]!r}")
    if port.kind != kind:
        problems.append(f"its {title} holds {port.kind[:60]} and not {kind}")
    if port.shape is not None and not _fits(port.shape, wanted):
        problems.append(f"its {title} has the shape {_shown(port.shape)} and not {_shown(wanted)}")
    return problems


def _fits(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(side is None or side == other for side, other in zip(shape, wanted, strict=True))


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('free' if side is None else str(side) for side in shape[:8])}]"
