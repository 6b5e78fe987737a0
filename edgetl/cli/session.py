"""Session of a command: consoles, common options, logging, and output of results and errors."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from edgetl.cli.progress import shown_progress
from edgetl.cli.tables import failed_attempt_lines, outcomes_table
from edgetl.core import progress as core
from edgetl.core.config import StrictModel
from edgetl.core.contract import Outcome
from edgetl.core.files.names import printable
from edgetl.data.scan_notes import ScanNote
from edgetl.errors import ConfigError, EdgetlError, StoppedError

# Bytes of file names that are not UTF-8 (PEP 383). In JSON they occur only inside strings, where a backslash is doubled.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# Loggers with their own level, which ignore the level of the root logger.
_NOISY = ("lightning_fabric", "torch.utils.cpp_extension", "torch.onnx", "onnxscript", "nncf", "huggingface_hub.utils._http")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# Panel of the options that every command has.
OUTPUT = "Output"

JsonOption = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the result as JSON on standard output.")]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace the output if it exists. The old one is deleted after the new one is complete."),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="PATH",
        help="Label table (CSV) instead of class folders, with the column `file` and the label columns of the training.",
    ),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", rich_help_panel=OUTPUT, help="Show the log messages of libraries.")]


class Interrupted(BaseException):
    """Interruption by Ctrl-C or SIGTERM. It is no ``KeyboardInterrupt``, because typer and Lightning handle that one themselves.

    Attributes:
        number: number of the signal.
        saved: description of the saved state with the command that resumes it. None if nothing was saved.
    """

    def __init__(self, number: int, saved: str | None = None) -> None:
        super().__init__(number)
        self.number = number
        self.saved = saved


def is_first_process() -> bool:
    """Return True for the process that prints: the only one, or the first process of ``torchrun``."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def working(*, json_output: bool, verbose: bool) -> Iterator[core.Progress]:
    """Set up logging and warnings of a command, and yield its progress. With ``--json`` the progress prints nothing."""
    quiet = json_output or not is_first_process()
    with _library_logs(verbose=verbose), shown_progress(err, quiet=quiet) as progress, _own_logs():
        yield progress


@contextmanager
def _library_logs(*, verbose: bool) -> Iterator[None]:
    """Print the log messages of libraries while the block runs: all of them if ``verbose``, otherwise errors."""
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    levels = {"root": logging.INFO} if verbose else dict.fromkeys(("root", *_NOISY), logging.ERROR)
    before = {name: logging.getLogger(name).level for name in levels}
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            yield
    finally:
        root.removeHandler(handler)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _own_logs() -> Iterator[None]:
    """Print the log messages of edgetl while the block runs, such as the license of the weights."""
    logger, handler = logging.getLogger("edgetl"), _Console()
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Console(logging.Handler):
    """Log handler that prints lines on the error stream, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_first_process():
            err.print(escape(record.getMessage()), soft_wrap=True)


def print_json(value: StrictModel | dict[str, object]) -> None:
    """Print a JSON document on standard output, in UTF-8 on every terminal."""
    plain = value.model_dump(mode="json") if isinstance(value, StrictModel) else value
    text = _LONE_SURROGATE.sub(lambda found: f"\\{printable(found[0])}", json.dumps(plain, indent=2, ensure_ascii=False)) + "\n"
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def escape_unencodable() -> None:
    """Escape characters that the encoding of a stream (ASCII, Latin-1, a Windows code page) lacks, such as ``\\u732b``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_notes(notes: Sequence[ScanNote]) -> None:
    """Print the scan notes, one line per reason."""
    for note in notes:
        color = "cyan" if note.used else "yellow"
        out.print(f"[{color}]images:[/] {escape(note.describe())}", soft_wrap=True)


def print_error(error: EdgetlError, *, json_output: bool) -> None:
    """Print an error on the error stream, after its attempts and the table of its variants if there are any.

    With ``--json``, also print it as an object on the standard output.
    """
    if json_output:
        variants = {"variants": list(error.rows)} if error.rows else {}
        print_json({"error": {"class": type(error).__name__, "message": str(error), "exit_code": error.exit_code, **variants}})
    elif error.rows:
        rows = [Outcome.model_validate(row) for row in error.rows]
        for line in failed_attempt_lines(rows):
            err.print(escape(line), soft_wrap=True)
        err.print(outcomes_table(rows))
    prefix = "" if isinstance(error, StoppedError) else "[bold red]error:[/] "  # a stop by the user is not an error
    err.print(f"{prefix}{escape(str(error))}", soft_wrap=True)


def numbers(text: str | None, count: int, option: str) -> tuple[float, ...] | None:
    """Split a text such as ``0.5,0.5,0.5`` into ``count`` numbers.

    Raises:
        ConfigError: the text is not ``count`` numbers.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise ConfigError(f"{option} takes {count} numbers separated by commas; it was {text!r}.") from error
    if len(values) != count:
        raise ConfigError(f"{option} takes {count} numbers separated by commas; it was {text!r}.")
    return values
