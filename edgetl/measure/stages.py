"""Latency of the variants of a bundle by stage, one image after another, and a cold start in a fresh process."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.config import read_json
from edgetl.core.images.decode import read_image_file
from edgetl.core.manifest import Variant
from edgetl.core.preprocess import decode_image
from edgetl.core.progress import Progress, silent
from edgetl.core.system.child_process import child_command, child_environment
from edgetl.core.system.execution import Choice, Tuning
from edgetl.core.system.host import load_average, versions
from edgetl.core.system.host_state import HostRecord, describe_cpu, read_host, record_between
from edgetl.errors import ConfigError, EngineError
from edgetl.measure.config import BenchConfig
from edgetl.measure.file_precision import FilePrecision, file_precision
from edgetl.measure.latency import WarmUp, percentiles, warm_up
from edgetl.measure.report import ColdStart, LatencyReport, VariantReport, join_latencies
from edgetl.runtime.engine import default_threads, installed, missing_engine, read_variant
from edgetl.runtime.predictor import Predictor, load_variant

COLD_START_TIMEOUT_S = 120


@dataclass(frozen=True)
class BenchSubject:
    """Bundle, choices and images of a measurement.

    Attributes:
        bundle: opened bundle.
        choices: variants with an installed engine, each with its threads and execution setting.
        skipped: names of the variants without an installed engine.
        encoded: content of the image files.
        image_source: ``files`` or ``golden images``.
        load_average: load average of the host before the measurement.
    """

    bundle: Bundle
    choices: tuple[Choice, ...]
    skipped: tuple[str, ...]
    encoded: list[bytes]
    image_source: str
    load_average: float

    def load(self, choice: Choice) -> Predictor:
        """Load a choice.

        Raises:
            EdgetlError: as ``load_variant``.
        """
        return load_variant(self.bundle, self.bundle.variant(choice.variant), threads=choice.threads, setting=choice.setting)

    def precision(self, variant: Variant) -> FilePrecision:
        """Read the precision of a variant from its files.

        Raises:
            EdgetlError: as ``read_variant`` and ``file_precision``.
        """
        return file_precision(variant.format, read_variant(self.bundle, variant))

    def report(self) -> LatencyReport:
        """Return a report of this host without figures."""
        return LatencyReport(
            bundle=str(self.bundle.path),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            threads=self.choices[0].threads,
            images=len(self.encoded),
            image_source=self.image_source,
            load_average=self.load_average,
            host=describe_cpu(),
            versions=versions(),
            skipped=self.skipped,
            reference_cpu=self.bundle.manifest.host.get("cpu", ""),
        )


def bench_subject(path: Path, config: BenchConfig, *, images: Sequence[Path] = ()) -> BenchSubject:
    """Open the bundle of a measurement. Variants without an installed engine are skipped.

    Args:
        path: folder of the bundle.
        config: variants and threads, or a tuning.
        images: image files, predicted in turn. By default, the golden images of the bundle.

    Raises:
        BundleError: the bundle has no such variant.
        ConfigError: options exclude each other, or the tuning does not apply to the bundle on this host.
        ImageError: an image cannot be read.
        MissingExtraError: no engine for the bundle is installed.
    """
    config.check()
    bundle, before = open_bundle(path), load_average()
    if config.tuning is not None:
        tuning = read_json(config.tuning, Tuning, ConfigError)
        if reason := tuning.outdated(bundle.manifest_sha256):
            raise ConfigError(f"{config.tuning} does not apply to {path} on this host: {reason}. Repeat it with `edgetl tune`.")
        choices = [tuning.chosen]
        skipped: tuple[str, ...] = ()
    else:
        ready, skipped = _loadable(bundle, config.variants)
        threads = config.threads or default_threads(bundle.manifest)
        choices = [Choice(variant=variant.name, threads=threads) for variant in ready]
    encoded = [read_image_file(image) for image in images] or [bundle.read(golden.image) for golden in bundle.manifest.golden]
    return BenchSubject(bundle, tuple(choices), skipped, encoded, "files" if images else "golden images", before)


def measure_bundle(
    path: Path,
    config: BenchConfig | None = None,
    *,
    images: Sequence[Path] = (),
    progress: Progress = silent,
) -> LatencyReport:
    """Measure the latency of the variants of a bundle by stage. Variants without an installed engine are skipped.

    Args:
        path: folder of the bundle.
        config: variants, threads and number of runs. None uses the defaults.
        images: image files, predicted in turn. By default, the golden images of the bundle.
        progress: called before each variant.

    Raises:
        EngineError: a fresh process failed or did not predict in time.
        EdgetlError: as ``bench_subject``.
    """
    config = config or BenchConfig()
    subject = bench_subject(path, config, images=images)
    rows = []
    for done, choice in enumerate(subject.choices):
        progress(f"timing {choice.variant}", done, len(subject.choices))
        rows.append(_measure_choice(subject, choice, config))
    return subject.report().model_copy(update={"variants": tuple(rows)})


def _loadable(bundle: Bundle, names: Sequence[str]) -> tuple[list[Variant], tuple[str, ...]]:
    """Return the variants ``names`` (all if empty) with an installed engine, and the names of the variants without one."""
    chosen = [bundle.variant(name) for name in names] if names else list(bundle.manifest.variants)
    ready = [variant for variant in chosen if installed(variant.format)]
    if not ready:
        raise missing_engine(bundle, chosen[0])
    return ready, tuple(variant.name for variant in chosen if variant not in ready)


def _measure_choice(subject: BenchSubject, choice: Choice, config: BenchConfig) -> VariantReport:
    variant, encoded = subject.bundle.variant(choice.variant), subject.encoded
    cold = measure_cold_start(subject.bundle, choice)
    predictor, precision = subject.load(choice), subject.precision(variant)
    warmed = warm_up(lambda number: predictor.predict(encoded[number % len(encoded)]), max_seconds=config.max_seconds / 2)
    before = read_host()
    times_ns = _time_stages(predictor, encoded, config)
    host = record_between(before, read_host())
    decode, preprocess, infer, whole = (percentiles(column / 1e6) for column in times_ns.T)
    return VariantReport(
        variant=variant.name,
        size_bytes=variant.size_bytes,
        cold=cold,
        decode=decode,
        preprocess=preprocess,
        infer=infer,
        whole=whole,
        reference_ms=variant.median_ms,
        load=host.load,
        setting=choice.setting,
        precision=precision,
        warm_up=warmed,
        host=host,
        invalid=invalid_reasons(host, warmed, variant, precision),
        infer_ns=join_latencies(times_ns[:, 2]),
        whole_ns=join_latencies(times_ns[:, 3]),
    )


def invalid_reasons(host: HostRecord, warmed: WarmUp, variant: Variant, precision: FilePrecision) -> tuple[str, ...]:
    """Return the reasons why the latencies of a variant are not valid; empty if they are."""
    found = list(host.problems())
    if not warmed.stable:
        found.append(f"the latency was not stable after {warmed.seconds:.0f} s of warm-up")
    if precision.precision != variant.precision:
        found.append(f"the manifest states the precision {variant.precision}, but the file has {precision.precision}")
    return tuple(found)


def _time_stages(predictor: Predictor, encoded: list[bytes], config: BenchConfig) -> NDArray[np.int64]:
    """Return times ``[n, 4]``, ns: decode, preprocess, infer, and the complete path of another call on the same image."""
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
        rows.append(np.diff(stamps))
        if time.perf_counter() > end:
            break
    return np.array(rows, np.int64)


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
