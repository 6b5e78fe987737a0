"""Network and exported files of Ultralytics: its classification network from the YAML file, with random weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ultralytics import YOLO


def main(images: str, out: str) -> None:
    os.chdir(out)
    YOLO("yolo11n-cls.yaml").save("model.pt")
    YOLO("model.pt").export(format="onnx", imgsz=224, device="cpu", simplify=False)
    YOLO("model.pt").export(format="openvino", imgsz=224, device="cpu")
    YOLO("model.pt").export(format="openvino", imgsz=224, device="cpu", int8=True, data=images)
    assert Path("model_int8_openvino_model").is_dir()


if __name__ == "__main__":
    main(*sys.argv[1:])
