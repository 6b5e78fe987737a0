"""Options of the report."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.options import METAVAR

MOST_IMAGES = 60


class ReportConfig(StrictModel):
    """Options of ``edgetl report``."""

    images: int = Field(
        default=12,
        ge=0,
        le=MOST_IMAGES,
        description="Number of wrong predictions to show for each run, the worst first. 0 shows no images at all.",
    )
    data: Path | None = Field(default=None, description="Folder of the images that the runs were trained on. Default: its original path.")
    evaluation: tuple[Path, ...] = Field(
        default=(),
        description="Output of `edgetl evaluate --by COLUMNS --json` for one of the models. Its comparison of groups is added. May be "
        "repeated.",
        json_schema_extra={METAVAR: "FILE"},
    )
    events: Path | None = Field(
        default=None,
        description="Events of a device (--events of `edgetl serve` or `edgetl run`). Drift is shown beside the model of the same name.",
        json_schema_extra={METAVAR: "FILE"},
    )
