"""Latency, cold start, memory and throughput of all contenders in one run.

Each contender is a worker process that waits at its standard input. In a round, all workers run in turn, in the order A B C C B A, for
a few predictions, so that all of them meet the same state of the host. Ratios are computed per round.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.environments import stage, variables
from bench.peers.peers import CONTENDERS, Contender
from bench.peers.results import Results
from edgetl.core.system.host import available_cores, describe_host
from edgetl.core.system.host_load import load_between, read_counters

COLD_STARTS, ROUNDS, BLOCK = 3, 12, 10
THROUGHPUT_ROUNDS, THROUGHPUT_IMAGES = 4, 32
IMAGES = 60
IDLE_SECONDS = 3.0


class WorkerError(Exception):
    """A worker process ended or wrote no reply. The message has the last lines of its standard error."""


@dataclass
class Worker:
    """Worker process of a contender, after its first prediction."""

    process: subprocess.Popen[str]
    errors: Any
    cold_start_s: float = 0.0
    cold_rss_mb: float = 0.0

    def ask(self, **command: object) -> Any:
        """Run a command of ``bench.peers.worker`` and return its result.

        Raises:
            WorkerError: the worker ended.
        """
        assert self.process.stdin is not None
        with suppress(OSError):  # the reply reports why the process ended
            print(json.dumps(command), file=self.process.stdin, flush=True)
        return self.reply()["result"]

    def reply(self) -> Any:
        """Read one reply."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(30)
            self.errors.seek(0)
            raise WorkerError(" | ".join(self.errors.read().strip().splitlines()[-1:]) or f"exit code {self.process.returncode}")
        return json.loads(line)


@contextmanager
def worker(work: Path, contender: Contender, threads: int, image: str) -> Iterator[Worker]:
    """Start a worker, and measure its cold start: from the start of the process to the label of the first image.

    Raises:
        WorkerError: the contender cannot be loaded.
    """
    python = work / "environments" / contender.environment / "bin/python"
    command = [str(python), "-m", "bench.peers.worker", contender.module, contender.precision, str(threads), str(work / "models"), image]
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables(threads), cwd=work / "code"
        )
        try:
            found = Worker(process, errors)
            found.cold_rss_mb = found.reply()["peak_rss_mb"]
            found.cold_start_s = time.perf_counter() - start
            yield found
        finally:
            process.kill()
            process.wait()


def measure_latency(work: Path, results: Results, contenders: Sequence[Contender] = CONTENDERS) -> None:
    """Measure all contenders, and write one row for each when all are measured."""
    stage(work)
    images = [file for file, _ in json.loads((work / "models/test.json").read_text())][:IMAGES]
    rows: dict[str, dict[str, Any]] = {}
    usable = []
    for contender in contenders:
        try:
            with worker(work, contender, 1, images[0]):
                usable.append(contender)  # files and byte code are in the cache of the system after this start
        except (WorkerError, OSError) as error:
            results.add("latency", contender.title, reason=str(error))
            print(f"{contender.title}: cannot be measured: {error}", flush=True)
    problems = other_programs()
    for contender in usable:
        rows[contender.title] = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "host": describe_host()}
    _cold_starts(work, usable, images[0], rows)
    _rounds(work, usable, images, rows)
    _throughput(work, usable, images, rows)
    for precision in ("fp32", "int8"):
        _benchmark_app(work, results, precision)
    problems += other_programs()
    for title, row in rows.items():
        results.add("latency", title, **row, problems=problems)


def other_programs() -> list[str]:
    """Observe the host for a few seconds without a measurement. Return the reasons why latencies are not valid now."""
    before = read_counters()
    time.sleep(IDLE_SECONDS)
    load = load_between(before, read_counters())
    return [load.describe()] if load is not None and load.busy else []


def _cold_starts(work: Path, contenders: Sequence[Contender], image: str, rows: Mapping[str, dict[str, Any]]) -> None:
    for _, contender in _in_turn(contenders, COLD_STARTS):
        with worker(work, contender, 1, image) as started:
            row = rows[contender.title]
            row.setdefault("cold_start_s", []).append(round(started.cold_start_s, 4))
            row.setdefault("cold_rss_mb", []).append(round(started.cold_rss_mb, 1))
    print("cold starts measured", flush=True)


def _rounds(work: Path, contenders: Sequence[Contender], images: list[str], rows: Mapping[str, dict[str, Any]]) -> None:
    """Measure the latency with one thread: from JPEG bytes, and of the network alone."""
    with ExitStack() as stack:
        workers = {item.title: stack.enter_context(worker(work, item, 1, images[0])) for item in contenders}
        for each in workers.values():
            each.ask(do="images", files=images)
            each.ask(do="latency", n=BLOCK)
            each.ask(do="network", n=BLOCK)
        for number, contender in _in_turn(contenders, ROUNDS):
            row = rows[contender.title]
            for part in ("latency", "network"):
                times = workers[contender.title].ask(do=part, n=BLOCK, first=number * BLOCK)
                row.setdefault(f"{part}_ms", []).append(times)
    print("latencies measured", flush=True)


def _throughput(work: Path, contenders: Sequence[Contender], images: list[str], rows: Mapping[str, dict[str, Any]]) -> None:
    """Measure images per second with all cores, in batches."""
    with ExitStack() as stack:
        workers = {item.title: stack.enter_context(worker(work, item, available_cores(), images[0])) for item in contenders}
        for each in workers.values():
            each.ask(do="images", files=images)
            each.ask(do="throughput", n=16)
        for _, contender in _in_turn(contenders, THROUGHPUT_ROUNDS):
            rate = workers[contender.title].ask(do="throughput", n=THROUGHPUT_IMAGES)
            rows[contender.title].setdefault("images_per_s", []).append(round(rate, 2))
    print("throughput measured", flush=True)


def _benchmark_app(work: Path, results: Results, precision: str) -> None:
    """Run ``benchmark_app`` of OpenVINO with one thread and synchronous requests. Write the median of its medians."""
    folder = work / "environments/openvino/bin"
    if not (folder / "benchmark_app").is_file():
        return
    options = ["-m", str(work / f"models/openvino/{precision}.xml"), "-api", "sync", "-niter", "200", "-infer_precision", "f32"]
    # One stream is what the latency hint selects; benchmark_app does not accept a number of threads beside a hint.
    options += ["-hint", "none", "-nstreams", "1", "-nthreads", "1", "-data_shape", "[1,3,224,224]"]
    found = []
    for _ in range(3):
        command = [str(folder / "python"), str(folder / "benchmark_app"), *options]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables(1), cwd=work / "code")
        median = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
        if median is None:
            results.add("benchmark_app", f"benchmark_app, {precision}", reason=(done.stdout + done.stderr).strip().splitlines()[-1])
            return
        found.append(float(median[1]))
    results.add("benchmark_app", f"benchmark_app, {precision}", median_ms=float(np.median(found)))


def _in_turn(contenders: Sequence[Contender], rounds: int) -> Iterator[tuple[int, Contender]]:
    """Iterate over the contenders ``rounds`` times, forwards and backwards in alternation."""
    for number in range(rounds):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            yield number, contender


def measure_accuracy(work: Path, results: Results, contenders: Sequence[Contender] = CONTENDERS) -> None:
    """Predict the test images with each contender through its whole path, and write one row for each."""
    stage(work)
    test = json.loads((work / "models/test.json").read_text())
    for contender in contenders:
        if ("accuracy", contender.title) in results:
            continue
        try:
            with worker(work, contender, available_cores(), test[0][0]) as started:
                started.ask(do="images", files=[file for file, _ in test])
                labels = started.ask(do="labels")
        except (WorkerError, OSError) as error:
            results.add("accuracy", contender.title, reason=str(error))
            continue
        correct = np.array([found == label for found, (_, label) in zip(labels, test, strict=True)])
        results.add("accuracy", contender.title, accuracy=round(float(correct.mean()), 4), n=len(test))
        print(f"{contender.title}: accuracy {correct.mean():.4f}", flush=True)
