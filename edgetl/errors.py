"""Exception tree of edgetl, with the exit code of each class.

::

    EdgetlError                 base class
    ├── ConfigError         3   invalid option or configuration value
    ├── DataError           4   unusable image folder or label table
    ├── ImageError          5   unreadable image
    ├── BackboneError       6   missing or unusable backbone or weights
    ├── RunError            7   missing or damaged run folder, or a folder of another kind
    ├── BundleError         8   missing or malformed bundle, or a folder of another kind
    │   ├── IntegrityError  9   a file of a bundle differs from its hash in the manifest
    │   └── SignatureError 20   the signature of a bundle is invalid
    │       ├── UnsignedError   21   a bundle without a signature, where a key is required
    │       ├── UnknownKeyError 22   the key of the signature is not trusted
    │       └── RevokedKeyError 23   the key of the signature is revoked
    ├── TrainingError      10   training diverged or cannot continue
    ├── ExportError        11   a model could not be converted
    ├── AccuracyGateError  12   an exported variant failed the accuracy gate
    ├── EngineError        13   the inference engine rejects a model or fails to run it
    ├── MissingExtraError  14   a library of an optional extra is not installed
    ├── StorageError       15   a file cannot be written (disk full, no permission)
    ├── LicenseError       16   the license of the weights does not fit --license-policy
    ├── ContractError      17   no variant keeps the limits of the deployment contract
    ├── RequestError       18   failed HTTP request; ends the request, not the process
    ├── OutOfMemoryError   19   memory could not be allocated; also a ``MemoryError``
    ├── InstallError       24   a release was refused or failed its self-test; the active release stays
    │   └── DowngradeError 25   the release is older than the newest release that the store had
    ├── StoreError         26   missing or damaged store, or no healthy release
    ├── MeasurementError   27   a measurement is not valid, so that its comparison has no result
    ├── RegressionError    28   the latency is higher than in an earlier report, beyond the noise
    ├── GroupGapError      29   a large and significant gap between groups of images (``--fail-on-gap``)
    ├── UpdateRejectedError 30  the promotion gate rejected an update; the previous run stays current
    ├── GalleryError       31   missing, damaged or foreign gallery, or a bundle that cannot have one
    └── StoppedError      143   stopped by SIGTERM, state saved
        └── CancelledError 130  stopped by Ctrl-C, state saved

Other exit codes: 0 is success, 1 a bug (with a traceback), 2 a usage error.
Each message states the failure, its place, and the next action.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from edgetl.installation import install_command


class EdgetlError(Exception):
    """Base class of all errors that a user can cause and correct.

    Attributes:
        rows: attempts before the error, each an ``Outcome`` as JSON.
    """

    exit_code: ClassVar[int] = 3

    def __init_subclass__(cls, *, exit_code: int | None = None) -> None:
        super().__init_subclass__()
        cls.exit_code = cls.exit_code if exit_code is None else exit_code

    def __init__(self, message: str = "", *, rows: Iterable[Mapping[str, object]] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class ConfigError(EdgetlError, exit_code=3):
    """Invalid option or configuration value."""


class DataError(EdgetlError, exit_code=4):
    """Unusable image folder or label table."""


class ImageError(EdgetlError, exit_code=5):
    """Unreadable image, named in the message."""


class BackboneError(EdgetlError, exit_code=6):
    """Missing or unusable backbone or weights."""


class RunError(EdgetlError, exit_code=7):
    """Missing or damaged run folder, or a folder of another kind."""


class BundleError(EdgetlError, exit_code=8):
    """Missing or malformed bundle, or a folder of another kind."""


class IntegrityError(BundleError, exit_code=9):
    """A file of a bundle differs from its hash in the manifest."""


class SignatureError(BundleError, exit_code=20):
    """The signature of a bundle is invalid: another manifest, another key, another algorithm, or a damaged file."""


class UnsignedError(SignatureError, exit_code=21):
    """A bundle has no signature, but a key is required."""


class UnknownKeyError(SignatureError, exit_code=22):
    """The key of a signature is not one of the trusted keys."""


class RevokedKeyError(SignatureError, exit_code=23):
    """The key of a signature is on the revocation list."""


class TrainingError(EdgetlError, exit_code=10):
    """Training diverged or cannot continue."""


class ExportError(EdgetlError, exit_code=11):
    """A model could not be converted."""


class AccuracyGateError(EdgetlError, exit_code=12):
    """An exported variant failed the accuracy gate: its predictions differ too much from the trained model."""


class EngineError(EdgetlError, exit_code=13):
    """The inference engine rejects a model or fails to run it."""


class MissingExtraError(EdgetlError, exit_code=14):
    """A library of an optional extra is not installed. The message contains the pip command.

    Attributes:
        alternative: sentence about a way that needs no installation, or an empty text.
    """

    def __init__(self, library: str, extra: str, *, alternative: str = "") -> None:
        self.alternative = alternative
        command = install_command(extra)
        if alternative:
            super().__init__(f"{library} is not installed. {alternative} Or install {library} with: {command}")
        else:
            super().__init__(f"{library} is not installed. Install it with: {command}")


class StorageError(EdgetlError, exit_code=15):
    """A file cannot be written (disk full, no permission), or the storage does not deliver an input of batch scoring."""


class LicenseError(EdgetlError, exit_code=16):
    """The license of the weights does not fit ``license_policy``."""


class ContractError(EdgetlError, exit_code=17):
    """No variant keeps the limits of the deployment contract. The message names the clause."""


class RequestError(EdgetlError, exit_code=18):
    """Failed HTTP request. The message is sent to the client.

    Attributes:
        status: HTTP status code.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class OutOfMemoryError(EdgetlError, MemoryError, exit_code=19):
    """Memory could not be allocated. The message names the operation, the limit and the remedy."""


class InstallError(EdgetlError, exit_code=24):
    """A release was refused or failed its self-test. The active release stays."""


class DowngradeError(InstallError, exit_code=25):
    """The release is older than the newest release that the store had."""


class StoreError(EdgetlError, exit_code=26):
    """Missing or damaged store, or a store without a healthy release."""


class MeasurementError(EdgetlError, exit_code=27):
    """A measurement is not valid (busy or throttled host), so that its comparison with an earlier report has no result."""


class RegressionError(EdgetlError, exit_code=28):
    """The latency is higher than in an earlier report, beyond the noise."""


class GroupGapError(EdgetlError, exit_code=29):
    """The evaluation found a large and significant gap between groups of images."""


class UpdateRejectedError(EdgetlError, exit_code=30):
    """The promotion gate rejected an update. The previous run stays current."""


class GalleryError(EdgetlError, exit_code=31):
    """Missing or damaged gallery of a k-NN bundle, a gallery of another bundle, or a bundle that cannot have one."""


class StoppedError(EdgetlError, exit_code=143):
    """SIGTERM stopped the process after it saved its state."""


class CancelledError(StoppedError, exit_code=130):
    """Ctrl-C (SIGINT) stopped the process after it saved its state."""


def error_of(name: str, message: str) -> EdgetlError:
    """Return the error of another process: its class by name, which determines the exit code, and its message."""
    kind = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, EdgetlError)):
        kind = EngineError
    error: EdgetlError = kind.__new__(kind)
    Exception.__init__(error, message)
    error.rows = ()
    return error


# OpenVINO messages start with locations in its source code and end with the operators that it cannot convert.
_OPENVINO_PREFIXES = ("Exception from ", "Check 'false' failed ")
_OPENVINO_UNKNOWN = "No conversion rule found"


def first_line(error: BaseException) -> str:
    """Return the first informative line of a third-party exception, with a full stop. Without a message, return the class name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    unknown = [line.removeprefix("-- ") for line in lines if _OPENVINO_UNKNOWN in line]
    informative = [line for line in lines if not line.startswith(_OPENVINO_PREFIXES)]
    line = (unknown or informative or [type(error).__name__])[0]
    return line if line.endswith((".", "!", "?")) else f"{line}."
