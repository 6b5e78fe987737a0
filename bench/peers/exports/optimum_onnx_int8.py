"""Static int8 quantization by optimum-onnx: ``ORTQuantizer`` with its configuration for VNNI and min-max calibration."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig


def main(folder: str, calibration: str, out: str) -> None:
    batches = np.load(calibration)
    dataset = Dataset.from_dict({"pixel_values": batches})
    quantizer = ORTQuantizer.from_pretrained(folder, file_name="model.onnx")
    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    Path(out).mkdir(parents=True, exist_ok=True)
    ranges = quantizer.fit(
        dataset,
        AutoCalibrationConfig.minmax(dataset),
        onnx_augmented_model_name=f"{out}/augmented.onnx",
        operators_to_quantize=config.operators_to_quantize,
        batch_size=1,
    )
    quantizer.quantize(config, out, file_suffix=None, calibration_tensors_range=ranges)
    Path(out, "augmented.onnx").unlink(missing_ok=True)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(Path(folder, name), Path(out, name))


if __name__ == "__main__":
    main(*sys.argv[1:])
