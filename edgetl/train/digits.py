"""scikit-learn's handwritten digits as an image folder: real data that every installation has.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0): 1797 images of 8 x 8 pixels, 43 writers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 32

# A small network of ordinary convolutions, trained from random weights: its 8 x 8 originals hold little more than 64 pixels show.
DEMO_CONFIG: dict[str, Any] = {
    "backbone": "test_resnet",
    "pretrained": False,
    "strategy": "full",
    "input_size": (48, 48),
    "crop_pct": 1.0,
    "epochs": 12,
    "val": 0.2,
    "test": 0.2,
}


def write_digits(root: Path) -> int:
    """Write the digits as PNG files into ``root/0`` … ``root/9`` and return how many there are."""
    images, labels = load_digits(return_X_y=True)
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(np.round(pixels.reshape(8, 8) * 255 / 16).astype(np.uint8))
        grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.png")
    return len(labels)
