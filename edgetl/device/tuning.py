"""Tuning: choose the fastest variant, thread count and execution setting of a bundle on this host.

The search has three stages. They bound the memory and the time:

1. Each choice is loaded alone. Its golden scores are compared with the manifest, and these predictions are its first timing.
2. Successive halving: the fastest choices are loaded together and timed in turn, so that a change of the host's speed affects all of them.
   The slower half is dropped, and scaled decoding of the remaining choices is added.
3. Fresh processes measure memory and load time of the fastest choices. Among choices of equal speed, the smaller and simpler one wins.

Successive halving: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from pydantic import Field

from edgetl.core.bundle import Bundle
from edgetl.core.config import StrictModel
from edgetl.core.images.decode import read_image_file
from edgetl.core.manifest import Variant
from edgetl.core.progress import Progress, silent
from edgetl.core.system.execution import Choice, ExecutionSetting, Skipped, Timing, Tuning
from edgetl.core.system.host import available_cores
from edgetl.core.system.host_load import load_between, read_counters
from edgetl.errors import AccuracyGateError, EdgetlError, EngineError, OutOfMemoryError
from edgetl.measure.stages import measure_cold_start
from edgetl.runtime.engine import installed, missing_engine, supported_settings
from edgetl.runtime.predictor import Predictor, load_variant
from edgetl.runtime.verify import check_golden

# Choices that are loaded together. Each may need several times the size of its files.
FINALISTS = 6
# Rounds before the slower half is dropped, and in total. A round times BLOCK predictions of each choice, after one that is not timed: the
# waiting threads of the previous engine still use the cores.
HALVING_ROUNDS, ROUNDS, BLOCK = 4, 12, 5
# Choices whose memory and load time are measured.
COLD_STARTS = 4
# Medians of one choice in two runs on an idle host differ by less than this ratio.
EQUAL = 0.03
# Ratio of the time for the first stage.
FIRST_STAGE = 0.6
# Differences of memory and load time that matter.
MEMORY_STEP_MB, LOAD_STEP_MS = 16.0, 200.0


class TuneConfig(StrictModel):
    """Configuration of a tuning."""

    threads: int | None = Field(
        default=None, ge=1, description="Largest number of CPU threads to time. Default: all cores that this process may use."
    )
    max_seconds: float = Field(default=40.0, gt=0, description="Time limit, seconds. Choices that are not timed by then are listed.")
    force: bool = Field(default=False, description="Store: repeat the tuning even if it applies to this host.")


@dataclass
class _Candidate:
    """Loaded choice with its times, ms."""

    choice: Choice
    predictor: Predictor
    golden_difference: float
    times: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        return float(np.median(self.times))

    def timing(self) -> Timing:
        """Return the timing as it is stored, without memory and load time."""
        return Timing(
            **self.choice.model_dump(),
            whole_ms=round(self.median_ms, 3),
            n=len(self.times),
            golden_difference=self.golden_difference,
        )


@dataclass
class _Search:
    """State of a tuning."""

    bundle: Bundle
    images: list[bytes]
    deadline: float
    timings: list[Timing] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def tune(bundle: Bundle, config: TuneConfig | None = None, *, images: Sequence[Path] = (), progress: Progress = silent) -> Tuning:
    """Time the variants of a bundle with several thread counts and execution settings, and choose the fastest on this host.

    Only settings that the accuracy gate kept at export are timed, and only if the golden scores on this host match the manifest.

    Args:
        bundle: opened bundle.
        config: largest number of threads, and time limit.
        images: image files, predicted in turn. Use images of the device: their size decides whether scaled decoding is faster. By default,
            the golden images of the bundle.
        progress: called before each choice.

    Raises:
        EngineError: no variant reproduces its golden scores on this host.
        ImageError: an image cannot be read.
        IntegrityError: a file does not match the manifest.
        MissingExtraError: no engine for the bundle is installed.
    """
    config, start, before = config or TuneConfig(), time.perf_counter(), read_counters()
    limit = min(config.threads or available_cores(), available_cores())
    encoded = [read_image_file(path) for path in images] or [bundle.read(golden.image) for golden in bundle.manifest.golden]
    search = _Search(bundle, encoded, start + config.max_seconds)
    first = _qualify(search, thread_counts(limit), start + FIRST_STAGE * config.max_seconds, progress)
    progress("timing the fastest choices in turn", 0, 1)
    finalists = _time_in_turn(search, [item.choice for item in first[:FINALISTS]])
    timings, chosen = _choose(search, finalists, progress)
    load = load_between(before, read_counters())
    return Tuning(
        name=bundle.manifest.name,
        manifest_sha256=bundle.manifest_sha256,
        max_threads=limit,
        image_source="files" if images else "golden images",
        images=len(encoded),
        chosen=chosen,
        timings=timings,
        skipped=tuple(search.skipped),
        seconds=round(time.perf_counter() - start, 1),
        busy=load.describe() if load is not None and load.busy else "",
    )


def thread_counts(limit: int) -> list[int]:
    """Return the thread counts to time: ``limit`` and the powers of two below it, in descending order."""
    return [limit, *reversed([2**power for power in range(limit.bit_length()) if 2**power < limit])]


def _qualify(search: _Search, threads: Sequence[int], until: float, progress: Progress) -> list[Timing]:
    """Load each choice alone, check its golden scores, and time it. Return the timings, the fastest first.

    Raises:
        EngineError: no choice passed.
    """
    choices = list(_choices(search, threads))
    failed: set[tuple[str, ExecutionSetting]] = set()
    found: list[Timing] = []
    for done, choice in enumerate(choices):
        progress(f"timing {choice.describe()}", done, len(choices))
        if (choice.variant, choice.setting) in failed:
            continue
        if found and time.perf_counter() > until:
            search.skipped.append(Skipped(variant=choice.variant, setting=choice.setting, reason=_too_late(choice)))
            continue
        candidate = _load(search, choice)
        if candidate is None:
            failed.add((choice.variant, choice.setting))
            continue
        for image in islice(cycle(search.images), BLOCK):
            _time(candidate, image)
        found.append(candidate.timing())
    if not found:
        reasons = "; ".join(f"{item.variant}: {item.reason.rstrip('.')}" for item in search.skipped)
        raise EngineError(f"{search.bundle.path}: no variant can be used on this host. {reasons}. Export the bundle again for this host.")
    search.timings = sorted(found, key=lambda item: item.whole_ms)
    return search.timings


def _choices(search: _Search, threads: Sequence[int]) -> Iterator[Choice]:
    """Yield the choices with full decoding. Variants, settings and combinations that cannot be used are recorded as skipped.

    Raises:
        MissingExtraError: no engine is installed.
    """
    variants = search.bundle.manifest.variants
    if not any(installed(variant.format) for variant in variants):
        raise missing_engine(search.bundle, variants[0])
    for variant in variants:
        if not installed(variant.format):
            search.skipped.append(Skipped(variant=variant.name, reason="its inference engine is not installed"))
            continue
        settings = list(_settings(search, variant))
        yield from (Choice(variant=variant.name, threads=count, setting=item) for item in settings for count in threads)


def _settings(search: _Search, variant: Variant) -> Iterator[ExecutionSetting]:
    """Yield the settings of a variant that the gate kept and this host supports, with full decoding."""
    for item in variant.settings:
        if not item.kept:
            search.skipped.append(
                Skipped(variant=variant.name, setting=item.setting, reason=f"not kept by the accuracy gate: {item.reason}")
            )
    supported = supported_settings(variant.format)
    for setting in variant.kept_settings():
        if setting.decode == "scaled":
            continue
        if setting not in supported:
            reason = "this CPU or the installed engine does not support it"
            search.skipped.append(Skipped(variant=variant.name, setting=setting, reason=reason))
            continue
        if variant.format == "openvino":
            yield setting.model_copy(update={"static_batch": True})
        yield setting


def _too_late(choice: Choice) -> str:
    return f"not timed with {choice.threads} thread(s), because the time limit was reached. Raise --max-seconds"


def _load(search: _Search, choice: Choice) -> _Candidate | None:
    """Load a choice and check its golden scores. If it cannot be used, record it as skipped and return None."""
    variant = search.bundle.variant(choice.variant)
    try:
        predictor = load_variant(search.bundle, variant, threads=choice.threads, setting=choice.setting)
        check = check_golden(search.bundle, variant, predictor)
    except (AccuracyGateError, EngineError, OutOfMemoryError) as error:
        search.skipped.append(Skipped(variant=choice.variant, setting=choice.setting, reason=str(error)))
        return None
    return _Candidate(choice, predictor, check.largest_difference)


def _time(candidate: _Candidate, image: bytes) -> None:
    start = time.perf_counter_ns()
    candidate.predictor.predict(image)
    candidate.times.append((time.perf_counter_ns() - start) / 1e6)


def _time_in_turn(search: _Search, choices: Sequence[Choice]) -> list[_Candidate]:
    """Time choices in turn. After some rounds drop the slower half, and add scaled decoding of the others."""
    candidates = [item for choice in choices if (item := _load(search, choice)) is not None]
    _rounds(search, candidates, HALVING_ROUNDS)
    search.timings = _merged(search.timings, [item.timing() for item in candidates])
    kept = sorted(candidates, key=lambda item: item.median_ms)[: (len(candidates) + 1) // 2]
    candidates.clear()  # releases the memory of the slower half
    scaled = [item.choice.model_copy(update={"setting": item.choice.setting.model_copy(update={"decode": "scaled"})}) for item in kept]
    allowed = [choice for choice in scaled if search.bundle.variant(choice.variant).allows(choice.setting)]
    kept += [item for choice in allowed if (item := _load(search, choice)) is not None]
    _rounds(search, kept, ROUNDS - HALVING_ROUNDS)
    return sorted(kept, key=lambda item: item.median_ms)


def _rounds(search: _Search, candidates: Sequence[_Candidate], rounds: int) -> None:
    """Time blocks of predictions of each choice, in alternating order. The first round is complete even after the time limit."""
    order = list(candidates)
    for candidate in order:
        candidate.times.clear()
    for number in range(rounds):
        if number and time.perf_counter() > search.deadline:
            return
        block = [search.images[(number * BLOCK + index) % len(search.images)] for index in range(BLOCK)]
        order.reverse()
        for candidate in order:
            candidate.predictor.predict(block[-1])
            for image in block:
                _time(candidate, image)


def _merged(timings: Sequence[Timing], better: Sequence[Timing]) -> list[Timing]:
    """Return all timings, the fastest first. Those of ``better`` replace timings of the same choices."""
    found = {item.choice: item for item in [*timings, *better]}
    return sorted(found.values(), key=lambda item: item.whole_ms)


def _choose(search: _Search, finalists: Sequence[_Candidate], progress: Progress) -> tuple[tuple[Timing, ...], Choice]:
    """Measure memory and load time of the fastest choices. Return all timings, and the best of those with equal speed."""
    measured: list[Timing] = []
    for done, candidate in enumerate(finalists[:COLD_STARTS]):
        progress("measuring memory in fresh processes", done, min(len(finalists), COLD_STARTS))
        timing = candidate.timing()
        try:
            cold = measure_cold_start(search.bundle, candidate.choice)
        except EdgetlError as error:
            search.skipped.append(Skipped(variant=timing.variant, setting=timing.setting, reason=str(error)))
            continue
        measured.append(timing.model_copy(update={"peak_rss_mb": round(cold.peak_rss_mb, 1), "load_ms": round(cold.load_ms, 1)}))
    timings = _merged(search.timings, [*(item.timing() for item in finalists), *measured])
    if not measured:
        raise EngineError(f"{search.bundle.path}: no choice predicts in a fresh process. {search.skipped[-1].reason}")
    return tuple(timings), best_of(measured).choice


def best_of(timings: Sequence[Timing]) -> Timing:
    """Return the best of several timings with memory and load time.

    All choices within 3 % of the fastest are equal. Of these, those with the least memory remain, then those with the shortest load time,
    each within a tolerance. The one with the fewest special settings and threads wins.
    """
    fastest = min(item.whole_ms for item in timings)
    equal = [item for item in timings if item.whole_ms <= fastest * (1 + EQUAL)]
    least_mb = min(item.peak_rss_mb or 0.0 for item in equal)
    equal = [item for item in equal if (item.peak_rss_mb or 0.0) <= least_mb + MEMORY_STEP_MB]
    shortest_ms = min(item.load_ms or 0.0 for item in equal)
    equal = [item for item in equal if (item.load_ms or 0.0) <= shortest_ms + LOAD_STEP_MS]
    return min(equal, key=lambda item: (item.setting.changes, item.threads, item.whole_ms))
