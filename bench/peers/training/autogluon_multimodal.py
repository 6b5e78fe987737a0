"""AutoGluon: ``MultiModalPredictor`` with the ``timm_image`` model and its default settings."""

from __future__ import annotations

import json

from bench.peers.training.job import Job, run

ARCHITECTURE = "mobilenetv2_100_same"


def train_and_predict(job: Job) -> tuple[list[str], str]:
    import pandas
    from autogluon.multimodal import MultiModalPredictor

    checkpoint = _checkpoint(job)
    table = pandas.DataFrame([(str(path), label) for path, label in job.images(job.train)], columns=["image", "label"])
    predictor = MultiModalPredictor(label="label", problem_type="classification", path=str(job.out / "predictor"), verbosity=1)
    settings = {
        "model.names": ["timm_image"],
        "model.timm_image.checkpoint_name": checkpoint,
        "model.timm_image.image_norm": "inception",
        "env.num_gpus": 0,
        "env.num_workers": 0,
        "env.num_workers_inference": 0,
        "env.precision": "32-true",
    }
    predictor.fit(train_data=table, hyperparameters=settings, seed=job.seed)
    found = predictor.predict(pandas.DataFrame({"image": [str(path) for path, _ in job.images(job.test)]}), as_pandas=False)
    return [str(label) for label in found], "default settings: 20 epochs at most, patience 10"


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
    run(train_and_predict)
