"""From JPEG bytes to a label: ``Predictor``, the same steps by hand around the raw engine, and PIL + torchvision + torch eager."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
import openvino as ov
import torch
from PIL import Image
from torchvision.transforms import v2

from bench.timing import in_turn
from edgetl.core.bundle import open_bundle
from edgetl.core.host import available_cores
from edgetl.core.preprocess import PreprocessSpec
from edgetl.runtime.predictor import load
from edgetl.train.run import open_run

ROUNDS = 500


def main(run_path: Path, bundle_path: Path, shared: Path) -> None:
    run, bundle = open_run(run_path), open_bundle(bundle_path)
    trash = [path.read_bytes() for path in sorted((shared / "data/trashnet").glob("*/*.jpg"))[::40]]
    camera = [path.read_bytes() for path in sorted((shared / "data/bccd/images").glob("*.jpg"))[:60]]
    for threads in (1, available_cores()):
        torch.set_num_threads(threads)
        calls = {"torch": _torch(run.load_model(), run.record.preprocess)}
        for variant in bundle.manifest.variants:
            calls[variant.name] = load(bundle, variant=variant.name, threads=threads).predict
        calls["onnx-fp32 by hand"] = _ort_by_hand(bundle.path / "onnx-fp32/1/model.onnx", run.record.preprocess, threads)
        calls["openvino-fp32 by hand"] = _ov_by_hand(bundle.path / "openvino-fp32/1/model.xml", run.record.preprocess, threads)
        for name, images in (("trashnet, 341 x 256", trash), ("camera, 640 x 480", camera)):
            times = in_turn(calls, images, rounds=ROUNDS)
            print(f"{name}, {threads} thread(s), median of {ROUNDS}:")
            for call, milliseconds in times.items():
                print(f"  {call:22} {milliseconds:6.2f} ms   {times['torch'] / milliseconds:5.2f} x torch")
            for engine in ("onnx-fp32", "openvino-fp32"):
                print(f"  {engine}: Predictor takes {100 * (times[engine] / times[engine + ' by hand'] - 1):+.1f} % over the steps by hand")


def _torch(model: torch.nn.Module, spec: PreprocessSpec):  # type: ignore[no-untyped-def]
    height, width = spec.input_size
    transform = v2.Compose(
        [
            v2.Resize(int(height / spec.crop_pct), interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop((height, width)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(spec.mean), list(spec.std)),
        ]
    )

    def call(data: bytes) -> int:
        with torch.inference_mode():
            scores = model(transform(Image.open(io.BytesIO(data)).convert("RGB"))[None]).softmax(1)
        return int(scores.argmax())

    return call


def _prepare(data: bytes, spec: PreprocessSpec) -> np.ndarray:
    """What a careful engineer writes for a square centre crop: one resize with a box, planes into a buffer."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    height, width = spec.input_size
    scale = min(image.size) * spec.crop_pct / height
    x, y = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + width * scale, y + height * scale)))
    out = np.empty((1, 3, height, width), np.float32)
    for channel in range(3):
        np.multiply(pixels[:, :, channel], np.float32(1 / (255 * spec.std[channel])), out=out[0, channel])
        out[0, channel] -= np.float32(spec.mean[channel] / spec.std[channel])
    return out


def _ort_by_hand(path: Path, spec: PreprocessSpec, threads: int):  # type: ignore[no-untyped-def]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda data: session.run(None, {"input": _prepare(data, spec)})[0].argmax()


def _ov_by_hand(path: Path, spec: PreprocessSpec, threads: int):  # type: ignore[no-untyped-def]
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = ov.compile_model(path, "CPU", hints).create_infer_request()
    return lambda data: request.infer([_prepare(data, spec)], share_inputs=True)[0].argmax()
