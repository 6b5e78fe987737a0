"""Configuration of ``edgetl bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from edgetl.core.config import StrictModel
from edgetl.core.options import METAVAR, OPTION, PANEL, option_field, words
from edgetl.errors import ConfigError
from edgetl.measure.latency import MIN_CALLS

Scenario: TypeAlias = Literal["single-stream", "multi-stream", "server", "offline"]
Part: TypeAlias = Literal["whole", "infer"]

_SCENARIOS, _COMPARISON = "Scenarios", "Comparison"
# Options that have no effect without --scenario, and with it.
_ONLY_WITH = ("qps", "min_seconds", "min_queries", "samples_per_query", "loadgen")
_ONLY_WITHOUT = ("runs", "max_seconds")


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
    runs: int = Field(default=int(MIN_CALLS[99]), ge=1, description="Timed images per variant. The 99th percentile needs at least 662.")
    max_seconds: float = Field(default=10.0, gt=0, description="Longest measurement of one variant, seconds.")
    tuning: Path | None = option_field(None, "Result of `edgetl tune`. Only the tuned choice is measured.", metavar="FILE")
    against: str | None = option_field(
        None,
        "Reference: another variant of the bundle, or another bundle. Both are measured in turn, for the ratio of their latencies.",
        panel=_COMPARISON,
        metavar="VARIANT|BUNDLE",
    )
    compare: Path | None = option_field(
        None,
        "Earlier report: output of `edgetl bench --json`. The exit code is 28 if a latency is higher beyond the noise.",
        panel=_COMPARISON,
        metavar="FILE",
    )
    scenarios: Annotated[tuple[Scenario, ...], BeforeValidator(words)] = Field(
        default=(),
        description="MLPerf scenario: single-stream, multi-stream, server or offline. May be repeated.",
        json_schema_extra={OPTION: "scenario", METAVAR: "NAME", PANEL: _SCENARIOS},
    )
    qps: float | None = option_field(
        None,
        "Arrival rate of the server scenario, queries per second. Default: half of the rate that one variant can process.",
        panel=_SCENARIOS,
        gt=0,
    )
    min_seconds: float = option_field(10.0, "Shortest measurement of one scenario, seconds. MLPerf requires 600.", panel=_SCENARIOS, gt=0)
    min_queries: int = option_field(
        1024, "Smallest number of queries of one scenario. The 99.9th percentile needs 6,636.", panel=_SCENARIOS, ge=1
    )
    samples_per_query: int = option_field(8, "Images of a query of the multi-stream scenario.", panel=_SCENARIOS, ge=1, le=64)
    loadgen: bool = option_field(False, "Generate the queries with MLCommons LoadGen.", panel=_SCENARIOS)

    def check(self) -> None:
        """Check the combination of options.

        Raises:
            ConfigError: options exclude each other, or have no effect. The message lists all mistakes.
        """
        given, run = self.model_fields_set, bool(self.scenarios)
        wrong = ", ".join(f"--{name.replace('_', '-')}" for name in (_ONLY_WITHOUT if run else _ONLY_WITH) if name in given)
        remedy = "Use --min-seconds and --min-queries" if run else "Add --scenario"
        rules = (
            (wrong, f"{wrong}: no effect {'with' if run else 'without'} --scenario. {remedy}"),
            (run and "qps" in given and "server" not in self.scenarios, "--qps: no effect without --scenario server"),
            (
                run and "samples_per_query" in given and "multi-stream" not in self.scenarios,
                "--samples-per-query: no effect without --scenario multi-stream",
            ),
            (
                self.tuning is not None and (self.variants or self.threads is not None),
                "--tuning contains the variant and the threads. Leave out --variant and --threads",
            ),
            (
                self.against is not None and len(self.variants) > 1,
                "--against compares one variant with a reference. Give --variant at most once",
            ),
            (
                self.against is not None and (run or self.compare is not None),
                "--against cannot be combined with --scenario or --compare",
            ),
        )
        if found := [text for broken, text in rules if broken]:
            raise ConfigError(f"{'; '.join(found)}.")
