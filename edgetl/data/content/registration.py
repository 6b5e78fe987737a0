"""Image registration: correlation of two images over all crops, by normalized cross-correlation of their details.

Equal details at equal places are evidence of one photo. Two photos of the same object, or of similar objects, have other details.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from edgetl.data.content.perceptual_hash import orient_pixels

# Side of the compared images, and of their mean colors, pixels.
SIDE, COLOR_SIDE = 64, 8
# Least standard deviation of the details in a window, relative to the whole image. A flat part would correlate with anything.
_LEAST_DETAIL = 0.5


@dataclass(frozen=True)
class Band:
    """Size of the compared details, and of the compared crops.

    Attributes:
        low, high: standard deviations of two Gaussian filters, pixels. Details below the first change with compression and resizing.
            Details above the second change with brightness, and are alike in many images.
        scales: sides of a crop relative to the whole image. Finer details need smaller steps.
    """

    low: float
    high: float
    scales: tuple[float, ...]


COARSE = Band(0.8, 5.0, tuple(1 - 0.05 * step for step in range(9)))
FINE = Band(0.6, 2.0, tuple(1 - 0.0125 * step for step in range(33)))


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """Small image, stretched to a square, so that copies of another size are compared at equal places.

    Attributes:
        gray: uint8 ``[SIDE, SIDE]``.
        colors: mean colors, uint8 ``[COLOR_SIDE, COLOR_SIDE, 3]``.
    """

    gray: NDArray[np.uint8]
    colors: NDArray[np.uint8]

    def oriented(self, orientation: int) -> Thumbnail:
        """Return the thumbnail of the image in another orientation (``edgetl.data.content.perceptual_hash.orient``)."""
        return Thumbnail(orient_pixels(self.gray, orientation), orient_pixels(self.colors, orientation))


def make_thumbnail(image: Image.Image) -> Thumbnail:
    """Make the thumbnail of an RGB image."""
    small = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS if min(image.size) < SIDE else Image.Resampling.BOX)
    return Thumbnail(np.asarray(small.convert("L")), np.asarray(small.resize((COLOR_SIDE, COLOR_SIDE), Image.Resampling.BOX)))


@dataclass(frozen=True, eq=False)
class Details:
    """Details of an image, prepared for the comparison with others.

    Attributes:
        spectrum: Fourier transform of the details, complex ``[SIDE, SIDE // 2 + 1]``.
        templates: Fourier transforms of the details of the image at each scale, with unit norm.
        weights: inverse norms of the details in each window of these sizes, ``[scales, SIDE, SIDE]``. 0 where no window starts.
    """

    spectrum: NDArray[np.complex64]
    templates: NDArray[np.complex64]
    weights: NDArray[np.float32]


def find_details(thumbnail: Thumbnail, band: Band = COARSE) -> Details:
    """Prepare an image for ``correlate`` with another one of the same band."""
    gray = Image.fromarray(np.ascontiguousarray(thumbnail.gray))
    whole = _filtered(gray, SIDE, band)
    templates = np.zeros((len(band.scales), SIDE, SIDE), np.float32)
    weights = np.zeros((len(band.scales), SIDE, SIDE), np.float32)
    least = max(_LEAST_DETAIL * float(whole.std()), 1e-2)
    exact = whole.astype(np.float64)
    first, second = _integral(exact), _integral(exact**2)
    for index, scale in enumerate(band.scales):
        side = round(SIDE * scale)
        template = _filtered(gray, side, band)
        norm = float(np.linalg.norm(template - template.mean()))
        if norm > least * side:
            templates[index, :side, :side] = (template - template.mean()) / norm
        norms = _window_norms(first, second, side)
        weights[index, : len(norms), : len(norms)] = np.where(norms > least * side, 1 / np.maximum(norms, least), 0.0)
    return Details(np.fft.rfft2(whole).astype(np.complex64), np.fft.rfft2(templates).astype(np.complex64), weights)


def correlate(left: Details, right: Details) -> float:
    """Return the largest correlation of two images, 0..1: of one with any crop of the other that has at least 0.6 of its sides."""
    best = 0.0
    for whole, part in ((left, right), (right, left)):
        products = np.fft.irfft2(whole.spectrum * part.templates.conj(), s=(SIDE, SIDE))
        best = max(best, float((products * whole.weights).max()))
    return best


def color_difference(left: Thumbnail, right: Thumbnail) -> float:
    """Return the mean absolute difference of the colors of two images, 0..1."""
    return float(np.abs(left.colors.astype(np.float32) - right.colors).mean()) / 255


def _filtered(gray: Image.Image, side: int, band: Band) -> NDArray[np.float32]:
    """Return the details of a gray image scaled to ``side``, ``[side, side]``."""
    small = gray if side == gray.width else gray.resize((side, side), Image.Resampling.BOX)
    fine, smooth = (np.asarray(small.filter(ImageFilter.GaussianBlur(radius)), np.float32) for radius in (band.low, band.high))
    return fine - smooth


def _integral(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of all rectangles from the first corner, ``[SIDE + 1, SIDE + 1]``."""
    total = np.zeros((SIDE + 1, SIDE + 1))
    total[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    return total


def _window_norms(first: NDArray[np.float64], second: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Return the norm of the deviation from the mean in each window, ``[SIDE - side + 1, SIDE - side + 1]``.

    Args:
        first: integral of the values.
        second: integral of their squares.
        side: side of the windows, pixels.
    """
    sums = [total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side] for total in (first, second)]
    return np.sqrt(np.maximum(sums[1] - sums[0] ** 2 / side**2, 0.0)).astype(np.float32)
