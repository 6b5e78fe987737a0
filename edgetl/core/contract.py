"""Deployment contract: limits on latency, size, memory and accuracy drop, and the measurements of a variant against them."""

from __future__ import annotations

from functools import partial
from typing import Literal

from edgetl.core.config import StrictModel
from edgetl.core.options import option_field
from edgetl.core.system.host_load import HostLoad

ClauseName = Literal["latency", "size", "memory", "drop"]
_OPTIONS: dict[ClauseName, str] = {"latency": "--max-latency-ms", "size": "--max-size-mb", "memory": "--memory-mb", "drop": "--max-drop"}
OutcomeKind = Literal["kept", "gate", "contract", "threads", "export"]
_RESULTS: dict[OutcomeKind, str] = {
    "kept": "kept",
    "gate": "rejected by the gate",
    "contract": "rejected by the contract",
    "threads": "kept, with other threads",
    "export": "not exported",
}
_UNITS: dict[ClauseName, str] = {"latency": " ms", "size": " MB", "memory": " MB", "drop": ""}


_limit = partial(option_field, panel="Deployment contract")


class Contract(StrictModel):
    """Limits of a deployment. None means no limit. Latencies are of one image at a time; megabytes are 10^6 bytes."""

    max_latency_ms: float | None = _limit(None, "Limit on the latency of one image, ms (90th percentile).", gt=0)
    latency_of: Literal["whole", "infer"] = _limit(
        "whole", "Latency that --max-latency-ms limits. whole: from the encoded image to the scores. infer: the network only."
    )
    max_size_mb: float | None = _limit(None, "Limit on the size of the files of a variant, MB (10^6 bytes).", gt=0)
    memory_mb: float | None = _limit(None, "Limit on the peak memory of a new process until its first prediction, MB (10^6 bytes).", gt=0)
    threads: int | None = _limit(
        None, "CPU threads per inference under the limits. Default: both one thread and all cores are tried.", ge=1
    )

    @property
    def limited(self) -> bool:
        """True if there is a limit."""
        return (self.max_latency_ms, self.max_size_mb, self.memory_mb) != (None, None, None)


class Clause(StrictModel):
    """Clause of a contract: a limit, and the figure that was measured."""

    name: ClauseName
    limit: float
    found: float

    @property
    def kept(self) -> bool:
        """True if the limit holds."""
        return self.found <= self.limit + 1e-9

    def describe(self) -> str:
        """For instance ``latency 9.10 ms (limit 8 ms, 14 % over)``."""
        unit = _UNITS[self.name]
        found = f"{self.found:.4f}" if self.name == "drop" else f"{self.found:.2f}"
        over = "kept" if self.kept else f"{100 * (self.found / self.limit - 1):.0f} % over" if self.limit > 0 else "over"
        return f"{self.name} {found}{unit} (limit {self.limit:g}{unit}, {over})"

    def remedy(self) -> str:
        """The option that would allow the measured figure."""
        return f"{_OPTIONS[self.name]} {self.found * 1.02 + (0.0001 if self.name == 'drop' else 0.01):.3g}"


class Offer(StrictModel):
    """Measurement of one variant at one thread count.

    Attributes:
        latency_ms: 90th percentile of the latency that the contract limits.
        stages_ms: mean time of decoding, preparing, and inference.
        accuracy: the task's figure on the validation images; ``drop`` is its difference to the trained model's at the run's own input size.
        clauses: every limit that the contract names.
        load: the host's during the timing; none where the system does not count it.
    """

    variant: str
    threads: int
    side: int
    latency_ms: float
    stages_ms: tuple[float, float, float]
    size_mb: float
    memory_mb: float
    accuracy: float
    drop: float
    clauses: tuple[Clause, ...]
    load: HostLoad | None = None

    @property
    def busy(self) -> bool:
        """True if the host was busy during the timing."""
        return self.load is not None and self.load.busy

    @property
    def kept(self) -> bool:
        """True if every clause holds."""
        return all(clause.kept for clause in self.clauses)

    @property
    def excess(self) -> float:
        """Largest ratio of a figure to its limit, the accuracy drop left out; at most 1 where all hold."""
        return max(
            (clause.found / clause.limit if clause.limit > 0 else 2.0 for clause in self.clauses if clause.name != "drop"), default=0.0
        )


class Outcome(StrictModel):
    """Outcome of an attempted variant at one input size and thread count: in the bundle, or rejected with the reason.

    Attributes:
        variant: ``<format>-<precision>``; ``every variant`` where the input size alone exceeds the allowed accuracy drop.
        side: height of the input, pixels.
        result: ``kept``; rejected by the accuracy gate (``gate``) or by a clause (``contract``); ``threads``: it keeps the contract, and
            the bundle runs its variants with another number of threads; ``export``: no file could be made.
        reason: each clause that fails, with figure and limit, or the gate's reason; empty for ``kept``.
        offer: figures; none for a variant that was not timed.
        backbone: where several were tried (``edgetl fit``).
    """

    variant: str
    side: int
    result: OutcomeKind
    reason: str
    offer: Offer | None = None
    backbone: str = ""

    @property
    def title(self) -> str:
        """The result as text."""
        return _RESULTS[self.result]


class ContractRecord(StrictModel):
    """Contract of a bundle, with the measurement of its first variant on the machine ``host``.

    ``source``: latencies measured there, or estimated from the profile of a device.
    """

    contract: Contract
    chosen: Offer
    host: str
    source: Literal["measured", "profile"]
