"""One architecture of the sweep: built, exported by the package's own functions, run in the device's engines, compared with torch."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench.zoo_nets import pictures, randomise, seed_of
from bench.zoo_table import Row, Status, libraries
from edgetl.core.manifest import Format
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.tasks import OutputDecoding
from edgetl.errors import BackboneError
from edgetl.export.convert.metadata import file_metadata
from edgetl.export.convert.to_onnx import to_onnx
from edgetl.export.convert.to_openvino import to_openvino
from edgetl.export.gate.agreement import MAX_FP32_DIFFERENCE, STRICT_BATCHES, compare
from edgetl.runtime.engine import load_engine
from edgetl.train.networks.backbone import find_head, rebuild

Tell = Callable[[str, Row], None]
CLASSES = 20
# The limit must be small beside what tells one picture from another, or a constant would pass.
MIN_VARIATION = 100 * MAX_FP32_DIFFERENCE


class UselessError(Exception):
    """A comparison with this network would say nothing."""


def check(name: str, family: str, parameters: int, sides: tuple[int, ...], tell: Tell) -> Row:
    """Try one architecture; whatever goes wrong stands in the row. ``tell`` hears of each stage before it begins."""
    begin = time.process_time()
    row = Row(architecture=name, family=family, parameters=parameters, made_with=libraries())

    def now(stage: str, **changes: object) -> None:
        nonlocal row
        row = row.model_copy(update={**changes, "seconds": round(time.process_time() - begin, 1)})
        tell(stage, row)

    torch.set_num_threads(1)
    try:
        _try(name, sides, now)
    except UselessError as error:
        now("", cause=str(error))
    except Exception as error:  # noqa: BLE001 (a sweep over other people's code: every failure is a row of the table)
        engine = "openvino" if row.onnx != "not reached" else "onnx"
        now("", **({engine: "failed"} if row.side else {}), cause=f"{row.cause} {type(error).__name__}: {_first_line(error)}".strip())
    return row


def _try(name: str, sides: tuple[int, ...], now: Callable[..., None]) -> None:
    now("building")
    model, side = _build(name, sides)
    images = pictures(max(STRICT_BATCHES), side, seed_of(name))
    trained = _run(model, images)
    if _variation(trained) < MIN_VARIATION:
        model, side = _build(name, (side,), strong=True)
        trained = _run(model, images)
    now("torch", side=side, linear_head=_has_head(model))
    now("torch", variation=_variation(trained))
    insist(model, images, trained)
    spec = PreprocessSpec(input_size=(side, side))
    metadata = file_metadata(spec, OutputDecoding(labels=tuple(str(index) for index in range(CLASSES))), "sweep")
    causes: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "model.onnx", Path(work) / "model.xml"
        now("ONNX export")
        to_onnx(model, spec, source, metadata)
        now("ONNX Runtime")
        status, worst = _compare("onnx", [source], images, trained, causes)
        now("OpenVINO conversion", onnx=status, onnx_difference=worst, cause=" ".join(causes))
        to_openvino(source, target)
        now("OpenVINO")
        status, worst = _compare("openvino", [target, target.with_suffix(".bin")], images, trained, causes)
    if causes:
        causes.append(_own_error(model, images, trained))
    now("", openvino=status, openvino_difference=worst, cause=" ".join(causes))


def _build(name: str, sides: tuple[int, ...], *, strong: bool = False) -> tuple[nn.Module, int]:
    """The network in evaluation mode, and the first side that it takes."""
    for side in sides:
        torch.manual_seed(seed_of(name))
        model = rebuild(name, {}, CLASSES).eval()
        try:
            randomise(model, side, seed_of(name), strong=strong)
        except (RuntimeError, AssertionError, ValueError):
            if side == sides[-1]:
                raise
            continue
        return model, side
    raise AssertionError("an architecture has at least one side")


def _has_head(model: nn.Module) -> bool:
    try:
        find_head(model)
    except BackboneError:
        return False
    return True


def _run(model: nn.Module, images: torch.Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(images).numpy()
    return logits


def _variation(trained: NDArray[np.float32]) -> float:
    """How far the logits of single pictures are from their mean, of the largest logit; 0 where they are not finite."""
    variation = float(np.abs(trained - trained.mean(axis=0)).max() / max(float(np.abs(trained).max()), 1e-12))
    return variation if np.isfinite(variation) else 0.0


def insist(model: nn.Module, images: torch.Tensor, trained: NDArray[np.float32]) -> None:
    """Refuse logits that no difference could be measured against.

    Raises:
        UselessError: they are not finite, do not depend on the picture, or depend on the batch.
    """
    if trained.shape != (len(images), CLASSES) or not np.isfinite(trained).all():
        raise UselessError(f"torch's logits have the shape {trained.shape} or are not finite")
    variation = _variation(trained)
    if variation < MIN_VARIATION:
        raise UselessError(f"torch's logits hardly vary with the picture ({variation:.1e} of the largest)")
    again = compare(trained[:2], _run(model, images[:2])).max_relative_error
    if again > MAX_FP32_DIFFERENCE / 2:
        raise UselessError(f"torch itself answers differently in another batch (by {again:.1e} of the largest logit)")


def _compare(
    format_: Format, files: list[Path], images: torch.Tensor, trained: NDArray[np.float32], causes: list[str]
) -> tuple[Status, float]:
    """Load the files as a device would and compare at every batch size; a cause is added where they differ."""
    engine = load_engine(format_, [path.read_bytes() for path in files], threads=1)
    worst, at = 0.0, 0
    for size in STRICT_BATCHES:
        logits = engine.run(images[:size].numpy())
        if logits.shape != (size, CLASSES):
            causes.append(f"{format_} answers with the shape {list(logits.shape)} at batch {size}.")
            return "differs", 1e9
        difference = compare(trained[:size], logits).max_relative_error
        if not difference <= worst:
            worst, at = difference, size
    if worst <= MAX_FP32_DIFFERENCE:
        return "agrees", worst
    causes.append(f"{format_} differs by {worst:.1e} of the largest logit at batch {at}.")
    return "differs", worst


def _own_error(model: nn.Module, images: torch.Tensor, trained: NDArray[np.float32]) -> str:
    """How far torch's float32 is from its float64: a network that amplifies rounding is told from a wrong export by this."""
    try:
        exact = _run(copy.deepcopy(model).double(), images.double())
    except RuntimeError:
        return "torch cannot run it in float64."
    return f"torch's own float32 differs from float64 by {compare(exact, trained).max_relative_error:.1e}."


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:300]
