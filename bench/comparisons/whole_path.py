"""Latency from JPEG bytes to a label: ``Predictor``, handwritten code with the engine, and Pillow, torchvision and eager torch.

``python -m bench.comparisons.whole_path [--run RUN] [--bundle BUNDLE]``.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
import openvino as ov
import torch
from PIL import Image
from torchvision.transforms import v2

from bench.paths import SHARED
from bench.timing import in_turn
from bench.trashnet import run_and_bundle
from edgetl.core.bundle import open_bundle
from edgetl.core.preprocess import PreprocessSpec
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.run import open_run

ROUNDS = 500
# One thread each. With more, the waiting threads of one engine would use the cores of the next.
THREADS = 1


def main() -> None:
    """Print the medians for two sizes of images."""
    with run_and_bundle("bench.comparisons.whole_path", __doc__) as (run, bundle):
        compare(run, bundle)


def compare(run_path: Path, bundle_path: Path) -> None:
    run, bundle = open_run(run_path), open_bundle(bundle_path)
    trash = [path.read_bytes() for path in sorted((SHARED / "data/trashnet").glob("*/*.jpg"))[::40]]
    camera = [path.read_bytes() for path in sorted((SHARED / "data/bccd/images").glob("*.jpg"))[:60]]
    torch.set_num_threads(THREADS)
    calls = {"torch": _torch(run.load_model(), run.record.preprocess)}
    for variant in bundle.manifest.variants:
        calls[variant.name] = load(bundle, variant=variant.name, threads=THREADS).predict
    calls["onnx-fp32 handwritten"] = _ort_by_hand(bundle.path / "onnx-fp32/1/model.onnx", run.record.preprocess, THREADS)
    calls["openvino-fp32 handwritten"] = _ov_by_hand(bundle.path / "openvino-fp32/1/model.xml", run.record.preprocess, THREADS)
    for name, images in (("trashnet, 341 x 256", trash), ("camera, 640 x 480", camera)):
        times = in_turn(calls, images, rounds=ROUNDS)
        print(f"{name}, {THREADS} thread, median of {ROUNDS} images:")
        for call, milliseconds in times.items():
            print(f"  {call:26} {milliseconds:6.2f} ms   speedup over torch {times['torch'] / milliseconds:5.2f}")
        for engine in ("onnx-fp32", "openvino-fp32"):
            overhead = 100 * (times[engine] / times[engine + " handwritten"] - 1)
            print(f"  {engine}: overhead of Predictor over handwritten code {overhead:+.1f} %")


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
    """Preprocess an upright RGB photograph with a square center crop, like the predictor, in straight-line code.

    The steps are: cut the rows of the crop, resample columns, resample rows, normalize each channel into a buffer.
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side, filter_ = spec.input_size[0], Image.Resampling.BICUBIC
    short = int(side / spec.crop_pct)
    width, height = round(image.width * short / min(image.size)), round(image.height * short / min(image.size))
    left, top, scale = (width - side) // 2, (height - side) // 2, image.height / height
    first, last = max(0, int(top * scale - 3 * scale - 1)), min(image.height, int((top + side) * scale + 3 * scale + 2))
    rows = image.crop((0, first, image.width, last)).resize((width, last - first), filter_).crop((left, 0, left + side, last - first))
    pixels = np.asarray(rows.resize((side, side), filter_, box=(0, top * scale - first, side, (top + side) * scale - first)))
    out = np.empty((1, 3, side, side), np.float32)
    for channel in range(3):
        np.divide(pixels[:, :, channel], np.float32(255), out=out[0, channel])
        out[0, channel] -= np.float32(spec.mean[channel])
        out[0, channel] /= np.float32(spec.std[channel])
    return out


def _top_class(logits: np.ndarray) -> int:
    scores = np.exp(logits - logits.max())
    return int((scores / scores.sum()).argmax())


def _ort_by_hand(path: Path, spec: PreprocessSpec, threads: int):  # type: ignore[no-untyped-def]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda data: _top_class(session.run(None, {"input": _prepare(data, spec)})[0])


def _ov_by_hand(path: Path, spec: PreprocessSpec, threads: int):  # type: ignore[no-untyped-def]
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = ov.compile_model(path, "CPU", hints).create_infer_request()
    return lambda data: _top_class(request.infer([_prepare(data, spec)], share_inputs=True)[0])


if __name__ == "__main__":
    main()
