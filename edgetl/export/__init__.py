"""Export of a run as a bundle: conversion, quantization, accuracy gate, packaging. Public names are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetl.export.backbone_search import fit
    from edgetl.export.config import ExportConfig, FitConfig
    from edgetl.export.contract_search import export_under_contract
    from edgetl.export.package import export_bundle

__all__ = ["ExportConfig", "FitConfig", "export_bundle", "export_under_contract", "fit"]

_MODULES = {
    "ExportConfig": "config",
    "FitConfig": "config",
    "export_bundle": "package",
    "export_under_contract": "contract_search",
    "fit": "backbone_search",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
