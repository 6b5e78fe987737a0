"""Images of another domain with the same classes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps


def invert(digits: Path, folder: Path, *, per_class: int) -> Path:
    """Write the first inverted images of each class of ``digits`` into class folders: another domain with the same classes."""
    for source in (path for name in sorted(digits.iterdir()) for path in sorted(name.iterdir())[:per_class]):
        place = folder / source.parent.name / source.name
        place.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(Image.open(source).convert("RGB")).save(place)
    return folder
