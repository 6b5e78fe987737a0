"""Records of a part: the job that it belongs to, its progress, and its result (``part-I-of-N.done``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgetl.core.config import StrictModel, read_json
from edgetl.data.inputs.blocks import Shard
from edgetl.errors import ConfigError
from edgetl.scoring.config import Format

_NAME = re.compile(r"part-(\d+)-of-(\d+)\.(?:done|progress)")
_SHA256 = r"^[0-9a-f]{64}$"


class Job(StrictModel):
    """Job: all that determines the rows. Parts of one output folder have the same job.

    Attributes:
        bundle: name of the bundle.
        manifest_sha256: SHA-256 of its manifest.
        gallery: SHA-256 of its gallery; none without one.
        variant: name of the variant.
        setting: execution setting of the variant.
        format: format of the output.
        scores: the rows have the scores of all labels.
        image_column: column of the images in Parquet files; none if it is found.
        input_sha256: SHA-256 of the names and sizes of the input files.
        files: number of input files.
        shards: number of parts.
    """

    bundle: str
    manifest_sha256: str = Field(pattern=_SHA256)
    gallery: str | None
    variant: str
    setting: str
    format: Format
    scores: bool
    image_column: str | None
    input_sha256: str = Field(pattern=_SHA256)
    files: int
    shards: int

    def differences(self, other: Job) -> str:
        """Return the fields in which ``other`` differs, with both values; empty without differences."""
        names = [name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)]
        return "; ".join(f"{name} is {getattr(self, name)} there and {getattr(other, name)} here" for name in names)


class Counts(StrictModel):
    """Counts of a part.

    Attributes:
        images: number of predicted images.
        errors: number of images and shards that could not be read.
        left_out: number of files in tar shards that are no images, by suffix.
        image_bytes: size of the predicted images, bytes.
        seconds: time of the predictions and the output, seconds, over all starts.
    """

    images: int = 0
    errors: int = 0
    left_out: dict[str, int] = Field(default_factory=dict)
    image_bytes: int = 0
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.images + self.errors


class PartProgress(StrictModel):
    """Progress of an unfinished part (``part-I-of-N.progress``). It is replaced after each chunk of rows.

    Attributes:
        schema_version: version of this format.
        job: job of the part.
        unit, block: position after the last written block (``edgetl.data.inputs.blocks.Place``).
        written_bytes: length of the file of rows. Later bytes are from an unfinished chunk.
        counts: counts of the written rows.
        read_bytes: size of the input files that are read.
        total_bytes: size of all input files of the part.
        total_images: number of images of the part; none if it is unknown before they are read.
    """

    schema_version: Literal[1] = 1
    job: Job
    unit: int = 0
    block: int = 0
    written_bytes: int = 0
    counts: Counts = Counts()
    read_bytes: float = 0.0
    total_bytes: int = 0
    total_images: int | None = None


class PartRecord(StrictModel):
    """Result of a finished part (``part-I-of-N.done``).

    Attributes:
        schema_version: version of this format.
        job: job of the part.
        part: number of the part, from 0.
        threads: threads of the process.
        counts: counts of the part.
        output_bytes: size of the output file.
        output_sha256: SHA-256 of the output file.
    """

    schema_version: Literal[1] = 1
    job: Job
    part: int
    threads: int
    counts: Counts
    output_bytes: int
    output_sha256: str = Field(pattern=_SHA256)


class PartFiles:
    """Paths of the files of a part.

    Attributes:
        shard: shard of the part.
        name: ``part-I-of-N``.
        done: record of the finished part.
        progress: record of the unfinished part.
        rows: rows of the unfinished part, JSON lines.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.shard = shard
        self.name = f"part-{shard.index}-of-{shard.count}"
        self.place = folder / self.name
        self.done, self.progress, self.rows = (folder / f"{self.name}{suffix}" for suffix in (".done", ".progress", ".rows"))

    def output(self, format_: Format) -> Path:
        """Return the path of the output."""
        return self.place.with_name(f"{self.name}.{format_}")

    def read_done(self) -> PartRecord | None:
        """Return the record of the finished part; none if the part is not finished.

        Raises:
            ConfigError: the record is damaged.
        """
        return read_json(self.done, PartRecord, ConfigError) if self.done.exists() else None

    def read_progress(self) -> PartProgress | None:
        """Return the progress of the unfinished part; none if it has not begun.

        Raises:
            ConfigError: the record is damaged.
        """
        return read_json(self.progress, PartProgress, ConfigError) if self.progress.exists() else None


def found_shards(folder: Path) -> Iterator[Shard]:
    """Yield the shards whose records are in an output folder, sorted."""
    names = filter(None, (_NAME.fullmatch(path.name) for path in folder.iterdir()))
    for count, index in sorted({(int(name[2]), int(name[1])) for name in names}):
        yield Shard(index, count)
