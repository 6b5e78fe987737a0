"""From a path, bytes, a PIL image or an array to an upright 8-bit RGB image, within limits.

The rules, the same for training, export, the bench and the device:

========================  =====================================================================================
formats                   JPEG, PNG, WebP and BMP by content, never by extension; the first frame of an animation
EXIF orientation          applied; a damaged EXIF block counts as none
``L``, ``1``              grey, repeated on three channels
``LA``, ``RGBA``, ``P``   alpha is composited over white: the colour behind transparent pixels is arbitrary
``CMYK``, ``YCbCr``       Pillow's conversion
16 bits a pixel           scaled by 255 / 65535 and rounded (Pillow's own ``convert`` clips at 255)
========================  =====================================================================================

ICC profiles are not applied, as in timm and torchvision.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, WebPImagePlugin

from edgetl.core.plain import open_plain
from edgetl.errors import ImageError

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", WebPImagePlugin.WebPImageFile.format, "BMP")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
MAX_PIXELS = 40_000_000
MAX_FILE_BYTES = 64_000_000

# A picture a thousand times longer than wide says nothing after a resize, and would need a huge one.
MAX_ASPECT_RATIO = 1000

_ORIENTATION_TAG = 0x0112
_ORIENTATION_BLOCKS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged files, collected from its own test images and issue tracker.
_DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, EOFError, OverflowError, MemoryError, AttributeError,
    NotImplementedError, RuntimeError, struct.error, zlib.error, UserWarning, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


def load_image(source: ImageInput) -> Image.Image:
    """Decode ``source`` to an upright RGB image.

    Args:
        source: a file's path, an encoded file's bytes, a PIL image of any mode, or a uint8 array ``[H, W]``, ``[H, W, 1]``,
            ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA), 0..255.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError: the file is missing, damaged, of another format, or larger than the limits.
    """
    if isinstance(source, Image.Image):
        return to_upright_rgb(source, "image")
    if isinstance(source, np.ndarray):
        return to_upright_rgb(_from_array(source), "array")
    if isinstance(source, bytes):
        return _decode(source, f"image of {len(source)} bytes")
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return _decode(read_image_file(path), str(path))
    raise ImageError(f"cannot read an image from a {type(source).__name__}; give a path, bytes, a PIL image or a uint8 array.")


def read_image_file(path: Path) -> bytes:
    """The bytes of a regular file of at most ``MAX_FILE_BYTES``.

    Raises:
        ImageError: the file is missing, not a regular file, empty, or too large.
    """
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ImageError(f"{path} has {size} bytes; the limit is {MAX_FILE_BYTES}.")
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}; give the path of one image.") from error
    if not data:
        raise ImageError(f"{path} is empty.")
    return data


def content_hash(image: Image.Image) -> str:
    """SHA-256 (hex) of an upright RGB image's size and pixels: equal for the same picture in two files."""
    digest = hashlib.sha256(struct.pack("<II", *image.size))
    digest.update(image.tobytes())
    return digest.hexdigest()


def to_upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Apply the EXIF orientation and convert to RGB by the rules of this module; ``name`` is used in messages."""
    check_size(image, name)
    try:
        transpose = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
        if transpose is None:
            return rgb
        upright = rgb.transpose(transpose)
        for block in _ORIENTATION_BLOCKS:
            upright.info.pop(block, None)  # or it would be turned again
        return upright
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def check_size(image: Image.Image, name: str) -> None:
    """Refuse an image by its header, before any pixel is decoded.

    Raises:
        ImageError: no pixels, more than ``MAX_PIXELS``, or too narrow.
    """
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}).")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width} x {height} pixels; the limit is {MAX_PIXELS // 1_000_000} million.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"{name} has {width} x {height} pixels; one side may be {MAX_ASPECT_RATIO} times the other at most.")


def _decode(data: bytes, name: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image, name)
            image.load()
            return to_upright_rgb(image, name)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a JPEG, PNG, WebP or BMP image.") from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"an array of {array.dtype} is ambiguous; give uint8 values 0..255 in RGB order, [H, W, 3].")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in array.shape:
        raise ImageError(f"an array of shape {list(array.shape)} is not an image; give [H, W], [H, W, 3] or [H, W, 4].")
    return Image.fromarray(np.ascontiguousarray(array))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DECODE_ERRORS:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 8 bits from 16: the full range maps to the full range; wider integers are clipped.
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range; save the image with 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGB", image.size, (255, 255, 255))
        background.paste(rgba, mask=rgba.getchannel("A"))
        return background
    if image.mode != "RGB":
        return image.convert("RGB")
    # A copy detaches the pixels from the file object that is about to be closed.
    return image.copy() if image.readonly else image
