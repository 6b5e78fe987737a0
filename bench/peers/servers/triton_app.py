"""Triton Inference Server, started by PyTriton, with plain ONNX Runtime: one instance per core, the image as an array of bytes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.peers.inference.onnxruntime_code import load
from bench.peers.worker import Setting


def main(models: str, instances: str, port: str) -> None:
    plain = load(Setting(Path(models), "fp32", 1))

    def infer(requests: list[dict[str, NDArray[np.uint8]]]) -> list[dict[str, NDArray[np.bytes_]]]:
        labels = [plain.predict(request["image"].tobytes()) for request in requests]
        return [{"label": np.array([label.encode()])} for label in labels]

    config = TritonConfig(http_address="127.0.0.1", http_port=int(port), allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="network",
            infer_func=[infer] * int(instances),
            inputs=[Tensor(name="image", dtype=np.uint8, shape=(-1,))],
            outputs=[Tensor(name="label", dtype=bytes, shape=(1,))],
            config=ModelConfig(batching=False),
        )
        triton.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
