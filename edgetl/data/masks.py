"""Segmentation masks beside photos: few colors, and the name of a photo."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from edgetl.data.colors import Colors
from edgetl.data.integrity import Checked

# Stored without loss, a mask has one color for each kind of object; resized, or stored as JPEG, it has a few main ones.
MOST_COLORS, MOST_MAIN = 32, 8
# The photo of a mask has so many times its colors.
RICHER = 4
_NAME = "masks?|segmentations?|seg|segm|annotations?|ground[-_ ]?truth|gt|trimaps?|mattes?|alpha|labels?|instances?|segmentation[-_ ]?class"
_ENDING = re.compile(rf"(?P<photo>.+?)[-_ .]+(?:{_NAME})(?:[-_ .]?[0-9]+)?", re.IGNORECASE)
_FOLDER = re.compile(rf"(?:.+[-_ .])?(?:{_NAME})(?:[-_ .]?(?:images?|png|[0-9]+))?", re.IGNORECASE)


def find_masks(checked: Mapping[Path, Checked], root: Path) -> set[Path]:
    """The images that are masks of other images below ``root``.

    An image of few colors is a mask if a photo, which has more colors, bears its name: beside it with another suffix (``a.jpg``,
    ``a.png``), beside it without an ending such as ``_mask`` or ``_gt``, or in another folder if its own is called ``masks``,
    ``ground_truth`` or similar.

    Args:
        checked: images below ``root``, decoded.
        root: the data folder, whose own name does not count.
    """
    few = {path: result.colors for path, result in checked.items() if result.colors and _is_flat(result.colors)}
    if not few:
        return set()
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in checked:
        by_stem[path.stem].append(path)
    return {path for path, colors in few.items() if _has_photo(path, colors, checked, by_stem, root)}


def _has_photo(path: Path, colors: Colors, checked: Mapping[Path, Checked], by_stem: Mapping[str, list[Path]], root: Path) -> bool:
    ending = _ENDING.fullmatch(path.stem)
    stems = {path.stem, *([ending["photo"]] if ending else [])}
    own = _mask_folder(path, root)
    for stem in stems:
        for photo in by_stem.get(stem, ()):
            found = checked[photo].colors
            if photo == path or found is None:
                continue
            beside = photo.parent == path.parent
            if own is not None and own not in photo.parents and _mask_folder(photo, root) is None:
                return True
            if beside and stem != path.stem:
                return True
            if beside and colors.plain and _is_richer(found, colors):
                return True
    return False


def _mask_folder(path: Path, root: Path) -> Path | None:
    """The folder of masks that ``path`` lies in."""
    return next(
        (parent for parent in path.parents if parent.is_relative_to(root) and parent != root and _FOLDER.fullmatch(parent.name)), None
    )


def _is_flat(colors: Colors) -> bool:
    return colors.distinct <= MOST_COLORS or colors.main <= MOST_MAIN


def _is_richer(photo: Colors, mask: Colors) -> bool:
    return photo.distinct >= RICHER * mask.distinct or photo.main >= RICHER * mask.main
