"""Every exception that edgetl raises on purpose, and the exit code of each.

::

    EdgetlError                 1 is a bug, 2 is usage (typer); ours start at 3
    ├── ConfigError         3   an option or a configuration value cannot be used
    ├── DataError           4   the image folder cannot be used
    ├── ImageError          5   one image cannot be read
    ├── BackboneError       6   the backbone or its weights cannot be found or used
    ├── RunError            7   a run folder is missing, damaged or of the wrong kind
    ├── BundleError         8   a bundle is missing, malformed or of the wrong kind
    │   └── IntegrityError  9   a file of a bundle is not the one that the manifest names
    ├── TrainingError      10   training diverged or cannot go on
    ├── ExportError        11   a model could not be converted
    ├── AccuracyGateError  12   an exported variant does not predict like the trained model
    ├── EngineError        13   the inference engine refuses a model or fails on it
    ├── MissingExtraError  14   a library of an optional extra is not installed
    ├── StorageError       15   a file cannot be written (disk full, no permission)
    ├── LicenseError       16   the license of the weights does not fit the policy
    ├── ContractError      17   no variant keeps the limits of a deployment contract
    ├── RequestError       18   a request to the server failed; ends the request, never the process
    ├── OutOfMemoryError   19   memory could not be allocated; also a ``MemoryError``
    └── StoppedError      143   SIGTERM came; the state was saved
        └── CancelledError 130  Ctrl-C came; the state was saved

A message states what happened, where, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar


class EdgetlError(Exception):
    """Base of all errors that a user can cause and correct; ``rows`` are the attempts before it, each an ``Outcome`` as JSON."""

    exit_code: ClassVar[int] = 3

    def __init_subclass__(cls, *, exit_code: int | None = None) -> None:
        super().__init_subclass__()
        cls.exit_code = cls.exit_code if exit_code is None else exit_code

    def __init__(self, message: str = "", *, rows: Iterable[Mapping[str, object]] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class ConfigError(EdgetlError, exit_code=3):
    """An option or a configuration value cannot be used."""


class DataError(EdgetlError, exit_code=4):
    """The image folder cannot be used."""


class ImageError(EdgetlError, exit_code=5):
    """One image cannot be read; the text names it."""


class BackboneError(EdgetlError, exit_code=6):
    """The backbone or its weights cannot be found or used."""


class RunError(EdgetlError, exit_code=7):
    """A run folder is missing, damaged or of the wrong kind."""


class BundleError(EdgetlError, exit_code=8):
    """A bundle is missing, malformed or of the wrong kind."""


class IntegrityError(BundleError, exit_code=9):
    """A file of a bundle is not the one that the manifest names."""


class TrainingError(EdgetlError, exit_code=10):
    """Training diverged or cannot go on."""


class ExportError(EdgetlError, exit_code=11):
    """A model could not be converted."""


class AccuracyGateError(EdgetlError, exit_code=12):
    """An exported variant does not predict like the trained model."""


class EngineError(EdgetlError, exit_code=13):
    """The inference engine refuses a model or fails on it."""


class MissingExtraError(EdgetlError, exit_code=14):
    """A library of an optional extra is not installed; the text is the pip command."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed. Install it with: pip install 'edgetl[{extra}]'")


class StorageError(EdgetlError, exit_code=15):
    """A file cannot be written (disk full, no permission)."""


class LicenseError(EdgetlError, exit_code=16):
    """The license of the weights does not fit the policy of the training."""


class ContractError(EdgetlError, exit_code=17):
    """No variant keeps the limits of a deployment contract; the text names the clause."""


class RequestError(EdgetlError, exit_code=18):
    """A request to the server failed; ``status`` is the HTTP status, the text goes to the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class OutOfMemoryError(EdgetlError, MemoryError, exit_code=19):
    """Memory could not be allocated; the text names the work, the limit and the remedy."""


class StoppedError(EdgetlError, exit_code=143):
    """SIGTERM ended the process, which saved its state before it did."""


class CancelledError(StoppedError, exit_code=130):
    """Ctrl-C (SIGINT) ended the process, after it saved its state."""


# OpenVINO begins its messages with places in its own source, and ends them with the operators that it cannot convert.
_OPENVINO_PREFIXES = ("Exception from ", "Check 'false' failed ")
_OPENVINO_UNKNOWN = "No conversion rule found"


def first_line(error: BaseException) -> str:
    """First informative line of a third-party exception, ending in a full stop; the exception's class where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    unknown = [line.removeprefix("-- ") for line in lines if _OPENVINO_UNKNOWN in line]
    informative = [line for line in lines if not line.startswith(_OPENVINO_PREFIXES)]
    line = (unknown or informative or [type(error).__name__])[0]
    return line if line.endswith((".", "!", "?")) else f"{line}."
