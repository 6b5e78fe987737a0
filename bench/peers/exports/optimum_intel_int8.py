"""int8 quantization by optimum-intel: ``OVQuantizer`` with the defaults of ``OVQuantizationConfig``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nncf
import numpy as np
from optimum.intel import OVConfig, OVModelForImageClassification, OVQuantizationConfig, OVQuantizer


def main(folder: str, calibration: str, out: str) -> None:
    batches = [{"pixel_values": batch[None]} for batch in np.load(calibration)]
    quantizer = OVQuantizer.from_pretrained(OVModelForImageClassification.from_pretrained(folder))
    config = OVConfig(quantization_config=OVQuantizationConfig(bits=8, num_samples=len(batches)))
    quantizer.quantize(calibration_dataset=nncf.Dataset(batches), ov_config=config, save_directory=out)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(Path(folder, name), Path(out, name))


if __name__ == "__main__":
    main(*sys.argv[1:])
