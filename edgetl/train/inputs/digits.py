"""Digits data set: scikit-learn's handwritten digits as an image folder. It needs no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0). 1797 images of 8 x 8 px, 43 writers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from edgetl.train.config.weights_dir import EMBEDDED_BACKBONE

SIDE = 32

# Configuration of `edgetl demo`: the embedded backbone with all layers trained, at twice the images' size of 32 px.
DEMO_CONFIG: dict[str, Any] = {
    "backbone": EMBEDDED_BACKBONE,
    "strategy": "full",
    "augmented_views": 1,
    "input_size": (64, 64),
    "crop_pct": 1.0,
    "epochs": 12,
    # All layers have the full learning rate, because digits differ much from the photographs of the pretraining.
    "unfreeze": "1",
    "augment": "light",
    "lr": 3e-3,
    "backbone_lr": 3e-3,
    "lr_decay": 1.0,
    "val": 0.2,
    "test": 0.2,
}


def write_digits(root: Path) -> int:
    """Write the digits as PNG files into ``root/0`` … ``root/9``, and return their number."""
    images, labels = load_digits(return_X_y=True)
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.round(pixels.reshape(8, 8) * 255 / 16).astype(np.uint8))
        image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.png")
    return len(labels)
