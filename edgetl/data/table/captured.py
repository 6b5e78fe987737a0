"""Folder of captured images (``--capture``): ``images/`` and a label table, in the folder of a model or one level above it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetl.core.files.names import printable
from edgetl.errors import DataError

TABLE_NAME, IMAGES_NAME = "labels.csv", "images"


@dataclass(frozen=True)
class Capture:
    """Captured images: folder of the images, and their label table."""

    folder: Path
    table: Path


def find_capture(folder: Path) -> Capture | None:
    """Return the captured images in ``folder``, or in its only subfolder that has some; none if there are none.

    Raises:
        DataError: several models have captured images.
    """
    if not folder.is_dir():
        return None
    found = [path for path in (folder, *sorted(folder.iterdir())) if (path / TABLE_NAME).is_file() and (path / IMAGES_NAME).is_dir()]
    if found and found[0] == folder:
        found = found[:1]
    if len(found) > 1:
        raise DataError(
            f"{printable(folder)} has captured images of {len(found)} models ({', '.join(printable(path.name) for path in found[:5])}). "
            f"Give the folder of one model."
        )
    return Capture(found[0] / IMAGES_NAME, found[0] / TABLE_NAME) if found else None
