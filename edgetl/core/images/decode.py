"""From a path, bytes, a PIL image or an array to an upright 8-bit RGB image, within limits.

The rules, the same for training, export, the bench and the device:

========================  =====================================================================================
formats                   JPEG, PNG, WebP, BMP and TIFF by content, never by extension; the server takes no TIFF
several frames            the first frame of an animation, the first page of a TIFF file
EXIF orientation          applied; a damaged EXIF block counts as none
``L``, ``1``              gray, repeated on three channels
``LA``, ``RGBA``, ``P``   alpha is composited over white: the color behind transparent pixels is arbitrary
``CMYK``, ``YCbCr``       Pillow's conversion; also of ``LAB``
9 to 16 bits a channel    by the intensity rule (the module ``intensity``), which the training records; without one the
                          full range of 16 bits becomes 8 bits (of color: its high byte)
floating point            refused: its range is not stated
40 to 250 million pixels  JPEG: decoded at 1/2, 1/4 or 1/8 of its sides (DCT scaling), the first that has at most
                          40 million pixels; a progressive JPEG up to 60 million, because its decoder holds all
                          coefficients. An image or array in memory: averaged by the same factor.
                          Other files: refused by their size, before any pixel is decoded
========================  =====================================================================================

The size in the header alone decides the factor, so that training, export, server and device see the same pixels. The module
``tiff`` lists further limits of TIFF files. ICC profiles are not applied, as in timm and torchvision.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from edgetl.core.files.regular import open_plain
from edgetl.core.images.intensity import FULL_RANGE, Intensity, Levels, has_wide_color, read_low_bytes, to_8_bits
from edgetl.core.images.jpeg import has_several_scans
from edgetl.core.images.tiff import check_tiff
from edgetl.core.system.memory import out_of_memory
from edgetl.errors import ImageError


class BinaryFile(Protocol):
    """An open file, a response, or another object whose ``read`` returns bytes."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes."""


ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | NDArray[np.uint8] | NDArray[np.uint16]
)

Format: TypeAlias = Literal["JPEG", "PNG", "WebP", "BMP", "TIFF"]
# TIFF has many codecs, and photos need few of them. It is read from files of the user, never from a network.
SERVED_FORMATS: tuple[Format, ...] = ("JPEG", "PNG", "WebP", "BMP")
FORMATS: tuple[Format, ...] = (*SERVED_FORMATS, "TIFF")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
# Pixels that are decoded at most. Larger images are scaled down to this limit, or refused (see the table above).
MAX_PIXELS = 40_000_000
MAX_SCALED_PIXELS = 250_000_000
# A decoder holds 2 bytes for each of 3 coefficients a pixel: as much memory as 40 million decoded pixels take on the way to a tensor.
MAX_PROGRESSIVE_PIXELS = 60_000_000
# A photo of 200 megapixels has about 60 MB.
MAX_FILE_BYTES = 128_000_000

_OPENERS: tuple[tuple[Format, bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    ("JPEG", rb"\xff\xd8\xff", JpegImagePlugin.jpeg_factory),
    ("PNG", rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    ("WebP", rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile),
    ("BMP", rb"BM", BmpImagePlugin.BmpImageFile),
    ("TIFF", rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile),
)

_PIECE_BYTES = 1_000_000

# An image a thousand times longer than wide shows nothing after a resize, and would need a huge one.
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
_LOGIC_ERRORS = (ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, UserWarning)
_DECODE_ERRORS = (*_LOGIC_ERRORS, OSError, EOFError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)


class Examined(NamedTuple):
    """Decoded file, by the default intensity rule, with its smallest and largest value if it has more than 8 bits a channel."""

    image: Image.Image
    levels: Levels | None


def load_image(source: ImageInput, *, intensity: Intensity = FULL_RANGE, formats: Sequence[Format] = FORMATS) -> Image.Image:
    """Decode ``source`` to an upright RGB image.

    Args:
        source: a file's path; an encoded file's bytes, or a binary file object, read from its current position; a PIL image
            of any mode; or an array ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA): uint8, 0..255, or
            uint16, by ``intensity``.
        intensity: the rule for more than 8 bits a channel; that of a model is in its ``PreprocessSpec``.
        formats: accepted formats of a path and of bytes.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError: the file is missing, damaged, of another format, or larger than the limits.
    """
    if isinstance(source, Image.Image):
        return _from_image(source, intensity, formats)
    if isinstance(source, np.ndarray):
        return to_upright_rgb(_from_array(source, intensity), "array", intensity)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _decode(data, f"image of {len(data)} bytes", intensity, formats)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return _decode(read_image_file(path), str(path), intensity, formats)
    if hasattr(source, "read"):
        return _decode(_read_open(source), "open file", intensity, formats)
    raise ImageError(
        f"cannot read an image from a {type(source).__name__}; give a path, bytes, a binary file, a PIL image or a uint8 array."
    )


def examine(path: Path) -> Examined:
    """Decode a file for a scan, before there is an intensity rule.

    Raises:
        ImageError: as ``load_image``.
    """
    data = read_image_file(path)
    upright = _decode(data, str(path), FULL_RANGE, FORMATS)
    with _open(data, FORMATS) as image:
        color = has_wide_color(image)
        if not color and not image.mode.startswith("I"):
            return Examined(upright, None)
        image.load()
        values = np.asarray(image)
        if color:
            values = _wide(values, data)[:, :, :3]
    return Examined(upright, (int(values.min()), int(values.max())))


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
            data = file.read(size)  # no more: a read allocates its full size
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}; give the path of one image.") from error
    if not data:
        raise ImageError(f"{path} is empty.")
    return data


def _read_open(file: BinaryFile) -> bytes:
    try:
        data = bytearray()
        while piece := file.read(_PIECE_BYTES):
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise ImageError(f"the open file gives {type(piece).__name__}, not bytes; open it in binary mode: open(path, 'rb').")
            data += piece
            if len(data) > MAX_FILE_BYTES:
                raise ImageError(f"the open file has more than {MAX_FILE_BYTES} bytes.")
    except (OSError, ValueError) as error:
        raise ImageError(f"the open file cannot be read: {_reason(error)} Give one that is open in binary mode.") from error
    if not data:
        raise ImageError("the open file has 0 bytes after its current position. Rewind it: file.seek(0).")
    return bytes(data)


def content_hash(image: Image.Image) -> str:
    """SHA-256 (hex) of an upright RGB image's size and pixels: equal for copies in other files."""
    digest = hashlib.sha256(struct.pack("<II", *image.size))
    digest.update(image.tobytes())
    return digest.hexdigest()


def to_upright_rgb(image: Image.Image, name: str, intensity: Intensity = FULL_RANGE) -> Image.Image:
    """Apply the EXIF orientation and convert to RGB by the rules of this module; ``name`` is used in messages.

    Raises:
        ImageError: no pixels, too many, too narrow, or Pillow fails on it.
    """
    _check_shape(image, name)
    if image.width * image.height > MAX_SCALED_PIXELS:
        raise _too_large(image, name, "in memory", MAX_SCALED_PIXELS)
    try:
        transpose = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image, intensity)
        if (factor := scale_factor(*rgb.size)) > 1:
            rgb = rgb.reduce(factor)
        if transpose is None:
            return rgb
        upright = rgb.transpose(transpose)
        for block in _ORIENTATION_BLOCKS:
            upright.info.pop(block, None)  # or it would be turned again
        return upright
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def scale_factor(width: int, height: int) -> int:
    """The first of 1, 2, 4 and 8 by which both sides are divided, rounded up, so that at most ``MAX_PIXELS`` pixels remain."""
    return next(factor for factor in (1, 2, 4, 8) if factor == 8 or -(-width // factor) * -(-height // factor) <= MAX_PIXELS)


def _check_shape(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}).")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"{name} has {width} x {height} pixels; one side may be {MAX_ASPECT_RATIO} times the other at most.")


def _too_large(image: Image.Image, name: str, kind: str, limit: int) -> ImageError:
    width, height = image.size
    return ImageError(
        f"{name} has {width} x {height} pixels, {width * height / 1e6:.0f} million; the limit {kind} is {limit // 1_000_000} million. "
        f"Make it smaller, or save it as a JPEG that is not progressive (up to {MAX_SCALED_PIXELS // 1_000_000} million)."
    )


def _decode(data: bytes, name: str, intensity: Intensity, formats: Sequence[Format]) -> Image.Image:
    try:
        with _open(data, formats) as image:
            _prepare(image, data, name)
            wide = intensity != FULL_RANGE and has_wide_color(image)
            image.load()
            if wide:
                image.paste(_eight_bits(_wide(np.asarray(image), data), intensity))
            return to_upright_rgb(image, name, intensity)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a {', '.join(formats[:-1])} or {formats[-1]} image.") from error
    except MemoryError as error:
        raise out_of_memory(f"decoding {name}") from error
    except Image.DecompressionBombError as error:  # by a plugin that looks at the size before this module can
        raise ImageError(f"{name} is too large; the limit is {MAX_PIXELS // 1_000_000} million pixels. Make it smaller.") from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def _open(data: bytes, formats: Sequence[Format]) -> ImageFile.ImageFile:
    """Read the header. ``Image.open`` would refuse large images that can be scaled, and its list of formats is global."""
    for format_, signature, opener in _OPENERS:
        if format_ in formats and re.match(signature, data, re.DOTALL):
            return opener(io.BytesIO(data))
    raise UnidentifiedImageError


def _prepare(image: ImageFile.ImageFile, data: bytes, name: str) -> None:
    """Refuse a file by its header, before any pixel is decoded, and choose the scale of a large JPEG."""
    _check_shape(image, name)
    pixels = image.width * image.height
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tiff(image, MAX_PIXELS)
    if pixels <= MAX_PIXELS:
        return
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        raise _too_large(image, name, f"of {image.format}", MAX_PIXELS)
    if pixels > MAX_SCALED_PIXELS:
        raise _too_large(image, name, "of JPEG", MAX_SCALED_PIXELS)
    if pixels > MAX_PROGRESSIVE_PIXELS and has_several_scans(data):
        raise _too_large(image, name, "of progressive JPEG", MAX_PROGRESSIVE_PIXELS)
    factor = scale_factor(*image.size)
    image.draft(None, (image.width // factor, image.height // factor))


def _wide(high: NDArray[np.uint8], data: bytes) -> NDArray[np.uint16]:
    """Color of 16 bits a channel, uint16 ``[H, W, channels]``, from its high bytes and the file, which is decoded again."""
    with _open(data, FORMATS) as image:
        return high.astype(np.uint16) * np.uint16(256) + read_low_bytes(image)


def _eight_bits(values: NDArray[np.uint16], intensity: Intensity) -> Image.Image:
    """Color of 16 bits as an 8-bit image; of alpha the full range counts."""
    color = to_8_bits(values[:, :, :3], intensity)
    return Image.fromarray(np.dstack((color, to_8_bits(values[:, :, 3:], FULL_RANGE))))


def _from_image(image: Image.Image, intensity: Intensity, formats: Sequence[Format]) -> Image.Image:
    """A PIL image; the pixels of a large file that is opened and not yet decoded follow the rules of files."""
    if isinstance(image, ImageFile.ImageFile) and image.width * image.height > MAX_PIXELS and image.tile:
        if image.format not in ("JPEG", "MPO") or image.fp is None or image.tell() > 0:
            raise _too_large(image, "image", f"of {image.format}", MAX_PIXELS)
        place = image.fp.tell()
        image.fp.seek(0)
        data = _read_open(image.fp)
        image.fp.seek(place)
        return _decode(data, "image", intensity, formats)
    return to_upright_rgb(image, "image", intensity)


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _from_array(array: NDArray[np.uint8] | NDArray[np.uint16], intensity: Intensity) -> Image.Image:
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"an array of {array.dtype} is ambiguous; give uint8 values 0..255 in RGB order, [H, W, 3], or uint16.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in array.shape:
        raise ImageError(
            f"an array of shape {list(array.shape)} is not an image; give [H, W], [H, W, 3] or [H, W, 4]; of several images a list."
        )
    if array.ndim == 3 and array.dtype == np.uint16:
        return _eight_bits(array.astype(np.uint16, copy=False), intensity)
    return Image.fromarray(np.ascontiguousarray(array))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DECODE_ERRORS:
        return 1


def _to_rgb(image: Image.Image, intensity: Intensity) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(to_8_bits(np.asarray(image), intensity)).convert("RGB")
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
