"""Fractal images: attractors of random iterated function systems, after FractalDB (Kataoka et al. 2020, arXiv:2101.08515).

A system consists of a few affine maps of the plane. The chaos game draws its attractor. Each system is a class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POINTS = 6000
BURN_IN = 20
# Range of the singular values of every map. Below 1 the walk stays bounded. Near 1 the attractor fills the image.
CONTRACTION = (0.3, 0.9)


def draw_fractals(classes: int, per_class: int, side: int, *, seed: int) -> NDArray[np.uint8]:
    """Draw fractal images.

    Args:
        classes: number of iterated function systems.
        per_class: images per system.
        side: height and width of an image, px.
        seed: seed of systems and images.

    Returns:
        uint8 ``[classes * per_class, 3, side, side]``, sorted by class.
    """
    rng = np.random.default_rng([seed, 0xF2AC])
    images = [_draw(system, side, rng) for system in (_system(rng) for _ in range(classes)) for _ in range(per_class)]
    return np.stack(images)


def _system(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw 2 to 6 affine maps, float64 ``[maps, 2, 3]``, composed of rotations, scales and shifts."""
    maps = int(rng.integers(2, 7))
    left, right = (_rotations(rng.uniform(0, 2 * np.pi, maps)) for _ in range(2))
    scales = rng.uniform(*CONTRACTION, (maps, 2)) * rng.choice([-1.0, 1.0], (maps, 2))
    return np.concatenate([left * scales[:, None, :] @ right, rng.uniform(-1, 1, (maps, 2, 1))], axis=2)


def _rotations(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)


def _draw(system: NDArray[np.float64], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw the slightly perturbed attractor with a random color gradient on a plain or shaded background."""
    maps = system * rng.uniform(0.9, 1.1, system.shape)
    weights = np.abs(np.linalg.det(maps[:, :, :2])) + 0.05
    walkers = 200
    points = np.zeros((walkers, 2))
    visited = np.empty((BURN_IN + POINTS // walkers, walkers, 2))
    for step in range(len(visited)):
        chosen = maps[rng.choice(len(maps), walkers, p=weights / weights.sum())]
        points = np.clip(np.einsum("nij,nj->ni", chosen[:, :, :2], points) + chosen[:, :, 2], -1e3, 1e3)
        visited[step] = points
    found = visited[BURN_IN:].reshape(-1, 2)
    low, high = np.percentile(found, 1, axis=0), np.percentile(found, 99, axis=0)
    cells = ((found - low) / np.maximum(high - low, 1e-6) * (side - 1)).round().astype(int)
    cells = cells[((cells >= 0) & (cells < side)).all(axis=1)]
    density = np.zeros((side, side))
    np.add.at(density, (cells[:, 1], cells[:, 0]), 1.0)
    density = np.minimum(1.0, np.log1p(density) / np.log(4))
    ramp = np.linspace(0, 1, side)[None, :, None] * rng.uniform(-80, 80, 3) * rng.integers(0, 2)
    background = rng.uniform(0, 255, 3) + ramp
    ink = rng.uniform(0, 255, 3) + np.linspace(-1, 1, side)[:, None, None] * rng.uniform(-80, 80, 3)
    image = background + density[:, :, None] * (ink - background)
    return np.clip(image, 0, 255).astype(np.uint8).transpose(2, 0, 1)
