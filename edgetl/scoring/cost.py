"""Cost model of batch scoring: time, shards, network and output of a large job, from the records of a small one."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.data.inputs.blocks import Shard
from edgetl.errors import ConfigError
from edgetl.scoring.record import PartFiles, PartRecord, found_shards

# With F input files for each process, the last process has at most 1 / F more work than the mean.
FILES_PER_PROCESS = 10


class ScoringPlan(StrictModel):
    """Estimate of a job with one process for each core.

    Attributes:
        images: number of images.
        cores: number of cores.
        images_per_s_per_core: measured rate of one thread.
        image_bytes: measured mean size of an encoded image.
        row_bytes: measured mean size of a row.
        measured_images: number of images of the measurement.
        hours: duration with equal cores that do not wait for their input.
        files: least number of tar shards or Parquet files, so that the processes end at about the same time.
        images_per_file: images of each.
        input_gb: size of the input, GB (10^9 bytes).
        input_mb_per_s: rate at which the storage must deliver the input, MB/s.
        output_gb: size of the output, GB.
    """

    images: int = Field(ge=1)
    cores: int = Field(ge=1)
    images_per_s_per_core: float
    image_bytes: float
    row_bytes: float
    measured_images: int
    hours: float
    files: int
    images_per_file: int
    input_gb: float
    input_mb_per_s: float
    output_gb: float


def plan_scoring(measured: Path, *, images: int, cores: int) -> ScoringPlan:
    """Estimate a job of ``images`` images on ``cores`` cores.

    Args:
        measured: output folder of ``edgetl predict --out`` on one of these hosts. All its finished parts are used.
        images: number of images.
        cores: number of cores.

    Raises:
        ConfigError: the folder has no finished part with images, or a number is less than 1.
    """
    if images < 1 or cores < 1:
        raise ConfigError(f"--images {images} and --cores {cores} must be at least 1.")
    records = _records(measured)
    found = sum(record.counts.images for record in records)
    if not found:
        raise ConfigError(
            f"{measured} has no finished part with predictions. Predict some thousand images first: edgetl predict --out DIR."
        )
    rate = found / sum(record.counts.seconds * record.threads for record in records)
    size = sum(record.counts.image_bytes for record in records) / found
    row = sum(record.output_bytes for record in records) / found
    files = FILES_PER_PROCESS * cores
    return ScoringPlan(
        images=images,
        cores=cores,
        images_per_s_per_core=rate,
        image_bytes=size,
        row_bytes=row,
        measured_images=found,
        hours=images / (rate * cores) / 3600,
        files=files,
        images_per_file=math.ceil(images / files),
        input_gb=images * size / 1e9,
        input_mb_per_s=rate * cores * size / 1e6,
        output_gb=images * row / 1e9,
    )


def _records(folder: Path) -> list[PartRecord]:
    shards = found_shards(folder) if folder.is_dir() else iter(list[Shard]())
    return [record for shard in shards if (record := PartFiles(folder, shard).read_done())]
