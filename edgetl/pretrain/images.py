"""Training images of a pretraining: small images in memory, and one batch of augmented views per step."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from edgetl.core.files.regular import open_plain
from edgetl.core.images.decode import EXTENSIONS, load_image
from edgetl.core.progress import Progress
from edgetl.data.content.facts import measure_facts
from edgetl.data.folder import Sample
from edgetl.errors import DataError, ImageError
from edgetl.pretrain.fractals import draw_fractals
from edgetl.pretrain.recipe import ImageSource, Recipe
from edgetl.train.artifacts.seen_images import perceptual_hashes
from edgetl.train.inputs.samplers import draw_seed

# Number of images with the same random crop and colors, because torchvision augments whole blocks at once.
BLOCK = 8
NO_LABEL = -1
# Ratio of the longer to the shorter edge above which two squares are cut from an image.
WIDE = 1.2


@dataclass(frozen=True)
class Pool:
    """Images of one source in memory.

    Attributes:
        source: image source of the recipe.
        images: uint8 ``[n, 3, side, side]``.
        labels: int64 ``[n]``, -1 for an image without a label.
        sha256: SHA-256 (hex) of the pixels.
        hashes: perceptual hashes of the files that the images were cut from. Empty for generated images.
    """

    source: ImageSource
    images: torch.Tensor
    labels: torch.Tensor
    sha256: str
    hashes: frozenset[int] = frozenset()


def load_pools(recipe: Recipe, data: Path | None, progress: Progress) -> list[Pool]:
    """Read or generate the images of every source. Different sources have different label numbers.

    Args:
        recipe: pretraining recipe.
        data: folder that contains the image files.
        progress: called while images are read.

    Raises:
        DataError: a source is missing or has no readable image.
    """
    pools: list[Pool] = []
    read: dict[tuple[object, ...], _Images] = {}
    numbers: dict[str, int] = {}
    for source in recipe.images:
        key = (source.source, source.part, source.side, source.formula, source.classes, source.per_class)
        if key not in read:
            read[key] = _draw(source, recipe.seed) if source.formula else _read(source, data, progress)
        images, names, hashes = read[key]
        labels = [numbers.setdefault(name, len(numbers)) if source.labeled else NO_LABEL for name in names]
        pools.append(Pool(source, torch.from_numpy(images), torch.tensor(labels), hashlib.sha256(images.tobytes()).hexdigest(), hashes))
    return pools


def count_labels(pools: list[Pool]) -> int:
    """Return the number of classes of all labeled sources together."""
    return 1 + max(int(pool.labels.max()) for pool in pools)


class Views(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Training batches by step: item ``step`` has images, float32 ``[batch, 3, side, side]`` in -1..1, and labels, int64 ``[batch]``.

    A batch depends only on the recipe's seed and the step. A resumed pretraining therefore uses the same batches.
    """

    def __init__(self, recipe: Recipe, pools: list[Pool]) -> None:
        self._recipe = recipe
        self._pools = pools
        blocks = recipe.batch_size // BLOCK
        weights = np.cumsum([pool.source.weight for pool in pools])
        self._order = [int(np.searchsorted(weights / weights[-1], (block + 0.5) / blocks)) for block in range(blocks)]
        self._augment = v2.Compose(
            [
                v2.RandomResizedCrop(recipe.side, scale=(recipe.smallest_crop, 1.0), interpolation=InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.05)], 0.6),
                v2.RandomGrayscale(0.05),
            ]
        )

    def __len__(self) -> int:
        return self._recipe.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(self._recipe.seed, step))
            blocks = [self._block(self._pools[index]) for index in self._order]
        images = torch.cat([images for images, _ in blocks]).float().div_(127.5).sub_(1.0)
        return images, torch.cat([labels for _, labels in blocks])

    def _block(self, pool: Pool) -> tuple[torch.Tensor, torch.Tensor]:
        grid = pool.source.grid
        chosen = torch.randint(len(pool.images), (BLOCK * grid * grid,))
        images = pool.images[chosen]
        if grid > 1:
            side = images.shape[-1]
            tiles = images.view(BLOCK, grid, grid, 3, side, side).permute(0, 3, 1, 4, 2, 5)
            images = tiles.reshape(BLOCK, 3, grid * side, grid * side)
        return self._augment(images), pool.labels[chosen][:: grid * grid]


class _Images(NamedTuple):
    """Images of a source, uint8 ``[n, 3, side, side]``, the class name of each, and the perceptual hashes of their files."""

    images: NDArray[np.uint8]
    names: list[str]
    hashes: frozenset[int]


def _draw(source: ImageSource, seed: int) -> _Images:
    images = draw_fractals(source.classes, source.per_class, source.side, seed=seed)
    return _Images(images, [f"fractal {index // source.per_class}" for index in range(len(images))], frozenset())


def _read(source: ImageSource, data: Path | None, progress: Progress) -> _Images:
    assert source.source is not None
    if data is None or not (path := data / source.source).exists():
        raise DataError(f"the recipe's images {source.source} are not in {data or 'any folder'}. Give their parent folder with --data.")
    squares: list[NDArray[np.uint8]] = []
    names: list[str] = []
    samples: list[Sample] = []
    for index, (name, file) in enumerate(_files(path)):
        if source.part not in f"/{name}" or Path(name).suffix.lower() not in EXTENSIONS:
            continue
        try:
            image = load_image(file)
        except ImageError:
            continue
        samples.append(Sample(Path(name), 0, "", facts=measure_facts(image)))
        found = _squares(image, source.side)
        squares += found
        names += [f"{source.source}/{Path(name).parent.name}"] * len(found)
        if index % 500 == 0:
            progress(f"reading {source.source}", index, 0)
    if not squares:
        raise DataError(
            f"{path} contains no readable image{f' with {source.part} in its path' if source.part else ''}. Check the recipe's images."
        )
    return _Images(np.ascontiguousarray(np.stack(squares).transpose(0, 3, 1, 2)), names, perceptual_hashes(samples))


def _files(path: Path) -> Iterator[tuple[str, bytes | Path]]:
    """Yield names and contents of the files in a tar file, in its order, or in a folder, sorted by path."""
    if path.is_dir():
        yield from ((file.relative_to(path).as_posix(), file) for file in sorted(path.rglob("*")) if file.is_file())
        return
    try:
        with open_plain(path) as opened, tarfile.open(fileobj=opened) as tar:
            for member in tar:
                if member.isfile() and (file := tar.extractfile(member)) is not None:
                    yield member.name, file.read()
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} cannot be read as a tar file: {error}. Download the file again.") from error


def _squares(image: Image.Image, side: int) -> list[NDArray[np.uint8]]:
    """Resize the shorter edge of an image to ``side`` px, and cut one central square, or a square at each end of a long image."""
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC) if image.size != (width, height) else image
    right, bottom = width - side, height - side
    corners = [(0, 0), (right, bottom)] if max(width, height) > WIDE * side else [(right // 2, bottom // 2)]
    return [np.asarray(resized.crop((x, y, x + side, y + side))) for x, y in corners]
