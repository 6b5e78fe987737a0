"""edgetl: ``train`` with its defaults, or with another strategy than ``auto``."""

from __future__ import annotations

from bench.peers.training.job import Job, Trained, run


def train_with(job: Job, strategy: str) -> Trained:
    """Train with a strategy and the default values of all other options."""
    import torch

    from edgetl.core.preprocess import preprocess
    from edgetl.train import TrainConfig
    from edgetl.train import train as fine_tune

    config = TrainConfig.from_options(
        backbone=f"local-dir:{job.weights}", input_size=(job.side, job.side), test=0.0, seed=job.seed, strategy=strategy
    )
    run_ = fine_tune(job.train, config, job.out / "run")
    model, record = run_.load_model(), run_.record

    @torch.inference_mode()
    def predict() -> list[str]:
        scores = [model(torch.from_numpy(preprocess(path, record.preprocess))[None]) for path, _ in job.images(job.test)]
        return [record.labels[int(row.argmax())] for row in scores]

    return Trained(predict, f"strategy {record.plan.strategy}")


def train(job: Job) -> Trained:
    return train_with(job, "auto")


if __name__ == "__main__":
    run(train)
