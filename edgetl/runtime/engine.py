"""Engine interface for running a network, and the selection of an engine."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle
from edgetl.core.manifest import Format, Manifest, Variant
from edgetl.core.preprocess import Batch
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting
from edgetl.core.system.host import available_cores, versions
from edgetl.core.system.memory import is_out_of_memory, out_of_memory
from edgetl.errors import BundleError, ConfigError, EngineError, MissingExtraError
from edgetl.installation import install_command
from edgetl.runtime.engine_versions import version_hint
from edgetl.runtime.model_io import Ports, check_ports

_LIBRARIES: dict[Format, str] = {"onnx": "onnxruntime", "openvino": "openvino"}


class Engine(Protocol):
    """Engine with a loaded network. ``run`` may be called from several threads."""

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """Return the logits float32 ``[batch, classes]`` of a batch: float32 ``[batch, 3, H, W]``, or pixels (``Variant.input_form``)."""


class LoadedEngine(Engine, Protocol):
    """Engine with a network that was loaded from a file."""

    @property
    def ports(self) -> Ports:
        """Inputs and outputs of the network."""

    def run_outputs(self, batch: Batch, names: Sequence[str], /) -> list[NDArray[np.float32]]:
        """Return several outputs of a batch, by their names. Errors as ``run``."""


def installed(format_: Format) -> bool:
    """Return True if the engine for ``format_`` is installed."""
    return importlib.util.find_spec(_LIBRARIES[format_]) is not None


def choose_variant(bundle: Bundle, name: str | None) -> Variant:
    """Return the variant ``name``. Without a name, return the first variant with an installed engine.

    Raises:
        BundleError: no variant has this name.
        MissingExtraError: no engine for the bundle is installed.
    """
    return candidates(bundle, name)[0]


def candidates(bundle: Bundle, name: str | None) -> list[Variant]:
    """Return the variant ``name`` alone. Without a name, return all variants with an installed engine, in the order of the manifest.

    Raises:
        BundleError: no variant has this name.
        MissingExtraError: no engine for the bundle is installed.
    """
    if name is not None:
        return [bundle.variant(name)]
    found = [variant for variant in bundle.manifest.variants if installed(variant.format)]
    if not found:
        raise missing_engine(bundle, bundle.manifest.variants[0])
    return found


def missing_engine(bundle: Bundle, variant: Variant) -> MissingExtraError:
    """Return the error of a variant without an installed engine. The message names another variant of the bundle that has one."""
    library = _LIBRARIES[variant.format]
    other = next((item for item in bundle.manifest.variants if installed(item.format)), None)
    alternative = "" if other is None else f"Use --variant {other.name}, which runs in the installed {_LIBRARIES[other.format]}."
    return MissingExtraError(library, library, alternative=alternative)


def read_variant(bundle: Bundle, variant: Variant) -> list[bytes]:
    """Read the files of a variant and check their hashes. The order is that of ``load_engine``.

    Raises:
        BundleError: the manifest lists a wrong number of files for the variant.
        IntegrityError: a file does not match the manifest.
    """
    wanted = 1 if variant.format == "onnx" else 2
    if len(variant.files) != wanted:
        raise BundleError(f"{bundle.path}: {variant.name} has {len(variant.files)} file(s), expected {wanted}. Export the bundle again.")
    return [bundle.read(file) for file in variant.files]


def default_threads(manifest: Manifest) -> int:
    """Return the thread count of the bundle's contract, or the number of cores available to this process."""
    cores = available_cores()
    return min(manifest.contract.chosen.threads, cores) if manifest.contract else cores


def open_engine(
    bundle: Bundle, variant: Variant, *, threads: int | None = None, setting: ExecutionSetting = DEFAULT_SETTING
) -> LoadedEngine:
    """Check the files of a variant and load them in its engine.

    Args:
        bundle: opened bundle.
        variant: variant to load.
        threads: threads per inference. None uses the thread count of the bundle's contract, or all cores available to this process.
        setting: execution setting.

    Returns:
        the engine with the loaded network.

    Raises:
        ConfigError: ``threads`` is less than 1.
        IntegrityError: a file does not match the manifest.
        EngineError: the engine cannot load the file, or the network does not match the manifest. The message names the file.
        MissingExtraError: the engine is not installed.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads} is not valid. Set 1 or more.")
    if not installed(variant.format):
        raise missing_engine(bundle, variant)
    files = read_variant(bundle, variant)
    manifest = bundle.manifest
    if threads is None:
        threads = default_threads(manifest)
    try:
        engine = load_engine(variant.format, files, threads=threads, setting=setting)
        check_ports(engine.ports, variant, manifest)
    except EngineError as error:
        library = _LIBRARIES[variant.format]
        hint = version_hint(library, versions().get(library), manifest.versions.get(library))
        raise EngineError(f"{bundle.path / variant.files[0].path}: {error}{hint}") from error
    return engine


def load_engine(format_: Format, files: Sequence[bytes], *, threads: int, setting: ExecutionSetting = DEFAULT_SETTING) -> LoadedEngine:
    """Load a network from the bytes of its files.

    Args:
        format_: format of the files.
        files: the ONNX file, or the ``.xml`` and ``.bin`` of the IR.
        threads: threads per inference.
        setting: execution setting.

    Returns:
        the engine with the loaded network.

    Raises:
        EngineError: the file is invalid, the engine cannot load it or does not support the setting, or the engine cannot be imported.
        OutOfMemoryError: there is too little memory.
        MissingExtraError: the engine is not installed.
    """
    with _imports(format_):
        return _load(format_, files, threads, setting)


def supported_settings(format_: Format) -> tuple[ExecutionSetting, ...]:
    """Return the execution settings of an engine on this host that the accuracy gate measures, all with full decoding.

    Raises:
        EngineError: the engine cannot be imported.
        MissingExtraError: the engine is not installed.
    """
    with _imports(format_):
        match format_:
            case "onnx":
                from edgetl.runtime.ort import providers

                return tuple(ExecutionSetting(provider=provider) for provider in providers())
            case "openvino":
                from edgetl.runtime.ov import precisions

                return tuple(ExecutionSetting(precision=precision) for precision in precisions())
            case _:
                assert_never(format_)


@contextmanager
def _imports(format_: Format) -> Iterator[None]:
    """Disable the telemetry of an engine before its import, and report an engine that is missing or cannot be imported."""
    library = _LIBRARIES[format_]
    if not installed(format_):
        raise MissingExtraError(library, library)
    disable_telemetry()
    try:
        yield
    except ImportError as error:
        if is_out_of_memory(error):
            raise out_of_memory(f"loading {library}") from error
        raise EngineError(
            f"{library} is installed but cannot be imported: {error}. Install it again with: "
            f"{install_command(library, '--force-reinstall')}"
        ) from error


def disable_telemetry() -> None:
    """Disable the telemetry of the engines. Settings of the user stay. Call this before an engine is imported.

    Importing ONNX Runtime (1.31) writes ``~/.cache/Microsoft`` and ``.ses`` next to temporary files, and contains the address of a
    collector. Importing OpenVINO (2026.4) writes ``~/intel`` and calls its telemetry client. A device may have no writable folder and no
    network, and its user did not consent.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO and NNCF have no setting per process. They skip telemetry if this package cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _load(format_: Format, files: Sequence[bytes], threads: int, setting: ExecutionSetting) -> LoadedEngine:
    match format_:
        case "onnx":
            from edgetl.runtime.onnx_check import check_onnx
            from edgetl.runtime.ort import OrtEngine

            check_onnx(files[0])
            return OrtEngine(files[0], threads=threads, setting=setting)
        case "openvino":
            from edgetl.runtime.ir_check import check_ir
            from edgetl.runtime.ov import OvEngine

            check_ir(files[0], files[1])
            return OvEngine(files[0], files[1], threads=threads, setting=setting)
        case _:
            assert_never(format_)
