"""Comparison of latencies with an interval: two variants measured in turn, and a report with an earlier one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import open_bundle
from edgetl.core.progress import Progress, silent
from edgetl.core.system.execution import DEFAULT_SETTING, Choice, ExecutionSetting
from edgetl.core.system.host_state import read_host, record_between
from edgetl.errors import ConfigError
from edgetl.measure.config import BenchConfig
from edgetl.measure.latency import CONFIDENCE, SYSTEM_CLOCK, Clock, warm_up
from edgetl.measure.report import Comparison, LatencyReport, Ratio, RatioResult, split_latencies
from edgetl.measure.stages import BenchSubject, bench_subject, invalid_reasons
from edgetl.runtime.engine import choose_variant
from edgetl.runtime.predictor import Predictor

# Relative differences that do not count. In one run: copies of one network in other places of the memory differ by about 1 % (Mytkowicz et
# al., "Producing Wrong Data Without Doing Anything Obviously Wrong!", 2009). Two runs of one file on an idle host differ by up to 5 %.
# The rule that the whole interval must be beyond the noise is that of Criterion.rs (noise_threshold).
NOISE_IN_TURN, NOISE_BETWEEN_RUNS = 0.02, 0.05
# Timed predictions of a block, after one that is not timed: the waiting threads of the previous engine still use the cores.
BLOCK = 5
# Smallest number of rounds with a 99 % interval of the median.
MIN_ROUNDS = 8
# Parts of a run whose medians are drawn again by the bootstrap. Latencies that follow each other depend on each other; these parts hardly.
PARTS, MIN_PART, DRAWS = 20, 5, 4000


def measure_in_turn(path: Path, config: BenchConfig, *, images: Sequence[Path] = (), progress: Progress = silent) -> LatencyReport:
    """Compare the latency of a variant with the reference ``config.against``, measured in turn in one run.

    Args:
        path: folder of the bundle.
        config: reference, variant, threads and limits. By default, the variant is the first with an installed engine. With a tuning, the
            tuned choice is compared with the reference in its default setting.
        images: image files, predicted in turn. By default, the golden images of the bundle.
        progress: called before the measurement.

    Raises:
        ConfigError: the reference is neither a variant nor a bundle.
        EdgetlError: as ``bench_subject``.
    """
    against = config.against
    assert against is not None
    subject = bench_subject(path, config, images=images)
    choice = subject.choices[0]
    reference, other = _reference(subject, choice, against)
    contenders = [(subject, choice), (reference, other), (reference, other)]
    names = [f"{item.variant}{setting_text(item.setting)}" for _, item in contenders]
    reference_name = names[1] if reference is subject else f"{against}: {names[1]}"
    calls = [_call(source.load(item), subject.encoded) for source, item in contenders]
    progress(f"{names[0]} and {reference_name} in turn", 0, 1)
    warmed = [warm_up(call, max_seconds=config.max_seconds / 4) for call in calls]
    before, times = read_host(), time_in_turn(calls, runs=config.runs, max_seconds=config.max_seconds)
    host = record_between(before, read_host())
    control = paired_ratio(f"{names[1]}, two copies", times[:, 2], times[:, 1])
    invalid = [f"two copies of the same variant differ: ratio {control.low:.3f} to {control.high:.3f}"] if control.result != "same" else []
    for (source, item), warm in zip(contenders, warmed, strict=True):
        variant = source.bundle.variant(item.variant)
        invalid += invalid_reasons(host, warm, variant, source.precision(variant))
    comparison = Comparison(
        reference=reference_name,
        ratios=(paired_ratio(f"{names[0]} whole", times[:, 0], times[:, 1]),),
        control=control,
        noise=NOISE_IN_TURN,
        invalid=tuple(dict.fromkeys(invalid)),
    )
    return subject.report().model_copy(update={"comparison": comparison})


def setting_text(setting: ExecutionSetting) -> str:
    """Format a setting after the name of a variant, such as `` (bf16, batch 1)``; empty for the default."""
    return "" if setting == DEFAULT_SETTING else f" ({setting.describe()})"


def _reference(subject: BenchSubject, choice: Choice, against: str) -> tuple[BenchSubject, Choice]:
    """Return the bundle and the choice of the reference, with the threads of ``choice``."""
    names = [variant.name for variant in subject.bundle.manifest.variants]
    if against in names:
        return subject, Choice(variant=choose_variant(subject.bundle, against).name, threads=choice.threads)
    if not Path(against).is_dir():
        raise ConfigError(
            f"--against {against} is neither a variant of {subject.bundle.path} nor the folder of a bundle. "
            f"Give one of {', '.join(names)}, or a folder."
        )
    other = open_bundle(against)
    same = choice.variant if choice.variant in [variant.name for variant in other.manifest.variants] else None
    chosen = Choice(variant=choose_variant(other, same).name, threads=choice.threads)
    return BenchSubject(other, (chosen,), (), subject.encoded, subject.image_source, subject.load_average), chosen


def _call(predictor: Predictor, encoded: Sequence[bytes]) -> Callable[[int], object]:
    return lambda number: predictor.predict(encoded[number % len(encoded)])


def time_in_turn(
    calls: Sequence[Callable[[int], object]], *, runs: int, max_seconds: float, clock: Clock = SYSTEM_CLOCK
) -> NDArray[np.int64]:
    """Time calls in turn. A round has two blocks of each call, in the order A B C C B A, so that a linear drift affects all equally.

    Args:
        calls: calls to compare. They receive the number of the image, and all the same numbers.
        runs: timed runs of each call. There are at least 8 rounds of 10 runs.
        max_seconds: no round is started after this time, except the first 8.
        clock: clock of the measurement.

    Returns:
        times, int64 ``[rounds, calls, 10]``, ns.
    """
    rounds: list[list[list[int]]] = []
    order = [*range(len(calls)), *reversed(range(len(calls)))]
    begin = clock.now_ns()
    while len(rounds) < MIN_ROUNDS or (len(rounds) * 2 * BLOCK < runs and clock.now_ns() - begin < max_seconds * 1e9):
        times: list[list[int]] = [[] for _ in calls]
        for index in order:
            calls[index](len(rounds) * BLOCK)
            for number in range(BLOCK):
                start = clock.now_ns()
                calls[index](len(rounds) * BLOCK + number)
                times[index].append(clock.now_ns() - start)
        rounds.append(times)
    return np.array(rounds, np.int64)


def paired_ratio(name: str, times: NDArray[np.number], reference: NDArray[np.number]) -> Ratio:
    """Return the median ratio of two calls that were timed in turn, with its 99 % interval.

    The interval is that of the sign test: two order statistics of the ratios of the rounds (Conover, "Practical Nonparametric Statistics",
    1999, section 3.2). It assumes no distribution, and one disturbed round does not widen it.

    Args:
        name: name of the ratio.
        times: times of the call, ``[rounds, runs]``, ns. At least 8 rounds.
        reference: times of the reference, in the same form.
    """
    ratios = np.sort(np.median(times, axis=1) / np.median(reference, axis=1))
    below = _outside(len(ratios))
    low, high = float(ratios[below]), float(ratios[-1 - below])
    return _ratio(name, (times, reference), (float(np.median(ratios)), low, high), NOISE_IN_TURN)


def _outside(rounds: int) -> int:
    """Return the largest number of order statistics at each end that a 99 % interval of the median leaves out."""
    total, below = 0, -1
    while 2 * (total := total + math.comb(rounds, below + 1)) <= (1 - CONFIDENCE) * 2**rounds:
        below += 1
    return max(below, 0)


def _ratio(name: str, times: tuple[NDArray[np.number], NDArray[np.number]], interval: tuple[float, float, float], noise: float) -> Ratio:
    ratio, low, high = interval
    result: RatioResult = "slower" if low > 1 + noise else "faster" if high < 1 / (1 + noise) else "same"
    medians = [float(np.median(values)) / 1e6 for values in times]
    return Ratio(name=name, ms=medians[0], reference_ms=medians[1], ratio=ratio, low=low, high=high, result=result)


def compare_reports(report: LatencyReport, earlier: LatencyReport, *, name: str) -> Comparison:
    """Compare a report with an earlier one of the same host.

    The latencies are not measured in turn. A difference counts only if its 99 % interval is beyond 5 %.

    Args:
        report: new report.
        earlier: earlier report.
        name: name of the earlier report, for messages.

    Raises:
        ConfigError: the reports cannot be compared: another CPU, number of threads, or images; or no figure in common.
    """
    for title, new, old in (
        ("CPU", report.host.get("cpu"), earlier.host.get("cpu")),
        ("number of cores", report.host.get("cores"), earlier.host.get("cores")),
        ("number of threads", report.threads, earlier.threads),
        ("source of the images", report.image_source, earlier.image_source),
        ("number of images", report.images, earlier.images),
    ):
        if new != old:
            raise ConfigError(
                f"{name} cannot be compared: the {title} was {old} and is {new}. Measure both with the same options on the same host."
            )
    figures, before = _figures(report), _figures(earlier)
    common = [title for title in figures if title in before]
    enough = [title for title in common if min(len(figures[title]), len(before[title])) >= PARTS * MIN_PART]
    if not enough:
        raise ConfigError(
            f"{name} has no figure in common with this measurement, or fewer than {PARTS * MIN_PART} latencies of each. "
            f"Measure both with the same variants, scenarios and --qps, and with enough --runs."
        )
    invalid = [f"this measurement: {reason}" for reason in report.invalid] + [f"{name}: {reason}" for reason in earlier.invalid]
    return Comparison(
        reference=name,
        ratios=tuple(_ratio_of_runs(title, figures[title], before[title]) for title in enough),
        noise=NOISE_BETWEEN_RUNS,
        missing=tuple(sorted((figures.keys() | before.keys()) - set(enough))),
        invalid=tuple(invalid),
    )


def _figures(report: LatencyReport) -> dict[str, NDArray[np.int64]]:
    """Return the latencies of a report by name, ns. The rate of the server scenario is part of the name."""
    found: dict[str, NDArray[np.int64]] = {}
    for row in report.variants:
        title = f"{row.variant}{setting_text(row.setting)}"
        found |= {f"{title} infer": split_latencies(row.infer_ns), f"{title} whole": split_latencies(row.whole_ns)}
    for item in report.scenarios:
        title = f"{item.variant}{setting_text(item.setting)} {item.scenario} {item.part}"
        rate = "" if item.target_qps is None else f" at {item.target_qps:.1f} queries/s"
        found[title + rate] = split_latencies(item.latencies_ns)
    return found


def _ratio_of_runs(name: str, times: NDArray[np.int64], reference: NDArray[np.int64]) -> Ratio:
    """Return the ratio of the medians of two runs with its 99 % interval, by the bootstrap of the medians of 20 parts of each run."""
    random = np.random.default_rng(0)
    drawn = []
    for values in (times, reference):
        parts = np.array([np.median(part) for part in np.array_split(values, PARTS)])
        drawn.append(np.median(random.choice(parts, (DRAWS, PARTS)), axis=1))
    low, high = np.quantile(drawn[0] / drawn[1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    ratio = float(np.median(times) / np.median(reference))
    return _ratio(name, (times, reference), (ratio, float(low), float(high)), NOISE_BETWEEN_RUNS)
