"""Ultralytics: ``YOLO("yolo11n-cls.yaml").train`` with its defaults. No weights are downloaded: training starts from random weights."""

from __future__ import annotations

import random
import shutil

from bench.peers.training.job import Job, Trained, run


def train(job: Job) -> Trained:
    from ultralytics import YOLO

    images = job.images(job.train)
    chosen = set(random.Random(job.seed).sample(range(len(images)), len(images) // 5))
    for index, (path, label) in enumerate(images):
        target = job.out / "data" / ("val" if index in chosen else "train") / label / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    model = YOLO("yolo11n-cls.yaml")
    model.train(
        data=str(job.out / "data"), imgsz=job.side, device="cpu", workers=0, seed=job.seed, project=str(job.out), plots=False, verbose=False
    )

    def predict() -> list[str]:
        found = [model(str(path), imgsz=job.side, device="cpu", verbose=False)[0] for path, _ in job.images(job.test)]
        return [result.names[result.probs.top1] for result in found]

    return Trained(predict, "YOLO11n-cls from random weights, 100 epochs at most, patience 100")


if __name__ == "__main__":
    run(train)
