"""Tuning of a release in a separate process. An engine that crashes, hangs or exhausts the memory ends only that process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from edgetl.core.bundle import open_bundle
from edgetl.core.config import StrictModel, parse_json
from edgetl.core.files.atomic import storage_error, write_text
from edgetl.core.progress import Progress, silent
from edgetl.core.store import Release
from edgetl.core.system.child_process import child_command, child_environment
from edgetl.core.system.execution import Tuning
from edgetl.core.system.host import available_cores
from edgetl.device.tuning import FINALISTS, TuneConfig, tune
from edgetl.errors import EdgetlError, EngineError, error_of
from edgetl.runtime.release import read_tuning
from edgetl.runtime.trial import describe_end, limit_process, memory_for, take_standard_output

_log = logging.getLogger(__name__)

# Time limit of the process, seconds, in addition to twice the time limit of the tuning.
_SPARE_S = 60.0


class _Job(StrictModel):
    """Job of the child process."""

    folder: str
    manifest_sha256: str
    config: TuneConfig
    images: tuple[str, ...]


class _Message(StrictModel):
    """Message of the child process, one line of JSON: progress, an error, or the result."""

    stage: str = ""
    done: int = 0
    total: int = 0
    error: str = ""
    error_class: str = ""
    tuning: Tuning | None = None


def tune_release(release: Release, config: TuneConfig | None = None, *, images: Sequence[Path] = (), progress: Progress = silent) -> Tuning:
    """Tune a release of a store, and write the result to ``Release.tuning``. ``edgetl.load(STORE)`` uses it.

    A tuning that applies to this host is not repeated, unless ``config.force`` is set or it was made for other options.

    Args:
        release: release to tune.
        config: largest number of threads, and time limit.
        images: image files to time, as for ``tune``.
        progress: called before each choice.

    Raises:
        StorageError: the result cannot be written.
        EngineError: the process crashed or hung, or no variant can be used.
        EdgetlError: as ``tune``.
    """
    config = config or TuneConfig()
    present, reason = read_tuning(release)
    if present is not None:
        reason = reason or _other_options(present, config, images)
        if not reason and not config.force:
            _log.info("release %d is tuned for this host already. --force repeats it.", release.record.release)
            return present
        if reason:
            _log.info("the tuning of release %d is repeated: %s.", release.record.release, reason)
    folder, sha256 = str(release.path.absolute()), release.record.manifest_sha256
    tuning = _run_child(_Job(folder=folder, manifest_sha256=sha256, config=config, images=tuple(map(str, images))), progress)
    try:
        release.tuning.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(release.tuning, error) from error
    write_text(release.tuning, tuning.model_dump_json(indent=1) + "\n")
    return tuning


def _other_options(tuning: Tuning, config: TuneConfig, images: Sequence[Path]) -> str:
    """Return the reason why a tuning does not fit the options; empty if it fits."""
    if config.threads is not None and min(config.threads, available_cores()) != tuning.max_threads:
        return f"it was limited to {tuning.max_threads} thread(s)"
    return "it used the golden images" if images and tuning.image_source != "files" else ""


def _run_child(job: _Job, progress: Progress) -> Tuning:
    command, pipe = child_command(__name__, run_tuning.__name__), subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=child_environment())
    except OSError as error:
        raise EngineError(f"the tuning cannot be started: {error.strerror}.") from error
    timer = threading.Timer(2 * job.config.max_seconds + _SPARE_S, process.kill)
    timer.start()
    try:
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(job.model_dump_json().encode() + b"\n")
        for line in process.stdout:
            message = parse_json(line, _Message, EngineError, name="the report")
            if message.error_class:
                raise error_of(message.error_class, message.error)
            if message.tuning is not None:
                return message.tuning
            progress(message.stage, message.done, message.total)
        raise EngineError(f"the tuning failed: {describe_end(process.wait())}.")
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def run_tuning() -> None:
    """Run a tuning in the child process: read a job from the standard input, and write messages to the standard output."""
    report = take_standard_output()
    job = parse_json(sys.stdin.buffer.readline(), _Job, EngineError, name="the job")

    def send(message: _Message) -> None:
        os.write(report, message.model_dump_json().encode() + b"\n")

    try:
        bundle = open_bundle(job.folder)
        if bundle.manifest_sha256 != job.manifest_sha256:
            raise EngineError("the manifest was changed since the installation.")
        limit_process(memory_for(FINALISTS * max(variant.size_bytes for variant in bundle.manifest.variants)), oom_score=1000)
        send(
            _Message(
                tuning=tune(
                    bundle,
                    job.config,
                    images=[Path(image) for image in job.images],
                    progress=lambda stage, done, total: send(_Message(stage=stage, done=done, total=total)),
                )
            )
        )
    except EdgetlError as error:
        send(_Message(error=str(error), error_class=type(error).__name__))
