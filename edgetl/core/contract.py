"""Deployment contract: limits on latency, size, memory and accuracy drop, and the measurements of a variant against them."""

from __future__ import annotations

from functools import partial
from typing import Literal

from edgetl.core.config import StrictModel
from edgetl.core.options import option_field
from edgetl.core.results import Attempt
from edgetl.core.system.host_load import HostLoad

ClauseName = Literal["latency", "size", "memory", "drop"]
_OPTIONS: dict[ClauseName, str] = {"latency": "--max-latency-ms", "size": "--max-size-mb", "memory": "--memory-mb", "drop": "--max-drop"}
OutcomeKind = Literal["kept", "passed", "gate", "contract", "threads", "export"]
_RESULTS: dict[OutcomeKind, str] = {
    "kept": "kept",
    "passed": "passed the gate",
    "gate": "rejected by the gate",
    "contract": "rejected by the contract",
    "threads": "fits, not used",
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
    """Clause of a contract: a limit and the measured value.

    Attributes:
        name: ``latency`` (ms), ``size`` (MB), ``memory`` (MB) or ``drop`` (accuracy drop, 0..1).
        limit: limit of the contract.
        found: measured value, in the same unit.
    """

    name: ClauseName
    limit: float
    found: float

    @property
    def kept(self) -> bool:
        """True if the value is within the limit."""
        return self.found <= self.limit + 1e-9

    def describe(self) -> str:
        """Format the clause, such as ``latency 9.10 ms (limit 8 ms, 14 % over)``."""
        unit = _UNITS[self.name]
        found = f"{self.found:.4f}" if self.name == "drop" else f"{self.found:.2f}"
        over = "kept" if self.kept else f"{100 * (self.found / self.limit - 1):.0f} % over" if self.limit > 0 else "over"
        return f"{self.name} {found}{unit} (limit {self.limit:g}{unit}, {over})"

    def remedy(self) -> str:
        """Return the command-line option that would allow the measured value."""
        return f"{_OPTIONS[self.name]} {self.found * 1.02 + (0.0001 if self.name == 'drop' else 0.01):.3g}"


class Offer(StrictModel):
    """Measurement of a variant at a thread count.

    Attributes:
        variant: name of the variant, ``<format>-<precision>``.
        threads: threads of an inference.
        side: height of the network's input, pixels.
        latency_ms: 90th percentile of the latency that the contract limits, ms.
        stages_ms: mean time of decoding, preprocessing and inference, ms.
        size_mb: size of the variant's files, MB (10^6 bytes).
        memory_mb: peak memory of a fresh process at its first prediction, MB (10^6 bytes).
        accuracy: task metric on the validation images (``Evaluation.score``).
        drop: difference between the trained model's task metric, at the input size of the run, and ``accuracy``.
        clauses: limits of the contract with the measured values.
        load: load of the host during the measurement; none if the system does not report it.
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
        """True if the host was busy during the measurement."""
        return self.load is not None and self.load.busy

    @property
    def kept(self) -> bool:
        """True if every clause is kept."""
        return all(clause.kept for clause in self.clauses)

    @property
    def excess(self) -> float:
        """Largest ratio of a value to its limit, without the accuracy drop. At most 1 if all limits are kept."""
        return max(
            (clause.found / clause.limit if clause.limit > 0 else 2.0 for clause in self.clauses if clause.name != "drop"), default=0.0
        )


class Outcome(StrictModel):
    """Outcome of an attempted variant at an input size and a thread count.

    Attributes:
        variant: ``<format>-<precision>``; ``every variant`` if the input size alone exceeds the allowed accuracy drop.
        side: height of the network's input, pixels.
        result: ``kept``: in the bundle. ``passed``: passed the accuracy gate, but no bundle was written. ``gate``: rejected by the gate.
            ``contract``: rejected by a clause. ``threads``: keeps the contract, but the bundle uses another thread count, which fits
            a more accurate or faster variant. ``export``: no
            file could be made.
        reason: clauses that failed, with values and limits, or the reason of the accuracy gate; empty for ``kept`` and ``passed``.
        offer: measurement; none for a variant that was not measured.
        backbone: name of the backbone, if several were tried (``edgetl fit``).
        attempts: attempts of the quantization search, for a variant without a measurement; empty for the others.
    """

    variant: str
    side: int
    result: OutcomeKind
    reason: str
    offer: Offer | None = None
    backbone: str = ""
    attempts: tuple[Attempt, ...] = ()

    @property
    def title(self) -> str:
        """Result as text."""
        return _RESULTS[self.result]


class ContractRecord(StrictModel):
    """Contract of a bundle, with the measurement of its first variant.

    Attributes:
        contract: limits.
        chosen: measurement of the first variant.
        host: machine of the measurement.
        source: ``measured``: latencies were measured on ``host``. ``profile``: they were estimated from the profile of a device.
    """

    contract: Contract
    chosen: Offer
    host: str
    source: Literal["measured", "profile"]
