"""TIFF limits: reject files that Pillow would decode incorrectly or with much memory, by the tags of the first page."""

from __future__ import annotations

from PIL import TiffImagePlugin

# Pillow's names. Not accepted: old-style JPEG (previews of raw files), ThunderScan, SGI LogLuv, LZMA and WebP. Photos do not use them.
_COMPRESSIONS = frozenset(
    {"raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "tiff_deflate", "packbits", "zstd"}
)
_SUBFILE_TYPE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_HEIGHT, _SUB_PAGES = 254, 262, 322, 323, 330
_REDUCED, _WHITE_IS_ZERO = 1, 0


def check_tiff(image: TiffImagePlugin.TiffImageFile, max_pixels: int) -> None:
    """Check the tags of the first page of a TIFF file.

    Raises:
        ValueError: the page is the preview of a raw photo, its compression is not supported, a tile has more than ``max_pixels`` pixels, or
            zero means white in an image with more than 8 bits.
    """
    tags = image.tag_v2
    if _whole(tags.get(_SUBFILE_TYPE)) & _REDUCED and (image.is_animated or _SUB_PAGES in tags):
        raise ValueError("its first page is a preview of another image, as in raw files of cameras. Convert it to JPEG or PNG")
    compression = image.info.get("compression")
    if compression not in _COMPRESSIONS:
        raise ValueError(f"its compression ({compression}) is not supported. Save it with LZW or Deflate compression")
    # A tile is decoded as a whole, even if it is much larger than the image.
    if _whole(tags.get(_TILE_WIDTH)) * _whole(tags.get(_TILE_HEIGHT)) > max_pixels:
        raise ValueError(f"one of its tiles has more than {max_pixels // 1_000_000} million pixels. Save it in strips")
    if image.mode.startswith("I") and tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO:
        raise ValueError("zero means white (WhiteIsZero) in an image with more than 8 bits. Save it with black as zero")


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
