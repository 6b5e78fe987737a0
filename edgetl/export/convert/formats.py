"""The names that ``--format`` knows: what edgetl writes, and what others write from it."""

from __future__ import annotations

from typing import get_args

from edgetl.core.manifest import Format
from edgetl.errors import ConfigError

WRITTEN: tuple[Format, ...] = get_args(Format)

# Reserved, so that a bundle with such a variant will never mean something else; and the shortest way there today.
RESERVED = {
    "tflite": "export onnx, then `onnx2tf -i model.onnx`; or give the run's timm network to litert-torch (once ai-edge-torch)",
    "executorch": "torch.export the run's timm network, then executorch.exir.to_edge_transform_and_lower",
    "coreml": "torch.export or trace the run's timm network, then coremltools.convert (coremltools reads no ONNX)",
    "ncnn": "export onnx, then `pnnx model.onnx inputshape=[1,3,H,W]`",
}


def check_formats(text: str) -> tuple[str, ...]:
    """The formats of ``a,b``, if edgetl writes all of them.

    Raises:
        ConfigError: one or more are reserved (a line for each says how to get there), unknown, or none is given.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    reserved = [name for name in names if name in RESERVED]
    unknown = [name for name in names if name not in WRITTEN and name not in RESERVED]
    if unknown or not names:
        raise ConfigError(f"--format {text!r}: {', '.join(unknown) or 'nothing given'} is not possible; it takes {', '.join(WRITTEN)}.")
    if reserved:
        lines = [f"{name}: edgetl does not write it yet; {RESERVED[name]}." for name in reserved]
        loads = 'The network is timm.create_model("local-dir:RUN", pretrained=True).'
        raise ConfigError("\n".join([f"--format {text!r} is not possible.", *lines, loads]))
    return names
