"""scikit-learn's handwritten digits as an image folder: real data that every installation has.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0): 1797 images of 8 x 8 pixels, 43 writers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from edgetl.train.config.options import DEFAULT_BACKBONE

SIDE = 32

# The embedded backbone at about twice the images' 32 px, fine-tuned as a whole; digits are not mirrored by default.
DEMO_CONFIG: dict[str, Any] = {
    "backbone": DEFAULT_BACKBONE,
    "strategy": "full",
    "augmented_views": 1,
    "input_size": (64, 64),
    "crop_pct": 1.0,
    "epochs": 12,
    # Every layer at full rate: digits are far from the photographs that the backbone learned on.
    "unfreeze": "1",
    "augment": "light",
    "lr": 3e-3,
    "backbone_lr": 3e-3,
    "lr_decay": 1.0,
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
