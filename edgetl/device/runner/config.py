"""Configuration of the runner: source, sinks, model, operation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from edgetl.core.config import StrictModel
from edgetl.core.options import COMMON, option_field
from edgetl.device.runner.sinks.address import NetworkAddress, parse_sink
from edgetl.device.runner.sources.standard_input import Form
from edgetl.errors import ConfigError

_common = partial(option_field, panel=COMMON)
_source = partial(option_field, panel="Source")
_sink = partial(option_field, panel="Sinks")
_operation = partial(option_field, panel="Operation")


def _listed(value: object) -> object:
    """Accept one sink or several (pydantic validator)."""
    return (value,) if isinstance(value, str) else value


class RunConfig(StrictModel):
    """Options of ``edgetl run``."""

    sink: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] = _common(
        ("jsonl",),
        "Receiver of the records: jsonl or csv (standard output), jsonl:FILE, csv:FILE, mqtt://HOST/TOPIC, mqtts://, http://HOST/PATH or "
        "https://. Can be repeated.",
        metavar="SINK",
    )
    variant: str | None = _common(
        None,
        "Variant to run, such as openvino-int8. Default: the tuned one of a store, or the first with an installed engine.",
        metavar="NAME",
    )
    threads: int | None = _common(
        None, "CPU threads per inference. Default: as tuned, as in the contract, or all cores within the CPU quota.", ge=1
    )
    tuning: Path | None = _common(None, "Result of `edgetl tune` on this host, for a bundle. A store has its own.", metavar="FILE")
    max_fps: float | None = _common(None, "Largest number of frames per second. Default: no limit.", gt=0)
    follow: bool = _source(False, "Wait for new files in the folder of --source instead of ending after the last one.")
    loop: bool = _source(False, "Start again after the last image of the folder, or the last frame of the video.")
    settle_s: float = _source(
        1.0,
        "Time without a change after which a new file of --follow is complete, seconds.",
        ge=0,
    )
    processed: str = _source(
        "keep",
        "Action for a file of a folder after all sinks have its record: keep, delete, or the folder to move it to.",
        metavar="ACTION",
    )
    stdin: Form = _source("names", "Content of standard input (--source -): file names, one per line, or images with their length.")
    limit: int | None = _source(None, "Number of frames after which the process ends. Default: no limit.", ge=1)
    top: int | None = _sink(None, "Number of scores in a record, the highest first. Default: all.", ge=1)
    spool: Path | None = _sink(
        None, "Folder for records that a network sink cannot take. They are delivered later, also after a restart. Default: memory only."
    )
    spool_mb: float = _sink(64.0, "Largest spool of each sink, MB (10^6 bytes). No frame is accepted while it is full.", ge=0.1)
    secret_file: Path | None = _sink(None, "File with the password of an MQTT user, or the bearer token of HTTP.")
    flush_s: float = _sink(5.0, "Time to deliver waiting records at the end of the process, seconds.", ge=0)
    watch: bool = _operation(False, "Load a new bundle or active release between two frames.")
    trust: Path | None = _operation(
        None,
        "Folder of trusted public keys. Loads only a bundle with a valid signature. A store checks it at the installation.",
        metavar="DIR",
    )
    health: Path | None = _operation(None, "Health file: JSON with time, counts and last error, replaced every 5 s.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        addresses = [parse_sink(text) for text in self.sink]
        if len(set(addresses)) < len(addresses):
            raise ConfigError("--sink: an address is given twice. Remove one.")
        if self.follow and self.loop:
            raise ConfigError("--follow and --loop exclude each other. Remove one.")
        if self.loop and self.processed != "keep":
            raise ConfigError("--loop needs the processed files. Remove --processed.")
        if self.secret_file and not any(isinstance(address, NetworkAddress) for address in addresses):
            raise ConfigError("--secret-file is for a network sink. Remove it.")
        return self
