"""The one interface that runs a network, and the choice between its implementations."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle
from edgetl.core.manifest import Format, Manifest, Variant
from edgetl.core.preprocess import Batch
from edgetl.core.system.host import available_cores, versions
from edgetl.core.system.memory import is_out_of_memory, out_of_memory
from edgetl.errors import BundleError, ConfigError, EngineError, MissingExtraError
from edgetl.installation import install_command
from edgetl.runtime.engine_versions import differs
from edgetl.runtime.model_io import Ports, check_ports

_LIBRARIES: dict[Format, str] = {"onnx": "onnxruntime", "openvino": "openvino"}


class Engine(Protocol):
    """A loaded network. ``run`` may be called from several threads."""

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """Logits float32 ``[batch, classes]`` of images float32 ``[batch, 3, H, W]``, or of pixels (``Variant.input_form``)."""


class LoadedEngine(Engine, Protocol):
    """An engine that loaded a file, with the file's metadata."""

    @property
    def ports(self) -> Ports:
        """What the network takes and gives."""


def installed(format_: Format) -> bool:
    """Whether the engine for ``format_`` is installed."""
    return importlib.util.find_spec(_LIBRARIES[format_]) is not None


def choose_variant(bundle: Bundle, name: str | None) -> Variant:
    """The variant called ``name``, or the first (the fastest at the export) whose engine is installed.

    Raises:
        BundleError: no variant has that name.
        MissingExtraError: no engine for it is installed.
    """
    if name is not None:
        return bundle.variant(name)
    for variant in bundle.manifest.variants:
        if installed(variant.format):
            return variant
    library = _LIBRARIES[bundle.manifest.variants[0].format]
    raise MissingExtraError(library, library)


def read_variant(bundle: Bundle, variant: Variant) -> list[bytes]:
    """The checked bytes of a variant's files, in the order that ``load_engine`` takes.

    Raises:
        BundleError: not the files that the variant's format has.
        IntegrityError: a file is not the one that the manifest names.
    """
    wanted = 1 if variant.format == "onnx" else 2
    if len(variant.files) != wanted:
        raise BundleError(f"{bundle.path}: {variant.name} names {len(variant.files)} file(s) and needs {wanted}. Export the bundle again.")
    return [bundle.read(file) for file in variant.files]


def default_threads(manifest: Manifest) -> int:
    """As many as the bundle's contract was kept with, else every core that this process may use."""
    cores = available_cores()
    return min(manifest.contract.chosen.threads, cores) if manifest.contract else cores


def open_engine(bundle: Bundle, variant: Variant, *, threads: int | None = None) -> Engine:
    """Read and check the variant's files and load them into their engine.

    Args:
        bundle: where the files are.
        variant: which of its networks.
        threads: for one inference; none means as many as the bundle's contract was kept with, or every core that this process may use.

    Raises:
        IntegrityError: a file is not the one that the manifest names.
        EngineError: the engine refuses the file, or the network is not the one that the manifest describes; the text names the file.
        MissingExtraError: the engine is not installed.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads}: give 1 or more.")
    files = read_variant(bundle, variant)
    manifest = bundle.manifest
    if threads is None:
        threads = default_threads(manifest)
    try:
        engine = load_engine(variant.format, files, threads=threads)
        check_ports(engine.ports, variant, manifest.preprocess, len(manifest.labels))
    except EngineError as error:
        library = _LIBRARIES[variant.format]
        hint = differs(library, versions().get(library), manifest.versions.get(library))
        raise EngineError(f"{bundle.path / variant.files[0].path}: {error}{hint}") from error
    return engine


def load_engine(format_: Format, files: Sequence[bytes], *, threads: int) -> LoadedEngine:
    """Load a network from its files' bytes: the ONNX file, or the IR's ``.xml`` and ``.bin``.

    Raises:
        EngineError: the engine refuses the file, or cannot itself be imported.
        OutOfMemoryError: there is not enough memory for it.
        MissingExtraError: the engine is not installed.
    """
    if not installed(format_):
        raise MissingExtraError(_LIBRARIES[format_], _LIBRARIES[format_])
    silence_makers()
    try:
        return _load(format_, files, threads)
    except ImportError as error:
        library = _LIBRARIES[format_]
        if is_out_of_memory(error):
            raise out_of_memory(f"loading {library}") from error
        raise EngineError(
            f"{library} is installed and cannot be imported: {error}. Install it again with: "
            f"{install_command(library, '--force-reinstall')}"
        ) from error


def silence_makers() -> None:
    """Keep the engines from telling their makers of this process and from writing files of their own; a user's own setting stays.

    The import of ONNX Runtime (1.31) writes ``~/.cache/Microsoft`` and ``.ses`` beside temporary files and names a collector's address;
    that of OpenVINO (2026.4) writes ``~/intel`` and calls its telemetry client. A device may have no place to write and no network, and
    did not agree. Only what is imported afterwards is silenced.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO and NNCF do without a package that cannot be imported; there is no setting for a process.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _load(format_: Format, files: Sequence[bytes], threads: int) -> LoadedEngine:
    match format_:
        case "onnx":
            from edgetl.runtime.onnx_check import check_onnx
            from edgetl.runtime.ort import OrtEngine

            check_onnx(files[0])
            return OrtEngine(files[0], threads=threads)
        case "openvino":
            from edgetl.runtime.ir_check import check_ir
            from edgetl.runtime.ov import OvEngine

            check_ir(files[0], files[1])
            return OvEngine(files[0], files[1], threads=threads)
        case _:
            assert_never(format_)
