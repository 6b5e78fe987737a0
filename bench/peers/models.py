"""Files of one network for all peers: bundle, timm folder, ONNX and OpenVINO files in fp32 and int8, and the images.

The network is the ImageNet MobileNetV2, fine-tuned on photographs of trashnet at the size of a camera. Each peer quantizes with its own
tool and the same calibration images, which are training images.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from bench.device.tuning import PRETRAINED, camera_images, network
from bench.peers.environments import run_in
from bench.peers.inference.usual_code import prepare
from edgetl.core.system.host import has_int8_dot_product
from edgetl.data.folder import Sample
from edgetl.export.to_hub import share_run
from edgetl.train.artifacts.run import Run

CALIBRATION_IMAGES = 300
LATENCY_IMAGES = 60


class _Batches(CalibrationDataReader):
    def __init__(self, batches: NDArray[np.float32]) -> None:
        self.left = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.left, None)
        return None if batch is None else {"input": batch[None]}


def write_models(work: Path) -> Path:
    """Write the files that are missing in ``work``. Return the folder of the models."""
    models = work / "models"
    if (models / "complete").is_file():
        return models
    shutil.rmtree(models, ignore_errors=True)
    run, bundle = network(camera_images(work / "trashnet-camera"), PRETRAINED, work / "network")
    shutil.copytree(bundle.path, models / "bundle")
    share_run(run.path, models / "timm")
    spec = {"labels": list(run.record.labels), **json.loads(run.record.preprocess.model_dump_json())}
    (models / "spec.json").write_text(json.dumps(spec))
    batches = _write_images(run, models, spec)
    _write_onnx(models, batches)
    _write_openvino(models, batches)
    _write_optimum(models, spec)
    _quantize_in_peers(work, models)
    (models / "complete").touch()
    return models


def _write_images(run: Run, models: Path, spec: dict[str, Any]) -> NDArray[np.float32]:
    """Write the lists of images, and the calibration batch. Return the batch, float32 ``[n, 3, H, W]``."""
    test = list(run.samples("test"))
    random.Random(0).shuffle(test)
    (models / "test.json").write_text(json.dumps([[str(item.path), run.record.labels[_label(item)]] for item in test]))
    chosen = random.Random(0).sample(list(run.samples("train")), CALIBRATION_IMAGES)
    for number, item in enumerate(chosen):
        # Ultralytics calibrates with an image folder that has the parts train and val.
        for part in ("train", "val"):
            target = models / "calibration" / part / run.record.labels[_label(item)] / f"{number:03}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(item.path, target)
    batches = np.concatenate([prepare(Path(item.path).read_bytes(), spec) for item in chosen])
    np.save(models / "calibration.npy", batches)
    return batches


def _label(sample: Sample) -> int:
    assert isinstance(sample.label, int)
    return sample.label


def _write_onnx(models: Path, batches: NDArray[np.float32]) -> None:
    """Quantize with the documented steps of ONNX Runtime: shape inference, then static QDQ with min-max calibration."""
    folder = models / "onnx"
    folder.mkdir()
    shutil.copyfile(models / "bundle/onnx-fp32/1/model.onnx", folder / "fp32.onnx")
    quant_pre_process(folder / "fp32.onnx", folder / "inferred.onnx")
    quantize_static(
        folder / "inferred.onnx",
        folder / "int8.onnx",
        _Batches(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        # The documentation recommends 7-bit weights for CPUs without VNNI.
        reduce_range=not has_int8_dot_product(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _write_openvino(models: Path, batches: NDArray[np.float32]) -> None:
    """Quantize with the documented call of NNCF."""
    folder = models / "openvino"
    folder.mkdir()
    for suffix in ("xml", "bin"):
        shutil.copyfile(models / f"bundle/openvino-fp32/1/model.{suffix}", folder / f"fp32.{suffix}")
    model = ov.Core().read_model(folder / "fp32.xml")
    quantized = nncf.quantize(model, nncf.Dataset([batch[None] for batch in batches]), subset_size=len(batches))
    ov.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)


def _write_optimum(models: Path, spec: dict[str, Any]) -> None:
    """Write the folders that ``from_pretrained`` of Optimum loads. Its own export of timm networks needs the hub."""
    config = {
        "model_type": "mobilenet_v2",
        "architectures": ["MobileNetV2ForImageClassification"],
        "id2label": dict(enumerate(spec["labels"])),
        "label2id": {label: index for index, label in enumerate(spec["labels"])},
    }
    height, width = spec["input_size"]
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(height / spec["crop_pct"])},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": spec["mean"],
        "image_std": spec["std"],
        "do_convert_rgb": True,
    }
    for peer in ("optimum-onnx", "optimum-intel"):
        folder = models / peer / "fp32"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    graph = onnx.load(models / "onnx/fp32.onnx")
    for node in graph.graph.node:
        node.input[:] = ["pixel_values" if name == "input" else name for name in node.input]
    graph.graph.input[0].name = "pixel_values"
    onnx.save(graph, models / "optimum-onnx/fp32/model.onnx")
    model = ov.Core().read_model(models / "openvino/fp32.xml")
    model.inputs[0].set_names({"pixel_values"})
    ov.save_model(model, models / "optimum-intel/fp32/openvino_model.xml", compress_to_fp16=False)


def _quantize_in_peers(work: Path, models: Path) -> None:
    """Run the export of the peers in their environments. A failure leaves the files out, and the contender is listed with the error."""
    calibration = str(models / "calibration.npy")
    (models / "ultralytics").mkdir()
    calls: Sequence[tuple[str, str, list[str]]] = (
        ("optimum-onnx-export", "optimum_onnx_int8", [str(models / "optimum-onnx/fp32"), calibration, str(models / "optimum-onnx/int8")]),
        ("optimum-intel", "optimum_intel_int8", [str(models / "optimum-intel/fp32"), calibration, str(models / "optimum-intel/int8")]),
        ("ultralytics", "ultralytics_files", [str(models / "calibration"), str(models / "ultralytics")]),
    )
    for environment, module, arguments in calls:
        done = run_in(work, environment, [f"bench.peers.exports.{module}", *arguments])
        if done.returncode:
            print(f"{environment}: export failed: {done.stderr[-2000:]}")
