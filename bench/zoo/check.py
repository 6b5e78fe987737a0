"""Check of one architecture of the export sweep: build, export, run in the device's engines, compare with torch."""

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

from bench.zoo.nets import random_images, randomize, seed_of
from bench.zoo.table import Row, Status, libraries
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

Report = Callable[[str, Row], None]
CLASSES = 20
# Smallest variation of the logits between images. It must be much larger than the limit, or a constant output would pass.
MIN_VARIATION = 100 * MAX_FP32_DIFFERENCE


class UselessError(Exception):
    """Error for a network with outputs that make a comparison meaningless."""


def check(name: str, family: str, parameters: int, sides: tuple[int, ...], report: Report) -> Row:
    """Check one architecture and return its row. Every failure is recorded in the row. ``report`` is called before each stage."""
    begin = time.process_time()
    row = Row(architecture=name, family=family, parameters=parameters, made_with=libraries())

    def now(stage: str, **changes: object) -> None:
        nonlocal row
        row = row.model_copy(update={**changes, "seconds": round(time.process_time() - begin, 1)})
        report(stage, row)

    torch.set_num_threads(1)
    try:
        _try(name, sides, now)
    except UselessError as error:
        now("", cause=str(error))
    except Exception as error:  # noqa: BLE001 (the networks are third-party code, and every failure is a row of the table)
        engine = "openvino" if row.onnx != "not reached" else "onnx"
        now("", **({engine: "failed"} if row.side else {}), cause=f"{row.cause} {type(error).__name__}: {_first_line(error)}".strip())
    return row


def _try(name: str, sides: tuple[int, ...], now: Callable[..., None]) -> None:
    now("building")
    model, side = _build(name, sides)
    images = random_images(max(STRICT_BATCHES), side, seed_of(name))
    trained = _run(model, images)
    if _variation(trained) < MIN_VARIATION:
        model, side = _build(name, (side,), strong=True)
        trained = _run(model, images)
    now("torch", side=side, linear_head=_has_head(model))
    now("torch", variation=_variation(trained))
    check_logits(model, images, trained)
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
    """Return the network in evaluation mode, and the first of ``sides`` that it supports."""
    for side in sides:
        torch.manual_seed(seed_of(name))
        model = rebuild(name, {}, CLASSES).eval()
        try:
            randomize(model, side, seed_of(name), strong=strong)
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
    """Return the largest deviation of the logits from their mean over the images, relative to the largest logit; 0 if not finite."""
    variation = float(np.abs(trained - trained.mean(axis=0)).max() / max(float(np.abs(trained).max()), 1e-12))
    return variation if np.isfinite(variation) else 0.0


def check_logits(model: nn.Module, images: torch.Tensor, trained: NDArray[np.float32]) -> None:
    """Check that the logits of torch allow a comparison.

    Raises:
        UselessError: the logits are not finite, do not depend on the image, or depend on the batch.
    """
    if trained.shape != (len(images), CLASSES) or not np.isfinite(trained).all():
        raise UselessError(f"torch's logits have the shape {trained.shape} or are not finite")
    variation = _variation(trained)
    if variation < MIN_VARIATION:
        raise UselessError(f"torch's logits hardly vary with the image ({variation:.1e} of the largest)")
    again = compare(trained[:2], _run(model, images[:2])).max_relative_error
    if again > MAX_FP32_DIFFERENCE / 2:
        raise UselessError(f"torch's logits depend on the batch (difference {again:.1e} of the largest)")


def _compare(
    format_: Format, files: list[Path], images: torch.Tensor, trained: NDArray[np.float32], causes: list[str]
) -> tuple[Status, float]:
    """Load the files in the device's engine and compare the logits at every batch size. Differences are added to ``causes``."""
    engine = load_engine(format_, [path.read_bytes() for path in files], threads=1)
    worst, at = 0.0, 0
    for size in STRICT_BATCHES:
        logits = engine.run(images[:size].numpy())
        if logits.shape != (size, CLASSES):
            causes.append(f"{format_} returns the shape {list(logits.shape)} at batch {size}.")
            return "differs", 1e9
        difference = compare(trained[:size], logits).max_relative_error
        if not difference <= worst:
            worst, at = difference, size
    if worst <= MAX_FP32_DIFFERENCE:
        return "agrees", worst
    causes.append(f"{format_} differs by {worst:.1e} of the largest logit at batch {at}.")
    return "differs", worst


def _own_error(model: nn.Module, images: torch.Tensor, trained: NDArray[np.float32]) -> str:
    """Describe the difference between torch's float32 and float64. It separates networks that amplify rounding from wrong exports."""
    try:
        exact = _run(copy.deepcopy(model).double(), images.double())
    except RuntimeError:
        return "torch cannot run it in float64."
    return f"torch's own float32 differs from float64 by {compare(exact, trained).max_relative_error:.1e}."


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:300]
