"""AutoGluon: ``MultiModalPredictor`` with the ``timm_image`` model. Learning rate and batch size suit the network."""

from __future__ import annotations

import json

from bench.peers.training.job import Job, Trained, run

ARCHITECTURE = "mobilenetv2_100_same"
LEARNING_RATE = 1e-3


def train(job: Job) -> Trained:
    import pandas
    from autogluon.multimodal import MultiModalPredictor

    checkpoint = _checkpoint(job)
    table = pandas.DataFrame([(str(path), label) for path, label in job.images(job.train)], columns=["image", "label"])
    predictor = MultiModalPredictor(label="label", problem_type="classification", path=str(job.out / "predictor"), verbosity=1)
    # The defaults, a batch of 128 and a learning rate of 1e-4, are for Transformers and large sets. They take one step per epoch in a set
    # of 60 images: 0.20 accuracy on trashnet with 10 images per class, close to chance.
    batch = 64 if len(table) >= 400 else 16
    settings = {
        "model.names": ["timm_image"],
        "model.timm_image.checkpoint_name": checkpoint,
        "model.timm_image.image_norm": "inception",
        "env.num_gpus": 0,
        "env.num_workers": 0,
        "env.num_workers_inference": 0,
        "env.precision": "32-true",
        "env.batch_size": batch,
        "optim.lr": LEARNING_RATE,
    }
    predictor.fit(train_data=table, hyperparameters=settings, seed=job.seed)

    def predict() -> list[str]:
        files = pandas.DataFrame({"image": [str(path) for path, _ in job.images(job.test)]})
        return [str(label) for label in predictor.predict(files, as_pandas=False)]

    return Trained(predict, f"20 epochs at most, patience 10, batch size {batch}, learning rate {LEARNING_RATE}")


def _checkpoint(job: Job) -> str:
    """Write the pretrained network as a local checkpoint of AutoGluon, without its classifier. Register its padding as an architecture."""
    import timm
    import torch
    from safetensors.torch import load_file
    from timm.models import register_model
    from timm.models.efficientnet import mobilenetv2_100

    def mobilenetv2_100_same(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        model: torch.nn.Module = mobilenetv2_100(pretrained=pretrained, pad_type="same", **kwargs)
        return model

    mobilenetv2_100_same.__module__ = "timm.models.efficientnet"
    register_model(mobilenetv2_100_same)
    assert timm.is_model(ARCHITECTURE)
    config = json.loads((job.weights / "config.json").read_text())
    cfg = {**config["pretrained_cfg"], "input_size": [3, job.side, job.side]}
    folder = job.out / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "architecture": ARCHITECTURE, "pretrained_cfg": cfg}))
    weights = load_file(job.weights / "model.safetensors")
    torch.save({name: value for name, value in weights.items() if not name.startswith("classifier.")}, folder / "pytorch_model.bin")
    return str(folder)


if __name__ == "__main__":
    run(train)
