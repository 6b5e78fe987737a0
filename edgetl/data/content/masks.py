"""Segmentation masks in image folders: images with few colors and the name of another image."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from edgetl.data.content.colors import Colors
from edgetl.data.content.integrity import Checked

# A lossless mask has one color for each kind of object. A mask that was resized or stored as JPEG has a few main colors.
MOST_COLORS, MOST_MAIN = 32, 8
# Least ratio of an image's number of colors to that of its mask.
RICHER = 4
_NAME = "masks?|segmentations?|seg|segm|annotations?|ground[-_ ]?truth|gt|trimaps?|mattes?|alpha|labels?|instances?|segmentation[-_ ]?class"
_ENDING = re.compile(rf"(?P<photo>.+?)[-_ .]+(?:{_NAME})(?:[-_ .]?[0-9]+)?", re.IGNORECASE)
_FOLDER = re.compile(rf"(?:.+[-_ .])?(?:{_NAME})(?:[-_ .]?(?:images?|png|[0-9]+))?", re.IGNORECASE)


def find_masks(checked: Mapping[Path, Checked], root: Path) -> set[Path]:
    """Find the images that are segmentation masks of other images.

    An image with few colors is a mask if an image with more colors has the same name:

    - in the same folder, with another suffix (``a.jpg`` and ``a.png``);
    - in the same folder, without an ending such as ``_mask`` or ``_gt``;
    - in another folder, if the folder of the mask is called ``masks``, ``ground_truth`` or similar.

    Args:
        checked: decoded images below ``root``.
        root: data folder. Its own name is ignored.
    """
    few = {path: result.colors for path, result in checked.items() if result.colors and _is_flat(result.colors)}
    if not few:
        return set()
    photos: dict[str, list[Path]] = defaultdict(list)
    beside: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path, result in checked.items():
        if result.colors is not None:
            photos[path.stem].append(path)
            beside[path.parent, path.stem].append(path)

    def is_mask(path: Path, colors: Colors) -> bool:
        ending = _ENDING.fullmatch(path.stem)
        stems = [path.stem, ending["photo"]] if ending else [path.stem]
        if ending and beside.get((path.parent, stems[1])):
            return True
        twins = (checked[photo].colors for photo in beside[path.parent, path.stem] if photo != path)
        if colors.plain and any(_is_richer(found, colors) for found in twins if found):
            return True
        own = _mask_folder(path, root)
        if own is None:
            return False
        elsewhere = (photo for stem in stems for photo in photos.get(stem, ()))
        return any(own not in photo.parents and _mask_folder(photo, root) is None for photo in elsewhere)

    return {path for path, colors in few.items() if is_mask(path, colors)}


def _mask_folder(path: Path, root: Path) -> Path | None:
    """Return the folder of masks that contains ``path``, or none."""
    return next(
        (parent for parent in path.parents if parent.is_relative_to(root) and parent != root and _FOLDER.fullmatch(parent.name)), None
    )


def _is_flat(colors: Colors) -> bool:
    return colors.distinct <= MOST_COLORS or colors.main <= MOST_MAIN


def _is_richer(photo: Colors, mask: Colors) -> bool:
    return photo.distinct >= RICHER * mask.distinct or photo.main >= RICHER * mask.main
