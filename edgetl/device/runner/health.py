"""Health file of the runner: state, counts and last error, for probes and supervisors."""

from __future__ import annotations

from typing import Literal

from edgetl.core.config import StrictModel
from edgetl.device.runner.sinks.record import SinkStatus

State = Literal["not ready", "running", "waiting for the source", "waiting for a sink", "stopped"]


class Failure(StrictModel):
    """Last error.

    Attributes:
        time: UTC, ISO 8601.
        message: text of the error.
    """

    time: str
    message: str


class Health(StrictModel):
    """Content of the health file. It is replaced atomically.

    Attributes:
        schema_version: version of this format.
        time: time of writing, UTC, ISO 8601. A probe fails if it is older than 30 s.
        pid: process ID.
        state: state of the runner. ``not ready``: no release of the store can be loaded, for the reason in ``last_error``.
        uptime_s: time since the start, seconds.
        model: name of the bundle; none while the runner is not ready.
        release: release number of the bundle; none while the runner is not ready.
        variant: name of the variant; none while the runner is not ready.
        gallery: SHA-256 of the gallery of a k-NN model; none without one.
        source: source, as given.
        accepted: accepted frames. Each one has a record.
        predicted: frames with a prediction.
        failed: frames with an error: unreadable images.
        dropped: frames of a live source that were not accepted, because the runner was busy.
        missing: files of the folder that disappeared before they were read.
        fps: accepted frames per second since the last health file.
        reloads: loaded bundles since the start.
        sinks: state of each sink.
        last_error: last error of the source, a sink, an image or a reload; none without an error.
    """

    schema_version: Literal[1] = 1
    time: str
    pid: int
    state: State
    uptime_s: float
    model: str | None = None
    release: int | None = None
    variant: str | None = None
    gallery: str | None = None
    source: str
    accepted: int = 0
    predicted: int = 0
    failed: int = 0
    dropped: int = 0
    missing: int = 0
    fps: float = 0.0
    reloads: int = 0
    sinks: tuple[SinkStatus, ...] = ()
    last_error: Failure | None = None
