"""Execution settings of a variant: precision of the arithmetic, static batch size, execution provider and JPEG decoding.

A setting changes the computation, not the files. The accuracy gate measures at export which settings a variant may use
(``MeasuredSetting`` in the manifest). The device times these settings and stores the fastest (``Tuning``).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, TypeAlias

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.system.host import available_cores, fingerprint, versions

TUNING_NAME = "tuning.json"

Arithmetic: TypeAlias = Literal["f32", "bf16", "f16"]
Provider: TypeAlias = Literal["cpu", "xnnpack", "acl", "dnnl"]
Decode: TypeAlias = Literal["full", "scaled"]

# Properties of the host and libraries that decide which choice is the fastest.
_HOST_KEYS = ("cpu", "machine", "cores", "flags")
_LIBRARIES = ("edgetl", "onnxruntime", "openvino", "pillow", "numpy")


class ExecutionSetting(StrictModel):
    """Execution setting. The defaults are the settings of the export: float32, any batch size, full decoding.

    Attributes:
        precision: precision of the operations that the file stores as float32 or float16. ``bf16`` and ``f16`` need a CPU that computes
            with them (AVX512_BF16, AMX, ARM). OpenVINO only.
        static_batch: compile the network for one image. Larger batches are computed image by image. OpenVINO only.
        provider: execution provider of ONNX Runtime. All but ``cpu`` need a build of ONNX Runtime that contains the provider.
        decode: JPEG decoding, see ``PreprocessSpec``.
    """

    precision: Arithmetic = "f32"
    static_batch: bool = False
    provider: Provider = "cpu"
    decode: Decode = "full"

    @property
    def measured(self) -> ExecutionSetting:
        """The part of the setting that can change the scores, and that the accuracy gate therefore measures. A static batch does not."""
        return self.model_copy(update={"static_batch": False})

    @property
    def changes(self) -> int:
        """Number of differences from the default setting."""
        return sum(getattr(self, name) != field.default for name, field in type(self).model_fields.items())

    def describe(self) -> str:
        """Format the setting, such as ``bf16, batch 1, scaled decode``."""
        parts = [self.precision, *(["batch 1"] if self.static_batch else []), *([self.provider] if self.provider != "cpu" else [])]
        return ", ".join([*parts, *(["scaled decode"] if self.decode == "scaled" else [])])


DEFAULT_SETTING = ExecutionSetting()


class Choice(StrictModel):
    """Choice for running a bundle on a device.

    Attributes:
        variant: name of the variant.
        threads: threads per inference.
        setting: execution setting.
    """

    variant: str
    threads: int = Field(ge=1)
    setting: ExecutionSetting = DEFAULT_SETTING

    def describe(self) -> str:
        """Format the choice, such as ``openvino-fp32, 2 thread(s), bf16, batch 1``."""
        return f"{self.variant}, {self.threads} thread(s), {self.setting.describe()}"


class Timing(Choice):
    """Timing of a choice on a device.

    Attributes:
        whole_ms: median time from the encoded image to the prediction, ms.
        n: number of timed predictions.
        load_ms: time for loading the engine, checking the files and compiling the network in a new process, ms. None for slow choices.
        peak_rss_mb: peak resident memory of this process until its first prediction, MB (10^6 bytes). None for slow choices.
        golden_difference: largest difference of a golden score from the manifest.
    """

    whole_ms: float
    n: int
    load_ms: float | None = None
    peak_rss_mb: float | None = None
    golden_difference: float

    @property
    def choice(self) -> Choice:
        """The timed choice."""
        return Choice(variant=self.variant, threads=self.threads, setting=self.setting)


class Skipped(StrictModel):
    """Choice that was not timed, with the reason. ``setting`` is None if the reason concerns all settings of the variant."""

    variant: str
    setting: ExecutionSetting | None = None
    reason: str


class Tuning(StrictModel):
    """Result of tuning a bundle on a device (``tuning.json``).

    Attributes:
        schema_version: version of this format.
        name: name of the bundle.
        manifest_sha256: SHA-256 of the manifest. A tuning applies to exactly one bundle.
        created: time of the tuning, ISO 8601, UTC.
        host: properties of the CPU that decide which choice is the fastest.
        versions: versions of edgetl, the inference engines, Pillow and NumPy.
        max_threads: largest number of threads that was timed: the cores that the process may use, or the limit of the caller.
        image_source: ``files`` or ``golden images``.
        images: number of different images.
        chosen: fastest choice.
        timings: all timed choices, the fastest first.
        skipped: choices that were not timed.
        seconds: duration of the tuning, seconds.
        busy: cause of the load of the host, if it was busy during the tuning; empty if it was idle.
    """

    schema_version: Literal[1] = 1
    name: str
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    host: dict[str, str] = Field(default_factory=lambda: tuning_host())
    versions: dict[str, str] = Field(default_factory=lambda: tuning_versions())
    max_threads: int = Field(ge=1)
    image_source: Literal["files", "golden images"] = "golden images"
    images: int
    chosen: Choice
    timings: tuple[Timing, ...] = Field(min_length=1)
    skipped: tuple[Skipped, ...] = ()
    seconds: float
    busy: str = ""

    def outdated(self, manifest_sha256: str) -> str:
        """Return the reason why this tuning does not apply to a bundle on this host; empty if it applies.

        It applies to the same manifest, CPU, available cores and library versions.
        """
        if self.manifest_sha256 != manifest_sha256:
            return "it belongs to another bundle"
        host, found = tuning_host(), tuning_versions()
        for title, before, now in (("host", self.host, host), ("version", self.versions, found)):
            for name in sorted(before.keys() | now.keys()):
                if before.get(name) != now.get(name):
                    return f"{title} {name} was {before.get(name, 'missing')!r} and is {now.get(name, 'missing')!r}"
        return "" if self.chosen.threads <= available_cores() else "it uses more threads than there are cores"


def tuning_host() -> dict[str, str]:
    """Return the properties of this host with which a tuning is compared: CPU, machine, available cores and instruction sets."""
    host = fingerprint()
    return {name: host[name] for name in _HOST_KEYS}


def tuning_versions() -> dict[str, str]:
    """Return the versions of the libraries with which a tuning is compared."""
    found = versions()
    return {name: found[name] for name in _LIBRARIES if name in found}
