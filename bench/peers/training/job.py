"""Arguments and output of a training script: it trains on a folder, predicts the test folder, and prints one JSON line."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """Training job. Both folders have one folder per class.

    Attributes:
        train: training images. The tool selects its validation images from them.
        test: test images.
        weights: pretrained network as a folder of timm.
        side: input height and width, pixels.
        seed: seed of the tool.
        out: empty folder for files of the tool.
    """

    train: Path
    test: Path
    weights: Path
    side: int
    seed: int
    out: Path

    def images(self, folder: Path) -> list[tuple[Path, str]]:
        """Return the images of a folder with their labels."""
        return [(path, path.parent.name) for path in sorted(folder.glob("*/*"))]


def run(train_and_predict: Callable[[Job], tuple[list[str], str]]) -> None:
    """Run a job of the command line. The function returns a label for each test image, and a description of the settings."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    values = json.loads(sys.argv[1])
    job = Job(**{key: Path(values[key]) for key in ("train", "test", "weights", "out")}, side=values["side"], seed=values["seed"])
    with _clock() as spent:
        labels, settings = train_and_predict(job)
    truth = [label for _, label in job.images(job.test)]
    correct = sum(found == label for found, label in zip(labels, truth, strict=True))
    print(
        json.dumps({"accuracy": round(correct / len(truth), 4), "n": len(truth), "settings": settings, **spent}), file=replies, flush=True
    )


@contextmanager
def _clock() -> Iterator[dict[str, Any]]:
    """Measure wall and CPU time of the process and its children, seconds. It includes imports inside the call."""
    spent: dict[str, Any] = {}
    begin = time.perf_counter()
    yield spent
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    spent["wall_s"] = round(time.perf_counter() - begin, 1)
    spent["cpu_s"] = round(sum(usage.ru_utime + usage.ru_stime for usage in usages), 1)
