"""edgetl: ``train --strategy partial``, which fine-tunes the last stages after a linear probe."""

from __future__ import annotations

from bench.peers.training.edgetl_auto import train_with
from bench.peers.training.job import Job, Trained, run


def train(job: Job) -> Trained:
    return train_with(job, "partial")


if __name__ == "__main__":
    run(train)
