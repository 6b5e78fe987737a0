"""Report of ``edgetl bench``: latencies, host, and the validity of the figures."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting
from edgetl.core.system.host_load import HostLoad
from edgetl.core.system.host_state import HostRecord
from edgetl.measure.config import Part, Scenario
from edgetl.measure.file_precision import FilePrecision
from edgetl.measure.latency import Percentile, Percentiles, WarmUp

# Largest report that is read. A million latencies take about 8 MB.
MAX_REPORT_BYTES = 64_000_000
# Latencies in the order of the measurement, ns, separated by spaces. As a JSON list they would take one line each.
Latencies: TypeAlias = Annotated[str, Field(pattern=r"^(\d+( \d+)*)?$")]
RatioResult: TypeAlias = Literal["faster", "same", "slower"]


def join_latencies(values: NDArray[np.int64]) -> str:
    """Return latencies int64 ``[n]``, ns, as text for a report."""
    return " ".join(map(str, values.tolist()))


def split_latencies(text: str) -> NDArray[np.int64]:
    """Return the latencies of a report, int64 ``[n]``, ns."""
    return np.array(text.split(), np.int64)


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
        setting: execution setting.
        precision: precision of the variant's files, read from their weights and operators.
        warm_up: warm-up before the timing.
        host: state of the host before and after the timing.
        invalid: reasons why the latencies are not valid; empty if they are.
        infer_ns: all times for inference, ns, in the order of the measurement, separated by spaces.
        whole_ns: all times from the encoded image to the prediction, in the same form.
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
    setting: ExecutionSetting = DEFAULT_SETTING
    precision: FilePrecision | None = None
    warm_up: WarmUp | None = None
    host: HostRecord | None = None
    invalid: tuple[str, ...] = ()
    infer_ns: Latencies = ""
    whole_ns: Latencies = ""

    @property
    def busy(self) -> bool:
        """True if the host was busy during the timing."""
        return self.load is not None and self.load.busy


class ScenarioReport(StrictModel):
    """Latency and throughput of one variant in one scenario.

    Attributes:
        variant: name of the variant.
        setting: execution setting.
        scenario: MLPerf scenario.
        part: ``whole``: from the encoded image to the prediction. ``infer``: the network alone.
        generator: program that generated the queries: ``edgetl``, or ``loadgen`` for MLCommons LoadGen.
        queries: number of queries.
        samples_per_query: images per query. In the offline scenario: images per batch of the single query.
        seconds: time from the start to the last completed query, seconds.
        images_per_second: throughput.
        target_qps: arrival rate of the server scenario, queries per second.
        mean_ms: mean latency of a query, ms.
        percentiles: percentiles of the latency of a query. In the server scenario the latency counts from the scheduled arrival.
        loadgen_result: result of LoadGen (``VALID``, ``INVALID``); none for edgetl.
        precision: precision of the variant's files, read from their weights and operators.
        warm_up: warm-up before the measurement.
        host: state of the host before and after the measurement.
        invalid: reasons why the result is not valid; empty if it is.
        latencies_ns: latencies of all queries, ns, in the order of the measurement, separated by spaces.
    """

    variant: str
    setting: ExecutionSetting = DEFAULT_SETTING
    scenario: Scenario
    part: Part
    generator: Literal["edgetl", "loadgen"] = "edgetl"
    queries: int
    samples_per_query: int
    seconds: float
    images_per_second: float
    target_qps: float | None = None
    mean_ms: float
    percentiles: tuple[Percentile, ...]
    loadgen_result: str | None = None
    precision: FilePrecision | None = None
    warm_up: WarmUp
    host: HostRecord
    invalid: tuple[str, ...] = ()
    latencies_ns: Latencies


class Ratio(StrictModel):
    """Ratio of two latencies with its 99 % interval.

    Attributes:
        name: variant and figure, such as ``openvino-int8 whole``.
        reference_ms: median latency of the reference, ms.
        ms: median latency, ms.
        ratio: latency divided by that of the reference.
        low: lower bound of the ratio.
        high: upper bound of the ratio.
        result: ``slower`` or ``faster`` if the whole interval is beyond the noise; otherwise ``same``.
    """

    name: str
    reference_ms: float
    ms: float
    ratio: float
    low: float
    high: float
    result: RatioResult


class Comparison(StrictModel):
    """Comparison with the reference: an earlier report, or a variant that was measured in turn.

    Attributes:
        reference: file of the report, or name of the variant.
        ratios: ratio of each figure that both have.
        control: A/A control: ratio of two copies of the same variant in the same measurement. None for reports.
        noise: largest relative difference that does not count.
        missing: figures that only one of the two has.
        invalid: reasons why the comparison is not valid; empty if it is.
    """

    reference: str
    ratios: tuple[Ratio, ...]
    control: Ratio | None = None
    noise: float
    missing: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Ratio, ...]:
        """Ratios that are slower beyond the noise."""
        return tuple(ratio for ratio in self.ratios if ratio.result == "slower")


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
        host: CPU, system, cores, governor, turbo and CPU quota of the host.
        versions: versions of the libraries.
        variants: measured variants, by stage. Empty with ``--scenario`` and ``--against``.
        scenarios: measured scenarios.
        comparison: comparison with the reference of ``--compare`` or ``--against``.
        skipped: names of variants without an installed engine.
        reference_cpu: CPU of the host that exported the bundle.
    """

    schema_version: int = 2
    bundle: str
    created: str
    threads: int
    images: int
    image_source: str
    load_average: float
    host: dict[str, str]
    versions: dict[str, str]
    variants: tuple[VariantReport, ...] = ()
    scenarios: tuple[ScenarioReport, ...] = ()
    comparison: Comparison | None = None
    skipped: tuple[str, ...] = ()
    reference_cpu: str = ""

    @property
    def energy_mj(self) -> dict[str, float]:
        """Energy per image, mJ, by variant and scenario, where the host reports it. With stages, each image is predicted twice."""
        rows = [(row.variant, row.host, 2 * row.whole.n) for row in self.variants]
        rows += [(f"{row.variant} {row.scenario} {row.part}", row.host, row.queries * row.samples_per_query) for row in self.scenarios]
        return {name: 1e3 * host.energy_j / images for name, host, images in rows if host is not None and host.energy_j is not None}

    @property
    def invalid(self) -> tuple[str, ...]:
        """Reasons why figures are not valid, each with the names of its variants; empty if all are valid."""
        found: dict[str, list[str]] = {}
        rows = [(row.variant, row.invalid) for row in self.variants]
        rows += [(f"{row.variant} {row.scenario} {row.part}", row.invalid) for row in self.scenarios]
        for name, reasons in rows:
            for reason in reasons:
                found.setdefault(reason, []).append(name)
        return tuple(f"{', '.join(names)}: {reason}" for reason, names in found.items())
