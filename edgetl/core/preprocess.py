"""The only code that turns an image into a tensor: resize, crop, scale, normalise.

A ``PreprocessSpec`` is resolved once, at the start of training, and travels in the run and in the bundle. For the same settings the
``two-step`` resize equals timm's evaluation transform bit for bit (``timm.data.create_transform``, Apache-2.0, read for its rounding
rules); ``fused``, the default, does not compute the margins that the crop drops. It differs by at most one grey level of 255, which
no accuracy in ``bench/preprocess.py`` shows, and takes 65 to 85 % of the time of a resize of a camera image.
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
from edgetl.core.images.decode import MAX_PIXELS, ImageInput, load_image
from edgetl.core.images.intensity import FULL_RANGE, Intensity

CropMode: TypeAlias = Literal["center", "squash", "border"]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Side = Annotated[int, Field(ge=8, le=4096)]
Triple: TypeAlias = tuple[float, float, float]
# What a network takes: what ``preprocess`` gives, or pixels that it normalises itself.
InputForm: TypeAlias = Literal["float", "uint8"]
Batch: TypeAlias = NDArray[np.float32] | NDArray[np.uint8]
Scale = Annotated[float, Field(gt=0.0)]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


class PreprocessSpec(StrictModel):
    """Preprocessing of an image to a tensor. Field names and meanings follow timm's data config.

    Attributes:
        input_size: height and width of the network's input, pixels.
        crop_mode: ``center`` resizes the shorter side to ``input / crop_pct`` and crops; ``squash`` ignores the aspect ratio;
            ``border`` fits the longer side and pads with the mean color.
        crop_pct: share of the resized image that the crop keeps, 0..1.
        interpolation: Pillow's antialiased filter.
        resize: ``fused`` or ``two-step`` (see the module).
        mean: per channel (RGB), on a scale of 0..1.
        std: per channel (RGB), on a scale of 0..1.
        intensity: the rule for images of more than 8 bits a channel; it applies while they are decoded.
    """

    input_size: tuple[Side, Side]
    crop_mode: CropMode = "center"
    crop_pct: float = Field(default=0.875, ge=0.1, le=1.5)
    interpolation: Interpolation = "bicubic"
    resize: Literal["fused", "two-step"] = "fused"
    mean: Triple = (0.485, 0.456, 0.406)
    std: tuple[Scale, Scale, Scale] = (0.229, 0.224, 0.225)
    intensity: Intensity = FULL_RANGE

    def digest(self) -> str:
        """SHA-256 (hex) of the spec's JSON."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class _Placement(NamedTuple):
    """Where the crop lies in the resized image, pixels; negative offsets mean padding."""

    width: int
    height: int
    left: int
    top: int


def preprocess(source: ImageInput, spec: PreprocessSpec) -> NDArray[np.float32]:
    """One image to the network's input.

    Returns:
        float32 ``[3, H, W]``, RGB, normalised.

    Raises:
        ImageError: the image cannot be read.
    """
    out = np.empty((3, *spec.input_size), np.float32)
    normalize(to_pixels(load_image(source, intensity=spec.intensity), spec), spec, out)
    return out


def to_batch(images: Sequence[Image.Image], spec: PreprocessSpec, form: InputForm) -> Batch:
    """Upright RGB images as one batch: float32 ``[n, 3, H, W]``, normalised, or uint8 ``[n, H, W, 3]``, resized and cropped."""
    if form == "uint8":
        return np.stack([np.asarray(to_pixels(image, spec)) for image in images])
    batch = np.empty((len(images), 3, *spec.input_size), np.float32)
    for row, image in zip(batch, images, strict=True):
        normalize(to_pixels(image, spec), spec, row)
    return batch


def to_pixels(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Resize and crop an upright RGB image to the input size; the result has 8 bits a channel."""
    height, width = spec.input_size
    place = _placement(image.width, image.height, spec)
    filter_ = _RESAMPLING[spec.interpolation]
    inside = place.left >= 0 and place.top >= 0 and place.left + width <= place.width and place.top + height <= place.height
    # Pillow 13 resamples tall images, and those squeezed out of shape, rows first: there the two orders differ where bicubic overshoots.
    # Nearest and box filters jump at pixel borders, so that rounding shows. A huge resized image is never made whole.
    huge = place.width * place.height > MAX_PIXELS
    plain = spec.crop_mode != "squash" and image.height <= 2 * image.width and spec.interpolation not in ("nearest", "box")
    if inside and (huge or (plain and spec.resize == "fused")):
        return _resize_crop(image, place, spec)
    resized = image.resize((place.width, place.height), filter_)
    if not inside:
        resized, place = _pad(resized, spec), _Placement(0, 0, *_center(resized.size, spec, padded=True))
    return resized.crop((place.left, place.top, place.left + width, place.top + height))


def _resize_crop(image: Image.Image, place: _Placement, spec: PreprocessSpec) -> Image.Image:
    """Resample only what the crop keeps, columns first and then rows, as Pillow does for the whole image.

    One call with ``Image.resize(box=…)`` trims both passes but may be two levels off: its box is float32, so both passes round, and
    Pillow may swap them. Here the first pass is exact and only the second rounds, so that one level is the bound.
    """
    height, width = spec.input_size
    filter_ = _RESAMPLING[spec.interpolation]
    y = image.height / place.height
    top, bottom = place.top * y, (place.top + height) * y
    margin = 3 * max(1.0, y) + 1  # the widest kernel, Lanczos, reaches 3 pixels of the coarser grid
    first, last = max(0, math.floor(top - margin)), min(image.height, math.ceil(bottom + margin))
    rows = image.crop((0, first, image.width, last)) if last - first < image.height else image
    columns = rows.resize((place.width, rows.height), filter_).crop((place.left, 0, place.left + width, rows.height))
    # Rounding may put the far edge a hair outside the image, which Pillow refuses.
    return columns.resize((width, height), filter_, box=(0, top - first, width, min(bottom - first, float(rows.height))))


def normalize(pixels: Image.Image | NDArray[np.uint8], spec: PreprocessSpec, out: NDArray[np.float32]) -> None:
    """Write ``(pixels / 255 - mean) / std`` into ``out``, float32 ``[3, H, W]``, plane by plane.

    The operations and their order are those of torchvision's ``ToTensor`` and ``Normalize``, so that the result is bit-identical.
    """
    array = np.asarray(pixels)
    for channel in range(3):
        plane = out[channel]
        np.divide(array[:, :, channel], np.float32(255), out=plane)
        plane -= np.float32(spec.mean[channel])
        plane /= np.float32(spec.std[channel])


def pixels_of(batch: NDArray[np.float32], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The pixels uint8 ``[n, H, W, 3]`` that ``normalize`` was given: they are whole numbers, so that nothing is lost on the way back."""
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


def _center(size: tuple[int, int], spec: PreprocessSpec, *, padded: bool = False) -> tuple[int, int]:
    """Left and top of the centred crop, with the half-to-even rounding of torchvision's ``center_crop``."""
    height, width = spec.input_size
    if padded:
        size = (max(size[0], width), max(size[1], height))
    return round((size[0] - width) / 2.0), round((size[1] - height) / 2.0)


def _pad(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Centre the image on a canvas at least as large as the crop: mean colour for ``border``, else black (as torchvision)."""
    height, width = spec.input_size
    fill = tuple(round(255 * value) for value in spec.mean) if spec.crop_mode == "border" else (0, 0, 0)
    canvas = Image.new("RGB", (max(image.width, width), max(image.height, height)), fill)
    canvas.paste(image, (max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)))
    return canvas
