"""Large and deep images in a scan: 48 megapixels, and more than 8 bits per channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from edgetl.data.folder import scan


def test_a_48_megapixel_photo_is_used(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(2):
            Image.new("L", (8064, 6048) if (label, number) == ("cat", 0) else (40 + number, 30), 90).save(
                tmp_path / label / f"{number}.jpg"
            )
    found = scan(tmp_path)
    assert (found.counts(), found.broken) == ({"cat": 2, "dog": 2}, ())


def test_the_value_range_of_16_bit_images_is_measured_and_cached(tmp_path: Path) -> None:
    for index, label in enumerate(("cat", "dog")):
        (tmp_path / label).mkdir()
        for number in range(2):
            values = np.arange(600, dtype=np.uint16).reshape(20, 30) + np.uint16(100 * index + number)
            Image.fromarray(values if label == "cat" else values.astype(np.uint8)).save(tmp_path / label / f"{number}.png")
    levels = [sample.levels for sample in scan(tmp_path).samples]
    assert levels == [(0, 599), (1, 600), None, None]
    assert [sample.levels for sample in scan(tmp_path).samples] == levels
