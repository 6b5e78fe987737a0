"""timm with eager PyTorch: the transform and the network of timm, in inference mode."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import timm
import torch
from PIL import Image

from bench.peers.worker import Setting


class Eager:
    def __init__(self, setting: Setting, *, compile_: bool = False) -> None:
        torch.set_num_threads(setting.threads)
        model = timm.create_model(f"local-dir:{setting.models / 'timm'}", pretrained=True).eval()
        self.transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        self.model: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model) if compile_ else model
        self.labels: list[str] = setting.spec["labels"]

    def predict(self, data: bytes) -> str:
        return self.predict_batch([data])[0]

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[bytes]) -> list[str]:
        batch = torch.stack([self.transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in images])
        return [self.labels[index] for index in self.model(batch).argmax(dim=1).tolist()]

    def network(self, data: bytes) -> Callable[[], object]:
        batch = self.transform(Image.open(io.BytesIO(data)).convert("RGB"))[None]

        @torch.inference_mode()
        def call() -> object:
            return self.model(batch)

        return call


def load(setting: Setting) -> Eager:
    return Eager(setting)
