"""Latency scenarios of a bundle on this host: single stages, the complete path, and a cold start in a fresh process."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.config import StrictModel
from edgetl.core.images.decode import read_image_file
from edgetl.core.manifest import Variant
from edgetl.core.options import METAVAR, OPTION
from edgetl.core.preprocess import decode_image
from edgetl.core.progress import Progress, silent
from edgetl.core.system.child_process import child_command, child_environment
from edgetl.core.system.execution import Choice
from edgetl.core.system.host import fingerprint, load_average, versions
from edgetl.core.system.host_load import HostLoad, load_between, read_counters
from edgetl.errors import EngineError
from edgetl.measure.latency import MIN_CALLS, Percentiles, percentiles
from edgetl.runtime.engine import default_threads, installed, missing_engine
from edgetl.runtime.predictor import Predictor
from edgetl.runtime.predictor import load as load_bundle

WARM_UP_RUNS = 20
COLD_START_TIMEOUT_S = 120


class BenchConfig(StrictModel):
    """Configuration of a latency measurement."""

    variants: tuple[str, ...] = Field(
        default=(),
        description="Variant to measure, such as openvino-int8. May be repeated. Default: all.",
        json_schema_extra={OPTION: "variant", METAVAR: "NAME"},
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads per inference. Default: as in the contract of the bundle, or all cores."
    )
    runs: int = Field(default=MIN_CALLS[99], ge=1, description="Timed images per variant. The 99th percentile needs at least 662.")
    max_seconds: float = Field(default=10.0, gt=0, description="Longest measurement of one variant, seconds.")


class ColdStart(StrictModel):
    """Cold start: a fresh process, from its start to its first prediction.

    Attributes:
        load_ms: time for opening the bundle, checking the variant's files and loading the engine.
        first_prediction_ms: time from the start of the process to the first prediction.
        peak_rss_mb: peak resident memory up to the first prediction, MB (10^6 bytes).
    """

    load_ms: float
    first_prediction_ms: float
    peak_rss_mb: float


class VariantReport(StrictModel):
    """Latency of one variant. Images are predicted one after another, after a warm-up.

    Attributes:
        variant: name of the variant.
        size_bytes: size of the variant's files.
        cold: cold start.
        decode: time for decoding an image.
        preprocess: time for preprocessing.
        infer: time for inference.
        whole: time from the encoded image to the prediction.
        reference_ms: ``median_ms`` of the variant on the exporting host: inference on one thread.
        load: load of the host during the timing. None if the system does not count it.
    """

    variant: str
    size_bytes: int
    cold: ColdStart
    decode: Percentiles
    preprocess: Percentiles
    infer: Percentiles
    whole: Percentiles
    reference_ms: float | None = None
    load: HostLoad | None = None

    @property
    def busy(self) -> bool:
        """True if the host was busy during the timing."""
        return self.load is not None and self.load.busy


class LatencyReport(StrictModel):
    """Report of ``edgetl bench``: latency of each variant, and the host.

    Attributes:
        schema_version: version of this format.
        bundle: folder of the bundle.
        created: time of the measurement, ISO 8601.
        threads: threads per inference.
        images: number of different images.
        image_source: ``files`` or ``golden images``.
        load_average: load average of the host before the measurement.
        host: CPU, system and cores of the host.
        versions: versions of the libraries.
        variants: measured variants.
        skipped: names of variants without an installed engine.
        reference_cpu: CPU of the host that exported the bundle.
    """

    schema_version: int = 1
    bundle: str
    created: str
    threads: int
    images: int
    image_source: str
    load_average: float
    host: dict[str, str]
    versions: dict[str, str]
    variants: tuple[VariantReport, ...]
    skipped: tuple[str, ...]
    reference_cpu: str = ""


def measure_bundle(
    path: Path, config: BenchConfig | None = None, *, images: Sequence[Path] = (), progress: Progress = silent
) -> LatencyReport:
    """Measure the latency of the variants of a bundle. Variants without an installed engine are skipped.

    Args:
        path: folder of the bundle.
        config: variants, threads and number of runs. None uses the defaults.
        images: image files, predicted in turn. By default, the golden images of the bundle.
        progress: called before each variant.

    Raises:
        BundleError: the bundle has no such variant.
        EngineError: a fresh process failed or did not predict in time.
        ImageError: an image cannot be read.
        MissingExtraError: no engine for the bundle is installed.
    """
    config, bundle = config or BenchConfig(), open_bundle(path)
    ready, skipped = _loadable(bundle, config.variants)
    encoded = [read_image_file(image) for image in images] or [bundle.read(golden.image) for golden in bundle.manifest.golden]
    threads, before = config.threads or default_threads(bundle.manifest), load_average()
    reports = []
    for done, variant in enumerate(ready):
        progress(f"timing {variant.name}", done, len(ready))
        reports.append(_measure_variant(bundle, variant, encoded, threads, config))
    return LatencyReport(
        bundle=str(path),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        threads=threads,
        images=len(encoded),
        image_source="files" if images else "golden images",
        load_average=before,
        host=fingerprint(),
        versions=versions(),
        variants=tuple(reports),
        skipped=skipped,
        reference_cpu=bundle.manifest.host.get("cpu", ""),
    )


def _loadable(bundle: Bundle, names: Sequence[str]) -> tuple[list[Variant], tuple[str, ...]]:
    """Return the variants ``names`` (all if empty) with an installed engine, and the names of the variants without one."""
    chosen = [bundle.variant(name) for name in names] if names else list(bundle.manifest.variants)
    ready = [variant for variant in chosen if installed(variant.format)]
    if not ready:
        raise missing_engine(bundle, chosen[0])
    return ready, tuple(variant.name for variant in chosen if variant not in ready)


def _measure_variant(bundle: Bundle, variant: Variant, encoded: list[bytes], threads: int, config: BenchConfig) -> VariantReport:
    cold = measure_cold_start(bundle, Choice(variant=variant.name, threads=threads))
    predictor = load_bundle(bundle, variant=variant.name, threads=threads)
    for image, _ in zip(cycle(encoded), range(WARM_UP_RUNS), strict=False):
        predictor.predict(image)
    before = read_counters()
    times = _time_stages(predictor, encoded, config)
    load = load_between(before, read_counters())
    decode, preprocess, infer, whole = (percentiles(column) for column in times.T)
    return VariantReport(
        variant=variant.name,
        size_bytes=variant.size_bytes,
        cold=cold,
        decode=decode,
        preprocess=preprocess,
        infer=infer,
        whole=whole,
        reference_ms=variant.median_ms,
        load=load,
    )


def _time_stages(predictor: Predictor, encoded: list[bytes], config: BenchConfig) -> NDArray[np.float64]:
    """Return times ``[n, 4]``, ms: decode, preprocess, infer, and the complete path of another call on the same image."""
    rows = []
    end = time.perf_counter() + config.max_seconds
    for image, _ in zip(cycle(encoded), range(config.runs), strict=False):
        stamps = [time.perf_counter_ns()]
        pixels = decode_image(image, predictor.spec)
        stamps.append(time.perf_counter_ns())
        batch = predictor.prepare(pixels)
        stamps.append(time.perf_counter_ns())
        predictor.logits(batch)
        stamps.append(time.perf_counter_ns())
        predictor.predict(image)
        stamps.append(time.perf_counter_ns())
        rows.append(np.diff(stamps) / 1e6)
        if time.perf_counter() > end:
            break
    return np.array(rows)


def measure_cold_start(bundle: Bundle, choice: Choice) -> ColdStart:
    """Measure a fresh interpreter that loads a variant with its threads and execution setting, and predicts once.

    Raises:
        EngineError: the process failed or did not predict in time.
    """
    image = bundle.path / bundle.manifest.golden[0].image.path
    command = child_command(
        "edgetl.measure.cold_start", "report_cold_start", str(bundle.path), choice.model_dump_json(), str(image), str(time.time())
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COLD_START_TIMEOUT_S, check=True, env=child_environment())
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{choice.variant}: a fresh process did not predict within {COLD_START_TIMEOUT_S} s. "
            f"Repeat on an idle host, or use another variant."
        ) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"{choice.variant}: a fresh process failed with exit code {error.returncode}: {last}") from error
    return ColdStart(**json.loads(done.stdout.splitlines()[-1]))
