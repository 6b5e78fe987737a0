"""Self-test of a release before its activation: load it in a separate process, compute its golden images, measure latency and memory.

The child process has limits on memory and time. A release that crashes or hangs ends only the child.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

import numpy as np

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.config import StrictModel, parse_json
from edgetl.core.files.platforms import peak_memory_bytes
from edgetl.core.manifest import Variant
from edgetl.core.preprocess import Batch
from edgetl.errors import EdgetlError, EngineError, InstallError
from edgetl.runtime.engine import choose_variant, installed
from edgetl.runtime.predictor import load
from edgetl.runtime.trial import limit_process, memory_for, run_child, take_standard_output
from edgetl.runtime.verify import check_golden

_CPU_S, _WALL_S = 120, 300.0
_WARM_UPS, _RUNS, _TIMED_S = 2, 15, 3.0


@dataclass(frozen=True)
class SelfTestLimits:
    """Limits of a self-test.

    Attributes:
        max_latency_ms: median latency of the network for one image, ms; none without a limit.
        memory_bytes: private memory of the process, bytes; none for a limit that depends on the size of the model.
    """

    max_latency_ms: float | None = None
    memory_bytes: int | None = None


class SelfTest(StrictModel):
    """Result of a self-test.

    Attributes:
        variant: tested variant.
        images: number of golden images.
        largest_difference: largest difference of a score from the manifest.
        median_ms: median latency of the network for one image, ms.
        peak_memory_mb: peak resident memory of the process, MB (10^6 bytes).
    """

    variant: str
    images: int
    largest_difference: float
    median_ms: float
    peak_memory_mb: float


class _Job(StrictModel):
    """Job of the child process."""

    folder: str
    manifest_sha256: str
    variant: str
    memory_bytes: int


class _Report(StrictModel):
    """Report of the child process."""

    error: str = ""
    result: SelfTest | None = None


def self_test(bundle: Bundle, limits: SelfTestLimits) -> tuple[SelfTest, tuple[str, ...]]:
    """Test the variants of a bundle in their order, until one passes.

    Args:
        bundle: verified bundle.
        limits: limits of latency and memory.

    Returns:
        the result of the variant that passed, and the failures of the variants before it.

    Raises:
        InstallError: no variant passed. The message has the reason of each variant.
        MissingExtraError: no engine for the bundle is installed.
    """
    choose_variant(bundle, None)
    failures: list[str] = []
    for variant in bundle.manifest.variants:
        if not installed(variant.format):
            continue
        try:
            return _test_variant(bundle, variant, limits), tuple(failures)
        except EngineError as error:
            failures.append(f"{variant.name}: {error}")
    reasons = "\n".join(failures)
    raise InstallError(
        f"release {bundle.manifest.release} failed its self-test, and the active release stays. Export the bundle again, or for another "
        f"CPU.\n{reasons}"
    )


def _test_variant(bundle: Bundle, variant: Variant, limits: SelfTestLimits) -> SelfTest:
    memory = limits.memory_bytes or memory_for(variant.size_bytes)
    job = _Job(folder=str(bundle.path.absolute()), manifest_sha256=bundle.manifest_sha256, variant=variant.name, memory_bytes=memory)
    given = job.model_dump_json().encode() + b"\n"
    report = parse_json(run_child(__name__, run_self_test.__name__, given, wall_s=_WALL_S), _Report, EngineError, name="the report")
    if report.result is None:
        raise EngineError(report.error)
    limit = limits.max_latency_ms
    if limit is not None and report.result.median_ms > limit:
        raise EngineError(f"the median latency is {report.result.median_ms:.2f} ms, and the limit is {limit:g} ms.")
    return report.result


def run_self_test() -> None:
    """Run a self-test in the child process: read a job from the standard input, and write the report to the standard output."""
    report = take_standard_output()
    job = parse_json(sys.stdin.buffer.readline(), _Job, EngineError, name="the job")
    limit_process(job.memory_bytes, cpu_s=_CPU_S, oom_score=1000)
    try:
        done = _Report(result=_test(job))
    except (EdgetlError, MemoryError) as error:
        done = _Report(error=str(error)[:2000] or "too little memory.")
    os.write(report, done.model_dump_json().encode())


def _test(job: _Job) -> SelfTest:
    bundle = open_bundle(job.folder)
    if bundle.manifest_sha256 != job.manifest_sha256:
        raise EngineError("the manifest was changed during the installation.")
    variant = bundle.variant(job.variant)
    predictor = load(bundle, variant=variant.name, gallery=False)
    check = check_golden(bundle, variant, predictor)
    shape = (1, *variant.input_shape(bundle.manifest.preprocess))
    black: Batch = np.zeros(shape, np.uint8) if variant.input_form == "uint8" else np.zeros(shape, np.float32)
    times, begun = list[float](), time.perf_counter()
    while not times or (len(times) < _WARM_UPS + _RUNS and time.perf_counter() - begun < _TIMED_S):
        start = time.perf_counter()
        predictor.logits(black)
        times.append(1000 * (time.perf_counter() - start))
    return SelfTest(
        variant=variant.name,
        images=check.images,
        largest_difference=check.largest_difference,
        median_ms=float(np.median(times[_WARM_UPS:] or times)),
        peak_memory_mb=peak_memory_bytes() / 1e6,
    )
