"""Preprocessing: resize, crop and normalize an image to a tensor. No other code does this.

Training resolves a ``PreprocessSpec`` once and stores it in the run. The bundle has the same spec.

Resize methods:

- ``two-step``: resize, then crop. Bit-identical to timm's evaluation transform with the same settings (``timm.data.create_transform``,
  Apache-2.0; its rounding rules were read there).
- ``fused`` (default): does not compute the margins that the crop removes. The pixels differ by at most 1 gray level of 255. No accuracy in
  ``bench/comparisons/resize.py`` changes. It takes 65 to 85 % of the time for a camera image.

Decoding of JPEG files:

- ``full`` (default): decode all pixels.
- ``scaled``: decode at 1/2, 1/4 or 1/8 of the sides, where the result is still at least ``MIN_SCALED`` of the resized image (DCT scaling of
  libjpeg, ``Image.draft`` of Pillow). It changes pixels, and the accuracy gate measures its accuracy. Only an execution setting selects it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.images.decode import FORMATS, MAX_PIXELS, Format, ImageInput, load_image
from edgetl.core.images.intensity import FULL_RANGE, Intensity
from edgetl.core.system.execution import Decode

CropMode: TypeAlias = Literal["center", "squash", "border"]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Side = Annotated[int, Field(ge=8, le=4096)]
Triple: TypeAlias = tuple[float, float, float]
# Input of a network: normalized float32 (``preprocess``), or uint8 pixels that the file normalizes.
InputForm: TypeAlias = Literal["float", "uint8"]
Batch: TypeAlias = NDArray[np.float32] | NDArray[np.uint8]
Scale = Annotated[float, Field(gt=0.0)]
MIN_CROP_PCT, MAX_CROP_PCT = 0.1, 1.5
MIN_SCALED = 0.9

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


class PreprocessSpec(StrictModel):
    """Preprocessing settings. Field names and meanings follow timm's data config.

    The target size is ``floor(input_size / crop_pct)`` for each side.

    Attributes:
        input_size: height and width of the network's input, pixels.
        crop_mode: ``center``: resize the image to cover the target size, keeping the aspect ratio, then crop the center. ``squash``:
            resize to the target size, ignoring the aspect ratio, then crop the center. ``border``: resize the image to fit into the target
            size, keeping the aspect ratio, then pad with the mean color and crop the center.
        crop_pct: ratio of the input side to the target side. Above 1 the image is padded (black for ``center`` and ``squash``).
        interpolation: Pillow's antialiased resampling filter.
        resize: resize method. ``two-step``: resize the whole image, then crop. ``fused``: compute only the pixels that the crop keeps. The
            pixels of both methods differ by at most 1 of 255.
        mean: mean of each channel (RGB), on a scale of 0..1.
        std: standard deviation of each channel (RGB), on a scale of 0..1.
        intensity: intensity rule for images with more than 8 bits per channel. It applies during decoding.
        decode: decoding of JPEG files. ``full``: all pixels. ``scaled``: at 1/2, 1/4 or 1/8 of the sides, where the decoded image is at
            least 0.9 times as large as the resized image. Images in memory and other formats are not scaled.
    """

    input_size: tuple[Side, Side]
    crop_mode: CropMode = "center"
    crop_pct: float = Field(default=0.875, ge=MIN_CROP_PCT, le=MAX_CROP_PCT)
    interpolation: Interpolation = "bicubic"
    resize: Literal["fused", "two-step"] = "fused"
    mean: Triple = (0.485, 0.456, 0.406)
    std: tuple[Scale, Scale, Scale] = (0.229, 0.224, 0.225)
    intensity: Intensity = FULL_RANGE
    decode: Decode = "full"

    def describe(self) -> str:
        """Return the settings of resize and crop as text."""
        height, width = self.input_size
        crop = f"{self.crop_mode} crop (--crop-pct {self.crop_pct:g})"
        return f"{height} x {width} RGB, {crop}, {self.interpolation}, {self.resize} resize"

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the settings as JSON."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class _Placement(NamedTuple):
    """Size of the resized image and offset of the crop in it, pixels. Negative offsets mean padding."""

    width: int
    height: int
    left: int
    top: int


def preprocess(source: ImageInput, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Decode, resize, crop and normalize an image.

    Args:
        source: path, encoded bytes, file object, PIL image or array (see ``load_image``).
        spec: preprocessing settings.

    Returns:
        float32 ``[3, H, W]``, RGB, normalized.

    Raises:
        ImageError: the image cannot be read.
    """
    out = np.empty((3, *spec.input_size), np.float32)
    normalize(to_pixels(decode_image(source, spec), spec), spec, out)
    return out


def decode_image(source: ImageInput, spec: PreprocessSpec, *, formats: Sequence[Format] = FORMATS) -> Image.Image:
    """Decode an image to upright RGB, by the intensity rule and the JPEG decoding of ``spec``.

    Args:
        source: path, encoded bytes, file object, PIL image or array (see ``load_image``).
        spec: preprocessing settings.
        formats: accepted formats of files and bytes.

    Raises:
        ImageError: the image cannot be read.
    """
    scale = (lambda width, height: decode_factor(width, height, spec)) if spec.decode == "scaled" else None
    return load_image(source, intensity=spec.intensity, formats=formats, scale=scale)


def decode_factor(width: int, height: int, spec: PreprocessSpec) -> int:
    """Return the factor 1, 2, 4 or 8 by which ``scaled`` decoding divides the sides of an upright JPEG image.

    It is the largest factor for which both decoded sides are at least ``MIN_SCALED`` times those of the resized image.
    """
    place = _placement(width, height, spec)
    least_width, least_height = MIN_SCALED * place.width, MIN_SCALED * place.height
    return next(factor for factor in (8, 4, 2, 1) if factor == 1 or (width / factor >= least_width and height / factor >= least_height))


def to_batch(images: Sequence[Image.Image], spec: PreprocessSpec, form: InputForm) -> Batch:
    """Preprocess upright RGB images to a batch.

    Returns:
        ``float``: normalized float32 ``[n, 3, H, W]``. ``uint8``: resized and cropped pixels, ``[n, H, W, 3]``.
    """
    if form == "uint8":
        return np.stack([np.asarray(to_pixels(image, spec)) for image in images])
    batch = np.empty((len(images), 3, *spec.input_size), np.float32)
    for row, image in zip(batch, images, strict=True):
        normalize(to_pixels(image, spec), spec, row)
    return batch


def to_pixels(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Resize and crop an upright RGB image to the input size. The result has 8 bits per channel."""
    height, width = spec.input_size
    place = _placement(image.width, image.height, spec)
    filter_ = _RESAMPLING[spec.interpolation]
    inside = place.width >= width and place.height >= height
    # Pillow 13 resamples the rows first if the image loses far more rows than columns. Where bicubic overshoots, the order matters.
    # Nearest and box filters jump at pixel borders, where rounding matters. A huge resized image is never computed as a whole.
    huge = place.width * place.height > MAX_PIXELS
    plain = spec.crop_mode != "squash" and image.height <= 2 * image.width and spec.interpolation not in ("nearest", "box")
    if inside and (huge or (plain and spec.resize == "fused")):
        return _resize_crop(image, place, spec)
    resized = image.resize((place.width, place.height), filter_)
    if not inside:
        resized = _pad(resized, spec)
    left, top = _center(resized.size, spec)
    return resized.crop((left, top, left + width, top + height))


def _resize_crop(image: Image.Image, place: _Placement, spec: PreprocessSpec) -> Image.Image:
    """Resample only the pixels that the crop keeps: columns first, then rows, as Pillow does for the whole image.

    A single call of ``Image.resize(box=…)`` may differ by two gray levels: its box is float32, both passes round, and Pillow may swap them.
    Here only the second pass rounds, and the difference is at most one gray level.
    """
    height, width = spec.input_size
    filter_ = _RESAMPLING[spec.interpolation]
    first, last, edges = _kept(place.top, height, image.height / place.height, image.height)
    rows = image.crop((0, first, image.width, last)) if last - first < image.height else image
    if place.width * rows.height <= MAX_PIXELS:
        columns = rows.resize((place.width, rows.height), filter_).crop((place.left, 0, place.left + width, rows.height))
    else:  # a very wide image
        first, last, sides = _kept(place.left, width, image.width / place.width, image.width)
        part = rows.crop((first, 0, last, rows.height))
        columns = part.resize((width, rows.height), filter_, box=(sides[0], 0, sides[1], rows.height))
    return columns.resize((width, height), filter_, box=(0, edges[0], width, edges[1]))


def _kept(start: int, length: int, ratio: float, size: int) -> tuple[int, int, tuple[float, float]]:
    """Return the range of source rows or columns that a crop needs, and the edges of the crop in this range.

    Args:
        start: first row or column of the crop in the resized image.
        length: number of rows or columns of the crop.
        ratio: source pixels for each pixel of the resized image.
        size: number of rows or columns of the source.
    """
    low, high = start * ratio, (start + length) * ratio
    margin = 3 * max(1.0, ratio) + 1  # the widest kernel, Lanczos, has a radius of 3 pixels of the coarser grid
    first, last = max(0, math.floor(low - margin)), min(size, math.ceil(high + margin))
    # Rounding may move the far edge slightly outside the image, which Pillow rejects.
    return first, last, (low - first, min(high - first, float(last - first)))


def normalize(pixels: Image.Image | NDArray[np.uint8], spec: PreprocessSpec, out: NDArray[np.float32]) -> None:
    """Write ``(pixels / 255 - mean) / std`` into ``out``, float32 ``[3, H, W]``, plane by plane.

    The operations and their order are those of torchvision's ``ToTensor`` and ``Normalize``. The result is bit-identical.
    """
    array = np.asarray(pixels)
    for channel in range(3):
        plane = out[channel]
        np.divide(array[:, :, channel], np.float32(255), out=plane)
        plane -= np.float32(spec.mean[channel])
        plane /= np.float32(spec.std[channel])


def pixels_of(batch: NDArray[np.float32], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Invert ``normalize``: return the pixels, uint8 ``[n, H, W, 3]``, of normalized images ``[n, 3, H, W]``. The result is exact."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    pixels: NDArray[np.uint8] = np.rint((batch * std + mean) * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels


def _placement(width: int, height: int, spec: PreprocessSpec) -> _Placement:
    target_h, target_w = (math.floor(side / spec.crop_pct) for side in spec.input_size)
    if spec.crop_mode == "squash":
        new_w, new_h = target_w, target_h
    elif spec.crop_mode == "center" and target_h == target_w:
        # torchvision's Resize(int): the longer side is truncated, not rounded.
        long = int(target_w * max(width, height) / min(width, height))
        new_w, new_h = (target_w, long) if width <= height else (long, target_w)
    else:
        ratios = (height / target_h, width / target_w)
        ratio = max(ratios) if spec.crop_mode == "border" else min(ratios)
        new_w, new_h = max(1, round(width / ratio)), max(1, round(height / ratio))
    left, top = _center((new_w, new_h), spec)
    return _Placement(new_w, new_h, left, top)


def _center(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Return left and top of the centered crop, with the half-to-even rounding of torchvision's ``center_crop``."""
    height, width = spec.input_size
    return round((size[0] - width) / 2.0), round((size[1] - height) / 2.0)


def _pad(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Center the image on a canvas at least as large as the crop: mean color for ``border``, else black (as torchvision)."""
    height, width = spec.input_size
    fill = tuple(round(255 * value) for value in spec.mean) if spec.crop_mode == "border" else (0, 0, 0)
    canvas = Image.new("RGB", (max(image.width, width), max(image.height, height)), fill)
    canvas.paste(image, (max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)))
    return canvas
