"""Configuration of monitoring: drift detection, capture of images, events."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Self

from pydantic import model_validator

from edgetl.core.config import StrictModel
from edgetl.core.options import option_field
from edgetl.errors import ConfigError

_monitoring = partial(option_field, panel="Monitoring")


class MonitorConfig(StrictModel):
    """Options of ``--drift``, ``--capture`` and ``--events``."""

    drift: bool = _monitoring(
        False, "Drift detection: compare the last images with the validation images of the bundle. Drift is logged as an event."
    )
    drift_window: int = _monitoring(100, "Images in the sliding window of --drift.", ge=50, le=10_000)
    drift_interval_s: float = _monitoring(
        0.0, "Shortest time between two images of --drift, seconds. Set it for video: successive frames are not independent.", ge=0.0
    )
    capture: Path | None = _monitoring(
        None, "Folder for images that are worth labeling: uncertain, drifted, or sampled. It has a table for the labels.", metavar="DIR"
    )
    capture_mb: float = _monitoring(
        500.0, "Disk budget of --capture for each model, MB (10^6 bytes). The oldest are deleted first.", ge=1.0
    )
    capture_interval_s: float = _monitoring(10.0, "Shortest time between two captured images, seconds.", ge=0.0)
    capture_below: float = _monitoring(
        0.6, "Captures an image if its highest score is lower. Multi-label: if a score is near its threshold.", ge=0.0, le=1.0
    )
    capture_rate: float = _monitoring(0.001, "Ratio of randomly captured images, 0..1.", ge=0.0, le=1.0)
    events: Path | None = _monitoring(
        None, "SQLite file for events and daily counts. Default: events.sqlite in the folder of --capture.", metavar="FILE"
    )

    @model_validator(mode="after")
    def _has_purpose(self) -> Self:
        if self.events is not None and not self.on:
            raise ConfigError("--events needs --drift or --capture. Add one of them.")
        return self

    @property
    def on(self) -> bool:
        """True if images are observed."""
        return self.drift or self.capture is not None

    @property
    def events_file(self) -> Path | None:
        """SQLite file, or none."""
        return self.events or (self.capture / "events.sqlite" if self.capture else None)
