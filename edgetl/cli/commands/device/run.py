"""Command ``edgetl run``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.options import build, given, options_of, part
from edgetl.cli.session import VerboseOption, err, out, working
from edgetl.core.bundle import open_bundle
from edgetl.core.config import read_bytes
from edgetl.core.files.names import printable
from edgetl.core.images.decode import EXTENSIONS
from edgetl.core.options import flat
from edgetl.core.store import active_release, is_store
from edgetl.device.monitoring.config import MonitorConfig
from edgetl.device.runner.config import RunConfig
from edgetl.device.runner.sinks.address import LineAddress, NetworkAddress, parse_sink
from edgetl.errors import ConfigError, DataError, MissingExtraError

if TYPE_CHECKING:
    from edgetl.core.manifest import Manifest
    from edgetl.device.monitoring.monitor import Monitor
    from edgetl.device.runner.health import Health
    from edgetl.device.runner.model import Check
    from edgetl.device.runner.sinks.outbox import Connection
    from edgetl.device.runner.sinks.record import Sink
    from edgetl.device.runner.sources.frame import Source
    from edgetl.device.runner.waiting import Stop


@options_of(MonitorConfig)
@options_of(RunConfig)
def run_command(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="BUNDLE|STORE", help="Bundle folder, a link to one, or a store.")],
    source: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            rich_help_panel="Common options",
            help="Images to predict: a folder, a video file, the number or URL of a camera, or - for standard input.",
        ),
    ],
    systemd: Annotated[bool, typer.Option("--systemd", help="Print a systemd unit for this command, and end.")] = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Predict a stream of images, and deliver one record per image.

    The bundle is loaded once. An unreadable image becomes a record with an error. A source or sink that disappears is used again when it
    returns. SIGTERM finishes the image in progress.
    """
    if os.name == "nt":
        raise ConfigError("edgetl run needs Linux or macOS. On Windows, run it in a container.")
    config = build(RunConfig, **given(RunConfig, context, part(RunConfig, options)))
    monitoring = build(MonitorConfig, **given(MonitorConfig, context, part(MonitorConfig, options)))
    _check_source(source, config)
    if is_store(model):
        _check_store(model, context)
    if systemd:
        out.file.write(_unit(model, source, config, flat(config, only_given=True) | flat(monitoring, only_given=True)))
        return
    with working(json_output=True, verbose=verbose):
        counts = _run(model, source, config, monitoring)
    err.print(
        f"{counts.accepted} images: {counts.predicted} predicted, {counts.failed} unreadable"
        + "".join(f", {number} {name}" for name, number in (("dropped", counts.dropped), ("missing", counts.missing)) if number),
        soft_wrap=True,
    )


def _run(path: Path, source: str, config: RunConfig, monitoring: MonitorConfig) -> Health:
    from edgetl.device.runner.limits import follow_memory_limit
    from edgetl.device.runner.loop import Runner
    from edgetl.device.runner.model import Model, wait_for_model
    from edgetl.device.runner.not_ready import NotReady
    from edgetl.device.runner.systemd import Notifier
    from edgetl.device.runner.waiting import Stop

    stop = Stop()
    images = _open_source(source, config, stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_request_stop, stop))
    notifier = Notifier(os.environ)
    load_model = partial(Model, path, variant=config.variant, threads=config.threads, tuning=config.tuning, check=_check_of(config.trust))
    waiting = NotReady(images.name, notifier, config.health)
    model = wait_for_model(load_model, stop, waiting.report) if is_store(path) else load_model()
    if model is None or stop.requested:
        return waiting.stop()
    sinks = [_open_sink(parse_sink(text), config) for text in config.sink]
    follow_memory_limit()
    monitor = _open_monitor(monitoring, model.manifest) if monitoring.on else None
    runner = Runner(model, images, sinks, stop=stop, notifier=notifier, health=config.health)
    runner.max_fps, runner.limit, runner.top, runner.watch = config.max_fps, config.limit, config.top, config.watch
    runner.observer = monitor
    err.print(f"running {escape(model.name)} ({model.variant}) on {escape(printable(images.name))}", soft_wrap=True)
    with monitor or nullcontext():
        return runner.run(flush_s=config.flush_s)


def _check_of(trust: Path | None) -> Check | None:
    """Return the check of signatures with the keys of ``trust``, which reads keys and revocations each time; None without keys."""
    if trust is None:
        return None
    # Imported here, because cryptography takes 8 MB of memory.
    from edgetl.device.runner.model import Check
    from edgetl.device.signature import check_gallery, open_trust, verified_bundle

    return Check(lambda path: verified_bundle(path, open_trust(trust))[0], lambda gallery: check_gallery(gallery, open_trust(trust)))


def _open_monitor(config: MonitorConfig, manifest: Manifest) -> Monitor:
    # Imported here, because SQLite takes 2 MB of memory that a runner without monitoring does not need.
    from edgetl.device.monitoring.monitor import Monitor

    monitor = Monitor(config)
    monitor.add(manifest)
    return monitor


def _request_stop(stop: Stop, number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
    stop.request()


def _is_camera(source: str) -> bool:
    return source.isdecimal() or source.startswith("/dev/") or "://" in source


def _check_store(store: Path, context: typer.Context) -> None:
    """Check that no option for a bundle was given on the command line. A device may set EDGETL_TRUST for its installations.

    Raises:
        ConfigError: such an option was given.
    """
    if "COMMANDLINE" in {getattr(context.get_parameter_source(name), "name", "") for name in ("tuning", "trust")}:
        raise ConfigError(
            f"{store} is a store. It is tuned, and its signature is checked, at the installation. Remove --tuning and --trust."
        )


def _check_source(source: str, config: RunConfig) -> None:
    """Check that the source exists and that the options fit it.

    Raises:
        ConfigError: an option is for another source.
        DataError: there is no such source.
    """
    path, camera = Path(source), _is_camera(source)
    folder = source != "-" and not camera and (path.is_dir() or config.follow)
    video = source != "-" and not camera and not folder
    wrong = [
        f"--{name} is for {kind}"
        for name, kind, fits in (
            ("follow", "a folder", folder),
            ("settle-s", "a folder with --follow", folder and config.follow),
            ("processed", "a folder", folder),
            ("loop", "a folder or a video file", folder or video),
            ("stdin", "standard input", source == "-"),
        )
        if name.replace("-", "_") in config.model_fields_set and not fits
    ]
    if wrong:
        raise ConfigError(f"--source {printable(source)}: {'; '.join(wrong)}. Remove the option.")
    if video and not path.exists():
        raise DataError(f"--source {printable(source)} does not exist. Give a folder, a video file, a camera or -.")
    if video and path.suffix.lower() in EXTENSIONS:
        raise DataError(f"--source {printable(source)} is an image. Give a folder or a video, or use: edgetl predict BUNDLE IMAGE")


def _open_source(source: str, config: RunConfig, stop: Stop) -> Source:
    from edgetl.device.runner.sources.folder import FolderSource, Mode
    from edgetl.device.runner.sources.standard_input import StandardInput

    if source == "-":
        return StandardInput(0, form=config.stdin, stop=stop)
    if not _is_camera(source) and (Path(source).is_dir() or config.follow):
        mode: Mode = "follow" if config.follow else "loop" if config.loop else "once"
        return FolderSource(Path(source), mode=mode, settle_s=config.settle_s, processed=config.processed, stop=stop)
    if find_spec("cv2") is None:
        raise MissingExtraError("opencv-python-headless", "video")
    from edgetl.device.runner.sources.video import LiveVideo, VideoFile

    if _is_camera(source):
        return LiveVideo(int(source) if source.isdecimal() else source, stop=stop)
    return VideoFile(Path(source), loop=config.loop, stop=stop)


def _open_sink(address: LineAddress | NetworkAddress, config: RunConfig) -> Sink:
    if isinstance(address, LineAddress):
        from edgetl.device.runner.sinks.lines import LineSink

        return LineSink(address.path, address.form)
    from edgetl.device.runner.sinks.outbox import Outbox
    from edgetl.device.runner.sinks.spool import Spool, spool_name

    if address.kind == "mqtt" and find_spec("paho") is None:
        raise MissingExtraError("paho-mqtt", "mqtt")
    secret = read_bytes(config.secret_file, ConfigError, max_bytes=4096).decode("utf-8", "replace").strip() if config.secret_file else None
    spool = Spool(config.spool / spool_name(address.name), int(config.spool_mb * 1e6)) if config.spool else None

    def connect() -> Connection:
        if address.kind == "mqtt":
            from edgetl.device.runner.sinks.to_mqtt import MqttConnection

            return MqttConnection(address.url, secret)
        from edgetl.device.runner.sinks.to_http import HttpConnection

        return HttpConnection(address.url, secret)

    return Outbox(address.name, connect, spool)


def _unit(model: Path, source: str, config: RunConfig, options: dict[str, Any]) -> str:
    """Return the systemd unit of this command line, with absolute paths. ``options`` are the given options."""
    import pwd

    from edgetl.core.system.host import memory_bytes
    from edgetl.device.runner.systemd import UnitPaths, unit
    from edgetl.runtime.engine import choose_variant
    from edgetl.runtime.trial import memory_for

    bundle = active_release(model).open() if is_store(model) else open_bundle(model)
    needed = memory_for(choose_variant(bundle, config.variant).size_bytes)
    if source == "-":
        raise ConfigError("--systemd needs another --source than -: a service has no standard input.")
    program = Path(sys.executable).with_name("edgetl")
    command = [str(program)] if program.exists() else [sys.executable, "-m", "edgetl.cli.app"]
    place = source if _is_camera(source) else str(Path(source).absolute())
    writable = [] if config.processed == "keep" else [Path(source).absolute()]
    if is_store(model):
        writable.append(model.absolute())  # the health of a new release is recorded there
        options.pop("trust", None)  # of the environment, for the installation
    arguments: list[str] = ["run", str(model.absolute()), "--source", place]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        values: Sequence[object] = value if isinstance(value, tuple) else (value,)
        for item in values:
            text, folders = _absolute(name, item)
            writable += folders
            arguments += [flag] if item is True else [] if item is False else [flag, text]
    user = pwd.getpwuid(os.getuid()).pw_name
    paths = UnitPaths(tuple(dict.fromkeys(writable)), camera=_is_camera(source) and "://" not in source)
    endless = config.follow or config.loop or _is_camera(source)
    return unit(
        [*command, *arguments],
        paths,
        user=user,
        endless=endless,
        memory_max_mb=min(needed, memory_bytes() * 3 // 4) // 1_000_000,
        # Repeats an outdated tuning with the cores of the service. With --watch, the runner then loads the new choice.
        after_start=[*command, "tune", str(model.absolute())] if is_store(model) else [],
    )


def _absolute(name: str, value: object) -> tuple[str, list[Path]]:
    """Return an option's value with an absolute path, and the folders that the service must be able to write."""
    if name == "sink":
        address = parse_sink(str(value))
        if isinstance(address, LineAddress) and address.path is not None:
            path = address.path.absolute()
            return f"{address.form}:{path}", [path.parent]
    elif isinstance(value, Path):
        path = value.absolute()
        return str(path), [path] if name in ("spool", "capture") else [path.parent] if name in ("health", "events") else []
    elif name == "processed" and value not in ("keep", "delete"):
        path = Path(str(value)).absolute()
        return str(path), [path]
    return str(value), []
