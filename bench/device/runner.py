"""Runner: throughput relative to a plain loop over ``Predictor``, and a soak test over a looping folder.

::

    python -m bench.device.runner throughput BUNDLE IMAGES
    python -m bench.device.runner soak BUNDLE IMAGES --minutes 30
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetl.core.system.host import describe_host
from edgetl.device.runner.loop import Runner
from edgetl.device.runner.model import Model
from edgetl.device.runner.sinks.lines import LineSink
from edgetl.device.runner.sources.folder import FolderSource
from edgetl.device.runner.sources.frame import Frame, Frames
from edgetl.device.runner.waiting import Stop
from edgetl.runtime.predictor import Predictor

WARM_UP, FRAMES = 50, 1500


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.device.runner", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("throughput", "soak"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="folder with images")
    parser.add_argument("--minutes", type=float, default=30.0, help="duration of the soak test")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print(describe_host())
    if given.what == "throughput":
        throughput(given.bundle, given.images, given.threads)
    else:
        print(soak(given.bundle, given.images, seconds=60 * given.minutes, threads=given.threads).describe())


class Alternating:
    """Folder source that times the runner and a plain call of the predictor in turn, image by image, in alternating order."""

    def __init__(self, inner: FolderSource, predictor: Predictor) -> None:
        self.name, self.problem = inner.name, inner.problem
        self.dropped = self.missing = 0
        self.runner_s: list[float] = []
        self.plain_s: list[float] = []
        self._inner, self._predictor = inner, predictor

    def frames(self) -> Frames:
        """Yield the frames of the folder. The time until the runner takes the next frame is that of the runner."""
        frames = self._inner.frames()
        path: Path | None = None
        for number in itertools.count():
            if path is not None and number % 2:
                self._plain(path)
            start = time.perf_counter()
            frame = next(frames)
            yield frame
            self.runner_s.append(time.perf_counter() - start)
            assert frame is not None and isinstance(frame.image, Path)
            path = frame.image
            if not number % 2:
                self._plain(path)

    def finish(self, frame: Frame) -> None:
        """Pass the frame to the folder."""
        self._inner.finish(frame)

    def _plain(self, path: Path) -> None:
        start = time.perf_counter()
        self._predictor.predict(path)
        self.plain_s.append(time.perf_counter() - start)


def throughput(bundle: Path, images: Path, threads: int) -> None:
    """Print the time per image of the runner and of a plain loop. Both use one predictor and the same images."""
    stop, model = Stop(), Model(bundle, variant=None, threads=threads)
    with tempfile.TemporaryDirectory() as work:
        folder = FolderSource(images, mode="loop", settle_s=0.0, processed="keep", stop=stop)
        source = Alternating(folder, model.predictor)
        runner = Runner(model, source, [LineSink(Path(work, "out.jsonl"), "jsonl")], stop=stop)
        runner.limit = WARM_UP + FRAMES
        runner.run(flush_s=1.0)
    plain, own = (1000 * float(np.median(times[WARM_UP:])) for times in (source.plain_s, source.runner_s))
    print(f"median of {FRAMES} images, {model.variant}, {threads} thread: plain loop {plain:.3f} ms, runner {own:.3f} ms")
    print(f"throughput of the runner relative to the plain loop: {plain / own:.3f}")


@dataclass(frozen=True)
class Soak:
    """Result of a soak test.

    Attributes:
        frames: accepted frames, by the runner's own count.
        records: received records.
        gaps: records whose number does not follow the number before.
        hours, rss_mb, descriptors: samples: hours since the first one, resident memory, and open file descriptors.
        code: exit code of the runner after SIGTERM.
    """

    frames: int
    records: int
    gaps: int
    hours: tuple[float, ...]
    rss_mb: tuple[float, ...]
    descriptors: tuple[int, ...]
    code: int

    def describe(self) -> str:
        """Format the counts, and the slopes over the last nine tenths of the time."""
        skipped = len(self.hours) // 10
        hours, rss, descriptors = (np.array(values[skipped:]) for values in (self.hours, self.rss_mb, self.descriptors))
        slopes = [float(np.polyfit(hours, values, 1)[0]) for values in (rss, descriptors)]
        return (
            f"{self.frames} accepted frames, {self.records} records, {self.gaps} gaps, exit code {self.code}\n"
            f"resident memory {rss[0]:.1f} -> {rss[-1]:.1f} MB, slope {slopes[0]:+.2f} MB per hour\n"
            f"file descriptors {descriptors[0]:.0f} -> {descriptors[-1]:.0f}, slope {slopes[1]:+.2f} per hour"
        )


def soak(bundle: Path, images: Path, *, seconds: float, threads: int = 1) -> Soak:
    """Run ``edgetl run`` over a looping folder at full speed. Send SIGTERM after ``seconds``."""
    with tempfile.TemporaryDirectory() as work:
        health = Path(work, "health.json")
        options = ["--source", str(images), "--loop", "--top", "1", "--threads", str(threads), "--health", str(health)]
        command = [sys.executable, "-m", "edgetl.cli.app", "run", str(bundle), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        numbers = _numbers(process.stdout)
        samples: list[tuple[float, float, int]] = []
        start = last = time.monotonic()
        records = gaps = 0
        for number in numbers:
            records += 1
            gaps += number != records
            now = time.monotonic()
            if now - last >= 1.0:
                last = now
                samples.append(((now - start) / 3600, *_usage(process.pid)))
            if now - start >= seconds:
                break
        process.send_signal(signal.SIGTERM)
        for number in numbers:
            records += 1
            gaps += number != records
        code = process.wait()
        process.stdout.close()
        accepted = json.loads(health.read_text("utf-8"))["accepted"]
    hours, rss_mb, descriptors = zip(*samples, strict=True)
    return Soak(accepted, records, gaps, hours, rss_mb, descriptors, code)


def _numbers(lines: Iterator[bytes]) -> Iterator[int]:
    """Yield the number of each record: the second part of its id."""
    for line in lines:
        yield int(line.split(b'"', 4)[3].rpartition(b"-")[2])


def _usage(pid: int) -> tuple[float, int]:
    """Return the resident memory, MB (10^6 bytes), and the number of open file descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return kilobytes * 1024 / 1e6, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


if __name__ == "__main__":
    main()
