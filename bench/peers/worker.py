"""Worker process of one contender: load a model, predict one image, then run one command per line of standard input.

``python -m bench.peers.worker MODULE PRECISION THREADS MODELS IMAGE``. It runs in the environment of the peer and imports nothing outside
the standard library and that peer. Each reply is one JSON line. A command is a JSON object with ``do``:

- ``images``, ``files``: read these JPEG files, for the next commands;
- ``latency``, ``n``: time ``n`` predictions from JPEG bytes to a label, ms;
- ``network``, ``n``: time ``n`` calls with a ready tensor, ms; null if the peer has no such call;
- ``throughput``, ``n``: images per second of ``n`` images in batches of 16;
- ``labels``: predict all images, without timing.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

BATCH = 16
Command: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Model and settings of a contender.

    Attributes:
        models: folder that ``bench.peers.models`` wrote.
        precision: fp32 or int8.
        threads: threads of the engine.
    """

    models: Path
    precision: str
    threads: int

    @property
    def spec(self) -> dict[str, Any]:
        """Return labels and preprocessing of the network."""
        found: dict[str, Any] = json.loads((self.models / "spec.json").read_text())
        return found


class Contender(Protocol):
    """Loaded model of a peer."""

    def predict(self, data: bytes) -> str:
        """Return the label of a JPEG image."""

    def predict_batch(self, images: Sequence[bytes]) -> list[str]:
        """Return the labels of several JPEG images with the batch call of the peer."""

    def network(self, data: bytes) -> Callable[[], object] | None:
        """Preprocess an image, and return a call of the network alone; None if the peer has no such call."""


def main(module: str, precision: str, threads: str, models: str, image: str) -> None:
    replies = _replies()
    contender = import_module(f"bench.peers.{module}").load(Setting(Path(models), precision, int(threads)))
    label = contender.predict(Path(image).read_bytes())
    print(json.dumps({"label": label, "peak_rss_mb": _peak_mb()}), file=replies, flush=True)
    images = [Path(image).read_bytes()]
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "images":
            images = [Path(file).read_bytes() for file in command["files"]]
        print(json.dumps({"result": _run(contender, command, images), "peak_rss_mb": _peak_mb()}), file=replies, flush=True)


def _replies() -> Any:
    """Reserve standard output for replies. What the libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


def _run(contender: Contender, command: Command, images: Sequence[bytes]) -> object:
    match command["do"]:
        case "latency":
            first = command.get("first", 0)
            return _time(contender.predict, list(islice(cycle(images), first, first + command["n"])))
        case "network":
            call = contender.network(images[0])
            return None if call is None else _time(lambda _: call(), range(command["n"]))
        case "throughput":
            return _throughput(contender, list(islice(cycle(images), command["n"])))
        case "labels":
            return [label for chunk in _batches(images) for label in contender.predict_batch(chunk)]
        case _:
            return None


def _time(call: Callable[[Any], object], items: Sequence[object]) -> list[float]:
    call(items[0])
    gc.collect()
    times = []
    for item in items:
        start = time.perf_counter_ns()
        call(item)
        times.append(round((time.perf_counter_ns() - start) / 1e6, 4))
    return times


def _throughput(contender: Contender, images: Sequence[bytes]) -> float:
    start = time.perf_counter()
    for chunk in _batches(images):
        contender.predict_batch(chunk)
    return len(images) / (time.perf_counter() - start)


def _batches(images: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [images[first : first + BATCH] for first in range(0, len(images), BATCH)]


def _peak_mb() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else float("nan")


if __name__ == "__main__":
    main(*sys.argv[1:])
