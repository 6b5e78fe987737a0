"""Options of batch scoring."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.options import METAVAR

Format: TypeAlias = Literal["jsonl", "parquet", "csv"]
# Panel of the options in ``edgetl predict --help``.
MANY_IMAGES = "Many images (--out)"


class ScoringConfig(StrictModel):
    """Options of ``edgetl predict --out`` that determine the rows."""

    format: Format = Field(
        default="jsonl", description="Format of the output. parquet needs the extra `parquet`.", json_schema_extra={"panel": MANY_IMAGES}
    )
    scores: bool = Field(default=False, description="Write the score of every label.", json_schema_extra={"panel": MANY_IMAGES})
    image_column: str | None = Field(
        default=None,
        description="Column of the images in Parquet files. Default: the only binary column, or `image`.",
        json_schema_extra={"panel": MANY_IMAGES, METAVAR: "NAME"},
    )


class ScoringModel(StrictModel):
    """Model of a scoring task, as ``edgetl.load`` takes it.

    Attributes:
        bundle: folder of the bundle.
        variant: name of a variant; none for the first that can be loaded.
        tuning: result of ``edgetl tune``; none without one.
        trial: load the variant in a separate process first.
    """

    bundle: Path
    variant: str | None = None
    tuning: Path | None = None
    trial: bool = False
