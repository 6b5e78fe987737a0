"""Image decoding: path, bytes, PIL image or array to an upright 8-bit RGB image, within limits.

Training, export, measurements and devices use the same rules:

========================  =====================================================================================
formats                   JPEG, PNG, WebP, BMP and TIFF, detected by content; the server does not accept TIFF
several frames            the first frame of an animation, the first page of a TIFF file
EXIF orientation          applied; a damaged EXIF block is ignored
``L``, ``1``              gray, repeated on three channels
``LA``, ``RGBA``, ``P``   composited over white, because the color behind transparent pixels is arbitrary
``CMYK``, ``YCbCr``       converted by Pillow; also ``LAB``
9 to 16 bits per channel  converted by the intensity rule of the run (module ``intensity``); by default the
                          full range of 16 bits becomes 8 bits (color: the high byte)
floating point            refused: its range is unknown
40 to 250 million pixels  JPEG: decoded at 1/2, 1/4 or 1/8 of its sides (DCT scaling), the first with at most
                          40 million pixels; a progressive JPEG up to 60 million, because its decoder keeps all
                          coefficients in memory. An image or array in memory: averaged by the same factor.
                          Other files: refused by their size, before any pixel is decoded
========================  =====================================================================================

The factor depends only on the size in the header. Training, export, server and device therefore decode the same pixels. With
``PreprocessSpec.decode = "scaled"``, smaller JPEG files are scaled too. The module
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

from edgetl.core.files.byte_ranges import open_range
from edgetl.core.images.capture import Capture, read_capture
from edgetl.core.images.intensity import FULL_RANGE, Intensity, Levels, has_wide_color, read_low_bytes, to_8_bits
from edgetl.core.images.jpeg import has_several_scans
from edgetl.core.images.tiff import check_tiff
from edgetl.core.system.memory import out_of_memory
from edgetl.errors import ImageError


class BinaryFile(Protocol):
    """Object with a ``read`` method that returns bytes, such as an open file."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes."""


ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | NDArray[np.uint8] | NDArray[np.uint16]
)

# Function from width and height of an upright image, pixels, to the factor 1, 2, 4 or 8 by which its JPEG decoder divides them.
ScaleRule: TypeAlias = Callable[[int, int], int]
Format: TypeAlias = Literal["JPEG", "PNG", "WebP", "BMP", "TIFF"]
# TIFF has many codecs, and photos need few of them. It is read from local files only, never from the network.
SERVED_FORMATS: tuple[Format, ...] = ("JPEG", "PNG", "WebP", "BMP")
FORMATS: tuple[Format, ...] = (*SERVED_FORMATS, "TIFF")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
# Largest number of decoded pixels. Larger images are scaled down to this limit, or refused (see the table above).
MAX_PIXELS = 40_000_000
MAX_SCALED_PIXELS = 250_000_000
# The decoder keeps 3 coefficients of 2 bytes per pixel: as much memory as the preprocessing of 40 million decoded pixels.
MAX_PROGRESSIVE_PIXELS = 60_000_000
# A photo with 200 megapixels has about 60 MB.
MAX_FILE_BYTES = 128_000_000

_OPENERS: tuple[tuple[Format, bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    ("JPEG", rb"\xff\xd8\xff", JpegImagePlugin.jpeg_factory),
    ("PNG", rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    ("WebP", rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile),
    ("BMP", rb"BM", BmpImagePlugin.BmpImageFile),
    ("TIFF", rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile),
)

_PIECE_BYTES = 1_000_000
# Rows that are copied and hashed at once. They stay in the processor's cache: hashing a large photo takes half the time.
_HASHED_ROWS = 64

# An image a thousand times longer than wide has no visible content after a resize, and its resized image would be huge.
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
# Orientations that exchange width and height.
_TRANSPOSED = frozenset({5, 6, 7, 8})
# Exceptions of Pillow's decoders for damaged files, collected from its test images and issue tracker.
_LOGIC_ERRORS = (ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, UserWarning)
_DECODE_ERRORS = (*_LOGIC_ERRORS, OSError, EOFError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)


class Examined(NamedTuple):
    """Image decoded by the default intensity rule, its smallest and largest value if it has more than 8 bits, and its capture."""

    image: Image.Image
    levels: Levels | None
    capture: Capture | None


def load_image(
    source: ImageInput, *, intensity: Intensity = FULL_RANGE, formats: Sequence[Format] = FORMATS, scale: ScaleRule | None = None
) -> Image.Image:
    """Decode ``source`` to an upright RGB image.

    Args:
        source: path of a file; bytes of an encoded file; a binary file object, read from its current position; a PIL image of any mode;
            or an array ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA) of uint8 (0..255) or uint16 (converted by
            ``intensity``).
        intensity: rule for more than 8 bits per channel. The rule of a model is in its ``PreprocessSpec``.
        formats: accepted formats of files and bytes.
        scale: returns the factor by which an encoded JPEG is scaled down during decoding. By default, only JPEG files of more than
            40 million pixels are scaled.

    Returns:
        PIL image of mode RGB.

    Raises:
        ImageError: the file is missing, damaged, of another format, or larger than the limits.
    """
    if isinstance(source, Image.Image):
        return _from_image(source, intensity, formats)
    if isinstance(source, np.ndarray):
        return to_upright_rgb(_from_array(source, intensity), "array", intensity)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _decode(data, f"image of {len(data)} bytes", intensity, formats, scale)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return _decode(read_image_file(path), str(path), intensity, formats, scale)
    if hasattr(source, "read"):
        return _decode(_read_open(source), "open file", intensity, formats, scale)
    raise ImageError(
        f"cannot read an image from a {type(source).__name__}. Give a path, bytes, a binary file, a PIL image or a uint8 array."
    )


def examine(path: Path) -> Examined:
    """Decode a file for a scan, before the intensity rule is known.

    Raises:
        ImageError: as ``load_image``.
    """
    data = read_image_file(path)
    upright = _decode(data, str(path), FULL_RANGE, FORMATS)
    with _open(data, FORMATS) as image:
        color, capture = has_wide_color(image), _capture(image)
        if not color and not image.mode.startswith("I"):
            return Examined(upright, None, capture)
        image.load()
        values = np.asarray(image)
        if color:
            values = _wide(values, data)[:, :, :3]
    return Examined(upright, (int(values.min()), int(values.max())), capture)


def read_image_file(path: Path) -> bytes:
    """Return the bytes of a regular file, or of a member of an archive, with at most ``MAX_FILE_BYTES`` bytes.

    Raises:
        ImageError: the file is missing, not a regular file, empty, or too large.
    """
    try:
        with open_range(path) as (file, size):
            if size > MAX_FILE_BYTES:
                raise ImageError(f"{path} has {size} bytes. The limit is {MAX_FILE_BYTES}.")
            data = file.read(size)  # a read allocates its full size
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}. Give the path of an image.") from error
    if not data:
        raise ImageError(f"{path} is empty.")
    return data


def upright_jpeg_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of a JPEG file, upright, from its header; None for another format.

    Raises:
        ImageError: as ``read_image_file``.
    """
    try:
        with _open(read_image_file(path), ("JPEG",)) as image:
            width, height = image.size
            return (height, width) if _orientation(image) in _TRANSPOSED else (width, height)
    except _DECODE_ERRORS:
        return None


def _read_open(file: BinaryFile) -> bytes:
    try:
        data = bytearray()
        while piece := file.read(_PIECE_BYTES):
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise ImageError(f"the open file returns {type(piece).__name__}, not bytes. Open it in binary mode: open(path, 'rb').")
            data += piece
            if len(data) > MAX_FILE_BYTES:
                raise ImageError(f"the open file has more than {MAX_FILE_BYTES} bytes.")
    except (OSError, ValueError) as error:
        raise ImageError(f"the open file cannot be read: {_reason(error)} Open it in binary mode: open(path, 'rb').") from error
    if not data:
        raise ImageError("the open file has 0 bytes after its current position. Rewind it: file.seek(0).")
    return bytes(data)


def content_hash(image: Image.Image) -> str:
    """Return the SHA-256 (hex) of the size and pixels of an upright RGB image. Copies in other formats have equal hashes."""
    digest = hashlib.sha256(struct.pack("<II", *image.size))
    for top in range(0, image.height, _HASHED_ROWS):
        digest.update(image.crop((0, top, image.width, min(top + _HASHED_ROWS, image.height))).tobytes())
    return digest.hexdigest()


def to_upright_rgb(image: Image.Image, name: str, intensity: Intensity = FULL_RANGE) -> Image.Image:
    """Apply the EXIF orientation and convert to RGB by the rules of this module. ``name`` is the image's name in messages.

    Raises:
        ImageError: the image has no pixels, too many pixels or an extreme aspect ratio, or Pillow cannot convert it.
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
            upright.info.pop(block, None)  # a later call must not rotate the image again
        return upright
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def scale_factor(width: int, height: int) -> int:
    """Return the smallest factor of 1, 2, 4 and 8 that reduces the image to at most ``MAX_PIXELS`` pixels. Sides round up."""
    return next(factor for factor in (1, 2, 4, 8) if factor == 8 or -(-width // factor) * -(-height // factor) <= MAX_PIXELS)


def _check_shape(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}).")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"{name} has {width} x {height} pixels. One side may be at most {MAX_ASPECT_RATIO} times the other. Crop the image."
        )


def _too_large(image: Image.Image, name: str, kind: str, limit: int) -> ImageError:
    width, height = image.size
    return ImageError(
        f"{name} has {width} x {height} pixels, {width * height / 1e6:.0f} million. The limit {kind} is {limit // 1_000_000} million. "
        f"Resize it, or save it as a JPEG that is not progressive (up to {MAX_SCALED_PIXELS // 1_000_000} million)."
    )


def _decode(data: bytes, name: str, intensity: Intensity, formats: Sequence[Format], scale: ScaleRule | None = None) -> Image.Image:
    try:
        with _open(data, formats) as image:
            _prepare(image, data, name, scale)
            wide = intensity != FULL_RANGE and has_wide_color(image)
            image.load()
            if wide:
                image.paste(_eight_bits(_wide(np.asarray(image), data), intensity))
            return to_upright_rgb(image, name, intensity)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a {', '.join(formats[:-1])} or {formats[-1]} image.") from error
    except MemoryError as error:
        raise out_of_memory(f"decoding {name}") from error
    except Image.DecompressionBombError as error:  # of a plugin that checks the size before this module can
        raise ImageError(f"{name} is too large. The limit is {MAX_PIXELS // 1_000_000} million pixels. Resize it.") from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def _open(data: bytes, formats: Sequence[Format]) -> ImageFile.ImageFile:
    """Read the header. ``Image.open`` would reject large images that can be scaled, and its list of formats is global."""
    for format_, signature, opener in _OPENERS:
        if format_ in formats and re.match(signature, data, re.DOTALL):
            return opener(io.BytesIO(data))
    raise UnidentifiedImageError


def _prepare(image: ImageFile.ImageFile, data: bytes, name: str, scale: ScaleRule | None) -> None:
    """Check the header before any pixel is decoded, and set the scale of a JPEG: that of ``scale``, and for large files at least theirs."""
    _check_shape(image, name)
    pixels = image.width * image.height
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tiff(image, MAX_PIXELS)
    factor = 1
    if scale is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
        factor = scale(*reversed(image.size)) if _orientation(image) in _TRANSPOSED else scale(*image.size)
    if pixels <= MAX_PIXELS:
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        return
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        raise _too_large(image, name, f"of {image.format}", MAX_PIXELS)
    if pixels > MAX_SCALED_PIXELS:
        raise _too_large(image, name, "of JPEG", MAX_SCALED_PIXELS)
    if pixels > MAX_PROGRESSIVE_PIXELS and has_several_scans(data):
        raise _too_large(image, name, "of progressive JPEG", MAX_PROGRESSIVE_PIXELS)
    factor = max(factor, scale_factor(*image.size))
    image.draft(None, (image.width // factor, image.height // factor))


def _wide(high: NDArray[np.uint8], data: bytes) -> NDArray[np.uint16]:
    """Return 16-bit color, uint16 ``[H, W, channels]``. The high bytes are given; the low bytes are decoded from the file."""
    with _open(data, FORMATS) as image:
        return high.astype(np.uint16) * np.uint16(256) + read_low_bytes(image)


def _eight_bits(values: NDArray[np.uint16], intensity: Intensity) -> Image.Image:
    """Convert 16-bit color to 8 bits by ``intensity``, and alpha by its full range."""
    color = to_8_bits(values[:, :, :3], intensity)
    return Image.fromarray(np.dstack((color, to_8_bits(values[:, :, 3:], FULL_RANGE))))


def _from_image(image: Image.Image, intensity: Intensity, formats: Sequence[Format]) -> Image.Image:
    """Convert a PIL image. The rules for files apply to a large opened file that is not decoded yet."""
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
        raise ImageError(f"an array of {array.dtype} is ambiguous. Give uint8 values 0..255 in RGB order, [H, W, 3], or uint16.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in array.shape:
        raise ImageError(
            f"an array of shape {list(array.shape)} is not an image. Give [H, W], [H, W, 3] or [H, W, 4]. For several images give a list."
        )
    if array.ndim == 3 and array.dtype == np.uint16:
        return _eight_bits(array.astype(np.uint16, copy=False), intensity)
    return Image.fromarray(np.ascontiguousarray(array))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DECODE_ERRORS:
        return 1


def _capture(image: Image.Image) -> Capture | None:
    try:
        return read_capture(image.getexif())
    except _DECODE_ERRORS:
        return None


def _to_rgb(image: Image.Image, intensity: Intensity) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(to_8_bits(np.asarray(image), intensity)).convert("RGB")
    if image.mode == "F":
        raise ValueError("the range of floating-point pixels is unknown. Save the image with 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGB", image.size, (255, 255, 255))
        background.paste(rgba, mask=rgba.getchannel("A"))
        return background
    if image.mode != "RGB":
        return image.convert("RGB")
    # A copy detaches the pixels from the file object, which the caller closes.
    return image.copy() if image.readonly else image
