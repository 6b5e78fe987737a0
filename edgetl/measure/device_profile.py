"""Profile of a device: the latencies that ``edgetl bench`` measured there, and estimates from them."""

from __future__ import annotations

import logging
from pathlib import Path

from edgetl.core.config import read_json
from edgetl.core.contract import Contract
from edgetl.core.manifest import Variant
from edgetl.core.system.host import fingerprint
from edgetl.errors import ConfigError
from edgetl.measure.latency import MIN_CALLS, Percentiles
from edgetl.measure.report import MAX_REPORT_BYTES, LatencyReport, VariantReport

_log = logging.getLogger(__name__)


def read_profile(path: Path, contract: Contract) -> LatencyReport:
    """Read the profile of a device, the output of ``edgetl bench --json``.

    Raises:
        ConfigError: the file is not a profile, or it does not match this host or the threads of ``contract``.
    """
    report = read_json(path, LatencyReport, ConfigError, max_bytes=MAX_REPORT_BYTES)
    here = fingerprint()["cpu"]
    if not report.variants or any(row.reference_ms is None for row in report.variants):
        raise ConfigError(
            f"{path} has no reference latency of its variants. Create the profile on the device with this version of edgetl: "
            f"edgetl bench BUNDLE --json."
        )
    if report.reference_cpu != here:
        raise ConfigError(
            f"{path} compares the device with {report.reference_cpu or 'an unknown host'}, but this host is {here}. "
            f"Export a bundle on this host, run `edgetl bench` with it on the device, and pass the new profile."
        )
    if contract.threads is not None and contract.threads != report.threads:
        raise ConfigError(
            f"{path} was measured with {report.threads} thread(s), but --threads is {contract.threads}. Repeat `edgetl bench` on the "
            f"device with --threads {contract.threads}."
        )
    if busy := [row.load for row in report.variants if row.load is not None and row.load.busy]:
        worst = max(busy, key=lambda load: load.total)
        _log.warning(
            "%s was measured on a busy device: %s. Its latencies are too high. Repeat `edgetl bench` on the idle device.",
            path,
            worst.describe(),
        )
    return report


def on_device(row: VariantReport, variant: Variant, device: LatencyReport) -> VariantReport:
    """Estimate a variant's latencies on the device of a profile.

    Decoding and preprocessing are taken from the profile. Inference is scaled by the ratio of device to host for the same variant in the
    profile, or for the first variant of the same format.
    """
    same = [item for item in device.variants if item.variant == row.variant] or [
        item for item in device.variants if item.variant.startswith(variant.format)
    ]
    known = same[0]
    assert known.reference_ms is not None
    infer = _scaled(known.infer, variant.median_ms / known.reference_ms)
    added = [known.decode, known.preprocess, infer]
    whole = _scaled(infer, sum(part.mean_ms for part in added) / infer.mean_ms)
    return row.model_copy(
        update={
            "cold": known.cold,
            "decode": known.decode,
            "preprocess": known.preprocess,
            "infer": infer,
            "whole": whole,
            "load": known.load,
        }
    )


def _scaled(times: Percentiles, factor: float) -> Percentiles:
    values = {name: None if value is None else value * factor for name, value in times.model_dump(exclude={"n"}).items()}
    return Percentiles(n=max(times.n, MIN_CALLS[90]) if times.p90_ms is not None else times.n, **values)  # type: ignore[arg-type]
