"""edgetl: ``train`` with its defaults. The strategy is ``auto``."""

from __future__ import annotations

from bench.peers.training.job import Job, run


def train_and_predict(job: Job) -> tuple[list[str], str]:
    import torch

    from edgetl.core.preprocess import preprocess
    from edgetl.train import TrainConfig, train

    config = TrainConfig.from_options(backbone=f"local-dir:{job.weights}", input_size=(job.side, job.side), test=0.0, seed=job.seed)
    run_ = train(job.train, config, job.out / "run")
    model = run_.load_model()
    with torch.inference_mode():
        scores = [model(torch.from_numpy(preprocess(path, run_.record.preprocess))[None]) for path, _ in job.images(job.test)]
    labels = run_.record.labels
    return [labels[int(row.argmax())] for row in scores], f"strategy {run_.record.plan.strategy}"


if __name__ == "__main__":
    run(train_and_predict)
