"""The one interface that runs a network, and the choice between its implementations."""

from __future__ import annotations

import importlib.util
from typing import Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle
from edgetl.core.host import available_cores
from edgetl.core.manifest import Format, Variant
from edgetl.core.preprocess import Batch
from edgetl.errors import ConfigError, MissingExtraError

_LIBRARIES: dict[Format, str] = {"onnx": "onnxruntime", "openvino": "openvino"}


class Engine(Protocol):
    """A loaded network. ``run`` may be called from several threads."""

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """Logits float32 ``[batch, classes]`` of images float32 ``[batch, 3, H, W]``, or of pixels (``Variant.input_form``)."""


def installed(format_: Format) -> bool:
    """Whether the engine for ``format_`` is installed."""
    return importlib.util.find_spec(_LIBRARIES[format_]) is not None


def choose_variant(bundle: Bundle, name: str | None) -> Variant:
    """The variant called ``name``, or the first (the fastest on the bench) whose engine is installed.

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


def open_engine(bundle: Bundle, variant: Variant, *, threads: int | None = None) -> Engine:
    """Read and check the variant's files and load them into their engine.

    Args:
        bundle: where the files are.
        variant: which of its networks.
        threads: for one inference; none means as many as the bundle's contract was kept with, or every core that this process may use.

    Raises:
        IntegrityError: a file is not the one that the manifest names.
        EngineError: the engine refuses the file.
        MissingExtraError: the engine is not installed.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads}: give 1 or more.")
    if threads is None:
        contract = bundle.manifest.contract
        threads = min(contract.chosen.threads, available_cores()) if contract else available_cores()
    return load_engine(variant.format, [bundle.read(file) for file in variant.files], threads=threads)


def load_engine(format_: Format, files: list[bytes], *, threads: int) -> Engine:
    """Load a network from its files' bytes: the ONNX file, or the IR's ``.xml`` and ``.bin``."""
    if not installed(format_):
        raise MissingExtraError(_LIBRARIES[format_], _LIBRARIES[format_])
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
