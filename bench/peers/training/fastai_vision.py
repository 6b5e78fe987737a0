"""fastai: ``vision_learner`` and ``fine_tune`` with 20 % validation images, as in its vision guide."""

from __future__ import annotations

from bench.peers.training.job import Job, Trained, run


def train(job: Job) -> Trained:
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, set_seed, vision_learner

    set_seed(job.seed)
    images = len(job.images(job.train))
    # The default batch of 64 leaves no complete batch in a small set. Its guides use 1 to 8 epochs.
    batch, epochs = (64, 10) if images >= 400 else (16, 20)
    loaders = ImageDataLoaders.from_folder(
        job.train,
        valid_pct=0.2,
        seed=job.seed,
        item_tfms=Resize(job.side * 3 // 2),
        batch_tfms=aug_transforms(size=job.side),
        bs=batch,
        num_workers=0,
    )
    learner = vision_learner(loaders, f"local-dir:{job.weights}", path=job.out)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)

    def predict() -> list[str]:
        with learner.no_bar(), learner.no_logging():
            scores, _ = learner.get_preds(dl=loaders.test_dl([path for path, _ in job.images(job.test)]))
        return [loaders.vocab[index] for index in scores.argmax(dim=1).tolist()]

    return Trained(predict, f"fine_tune, {epochs} epochs, batch size {batch}")


if __name__ == "__main__":
    run(train)
