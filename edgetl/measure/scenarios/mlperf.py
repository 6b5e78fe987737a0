"""MLCommons LoadGen as the generator of the queries (``mlcommons-loadgen``, extra ``loadgen``)."""

from __future__ import annotations

import importlib
import json
import re
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import EdgetlError, EngineError, MissingExtraError
from edgetl.measure.config import BenchConfig, Scenario
from edgetl.measure.scenarios.workload import ORDER_SEED, SAMPLE_SEED, SCHEDULE_SEED, Traffic, Workload
from edgetl.runtime.predictor import MAX_BATCH

_LIBRARY = "mlperf_loadgen"
_NAMES: dict[Scenario, str] = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "server": "Server",
    "offline": "Offline",
}
# LoadGen generates its queries before the test. It needs more than the expected number if the predictor is faster than in the warm-up.
_SLACK = 2.0
# LoadGen compares the latencies of the server scenario with a limit. edgetl reports percentiles instead.
_NO_LIMIT_NS = 10**15
_SAMPLE = re.compile(
    rb'"name":"Sample","cat":"default","ph":"b".*?"ts":([0-9.]+),"args":\{"sample_seq":(\d+),"query_seq":(\d+),.*?"complete_ns":(\d+)'
)


def need_loadgen() -> None:
    """Check that LoadGen is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if find_spec(_LIBRARY) is None:
        raise MissingExtraError("mlcommons-loadgen", "loadgen", alternative="Leave out --loadgen to generate the queries with edgetl.")


def run_loadgen(scenario: Scenario, work: Workload, config: BenchConfig, *, expected_ms: float, qps: float | None = None) -> Traffic:
    """Run a scenario with LoadGen. The latencies are those that LoadGen recorded.

    Args:
        scenario: scenario.
        work: system under test.
        config: limits, and images per query of the multi-stream scenario.
        expected_ms: expected time of a query; of a batch in the offline scenario.
        qps: arrival rate of the server scenario, queries per second.

    Raises:
        EngineError: LoadGen recorded no query.
        MissingExtraError: LoadGen is not installed.
        EdgetlError: a prediction failed.
    """
    need_loadgen()
    library = importlib.import_module(_LIBRARY)
    per_query = {"multi-stream": config.samples_per_query, "offline": MAX_BATCH}.get(scenario, 1)
    errors: list[EdgetlError] = []
    system = library.ConstructSUT(_issue(library, work, per_query, errors), lambda: None)
    images = library.ConstructQSL(work.samples, work.samples, lambda _: None, lambda _: None)
    try:
        with tempfile.TemporaryDirectory(prefix="edgetl-loadgen-") as folder:
            logs = library.LogSettings()
            logs.log_output.outdir, logs.enable_trace = folder, True
            library.StartTestWithLogSettings(system, images, _settings(library, scenario, config, expected_ms, qps), logs)
            if errors:
                raise errors[0]
            return _read_logs(Path(folder), scenario, per_query)
    finally:
        library.DestroyQSL(images)
        library.DestroySUT(system)


def _settings(library: Any, scenario: Scenario, config: BenchConfig, expected_ms: float, qps: float | None) -> Any:
    settings = library.TestSettings()
    settings.scenario, settings.mode = getattr(library.TestScenario, _NAMES[scenario]), library.TestMode.PerformanceOnly
    settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed = ORDER_SEED, SAMPLE_SEED, SCHEDULE_SEED
    settings.min_duration_ms, settings.min_query_count = int(config.min_seconds * 1e3), config.min_queries
    expected_ns = max(int(expected_ms * 1e6 / _SLACK), 1000)
    settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = expected_ns
    settings.multi_stream_samples_per_query = config.samples_per_query
    settings.offline_expected_qps = _SLACK * MAX_BATCH * 1e3 / expected_ms
    settings.server_target_latency_ns = _NO_LIMIT_NS
    if qps is not None:
        settings.server_target_qps = qps
    return settings


def _issue(library: Any, work: Workload, per_query: int, errors: list[EdgetlError]) -> Callable[[list[Any]], None]:
    """Return the function that LoadGen calls with the samples of a query. It returns when they are complete.

    A query with several samples processes the images from its first sample on. Their tensors are adjacent and are not copied.
    """

    def issue(samples: list[Any]) -> None:
        for start in range(0, len(samples), per_query):
            batch = samples[start : start + per_query]
            try:
                if not errors:
                    work.run(batch[0].index, len(batch))
            except EdgetlError as error:  # an exception would end the process in LoadGen's C++ code
                errors.append(error)
            library.QuerySamplesComplete([library.QuerySampleResponse(sample.id, 0, 0) for sample in batch])

    return issue


def _read_logs(folder: Path, scenario: Scenario, per_query: int) -> Traffic:
    rows = np.array(
        [
            (float(time) * 1e3, int(sample), int(query), int(done))
            for time, sample, query, done in _SAMPLE.findall((folder / "mlperf_log_trace.json").read_bytes())
        ]
    ).reshape(-1, 4)
    if not len(rows):
        raise EngineError("LoadGen recorded no query. Raise --min-seconds or --min-queries.")
    rows = rows[np.argsort(rows[:, 1])]
    seconds = float((rows[:, 0] + rows[:, 3]).max() - rows[:, 0].min()) / 1e9
    latencies = _latencies(rows, scenario, per_query)
    lines = (folder / "mlperf_log_detail.txt").read_text("utf-8", "replace").splitlines()
    records = [json.loads(line.partition(":::MLLOG ")[2]) for line in lines if '"result_validity"' in line]
    return Traffic(latencies, per_query, seconds, loadgen_result=records[0]["value"] if records else None)


def _latencies(rows: NDArray[np.float64], scenario: Scenario, per_query: int) -> NDArray[np.int64]:
    """Return the latency of each query, ns; of each batch in the offline scenario, whose samples all count from the start."""
    if scenario == "offline":
        ends = np.maximum.reduceat(np.sort(rows[:, 3]), np.arange(0, len(rows), per_query))
        return np.diff(ends, prepend=0.0).astype(np.int64)
    starts = np.flatnonzero(np.diff(rows[:, 2], prepend=-1.0))
    return np.maximum.reduceat(rows[:, 3], starts).astype(np.int64)
