"""Arguments and output of a training script: it trains on a folder, predicts the test folder, and prints one JSON line."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    Attributes:
        predict: returns a label for each test image.
        settings: settings that the tool used.
    """

    predict: Callable[[], list[str]]
    settings: str


def run(train: Callable[[Job], Trained]) -> None:
    """Run the job of the command line. Times are those of the training with its imports, without the test images."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    values = json.loads(sys.argv[1])
    job = Job(**{key: Path(values[key]) for key in ("train", "test", "weights", "out")}, side=values["side"], seed=values["seed"])
    begin = time.perf_counter()
    trained = train(job)
    spent = {"wall_s": round(time.perf_counter() - begin, 1), "cpu_s": round(_cpu_seconds(), 1)}
    truth = [label for _, label in job.images(job.test)]
    correct = sum(found == label for found, label in zip(trained.predict(), truth, strict=True))
    result = {"accuracy": round(correct / len(truth), 4), "n": len(truth), "settings": trained.settings, **spent}
    print(json.dumps(result), file=replies, flush=True)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its ended children, seconds."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
