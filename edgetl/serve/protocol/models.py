"""Served models by name and version, described by the manifests of their bundles. This module does not load model files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.manifest import Manifest, Variant
from edgetl.core.output_decoding import scores_of
from edgetl.core.tasks import OutputDecoding
from edgetl.errors import ConfigError, RequestError
from edgetl.serve.protocol.open_inference import LOGITS, SCORES, InputPort, ModelOutputs

_PLATFORMS = {"onnx": "onnxruntime_onnx", "openvino": "openvino_ir"}


def port_of(manifest: Manifest, variant: Variant) -> InputPort:
    """Return the model input of a variant."""
    return InputPort(variant.input, "UINT8" if variant.input_form == "uint8" else "FP32", variant.input_shape(manifest.preprocess))


@dataclass(frozen=True)
class ModelGallery:
    """Gallery of a served k-NN model: images that were added on this device.

    Attributes:
        sha256: SHA-256 of its file.
        images: number of its images.
        labels: labels of the bundle, followed by the new ones.
    """

    sha256: str
    images: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """Version of a served model.

    Attributes:
        manifest: manifest of the bundle.
        variant_name: the loaded variant.
        gallery: gallery of the model; none without one.
        batch: largest batch of images from several requests.
    """

    manifest: Manifest
    variant_name: str
    gallery: ModelGallery | None = None
    # Measured at each start of a worker, therefore not part of the model's identity.
    batch: int = field(default=1, compare=False)

    @property
    def name(self) -> str:
        """Model name in requests."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Release number of the bundle."""
        return str(self.manifest.release)

    @cached_property
    def variant(self) -> Variant:
        """The loaded variant."""
        return next(variant for variant in self.manifest.variants if variant.name == self.variant_name)

    @cached_property
    def port(self) -> InputPort:
        """Model input: name, datatype, shape."""
        return port_of(self.manifest, self.variant)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the outputs, with those of the gallery."""
        return self.gallery.labels if self.gallery else self.manifest.labels

    @cached_property
    def decoding(self) -> OutputDecoding:
        """Output decoding of the task."""
        return replace(self.manifest.decoding, labels=self.labels)

    def identity(self) -> dict[str, str]:
        """Return the SHA-256 of the gallery for a response; empty without a gallery."""
        return {"gallery": self.gallery.sha256} if self.gallery else {}

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """Return the model metadata of the protocol."""
        port = self.port
        widths = ((SCORES, len(self.labels)), (LOGITS, self.decoding.outputs))
        outputs = [{"name": name, "datatype": "FP32", "shape": [-1, width]} for name, width in widths]
        return {
            "name": self.name,
            "versions": versions,
            "platform": _PLATFORMS[self.variant.format],
            "inputs": [{"name": port.name, "datatype": port.datatype, "shape": [-1, *port.shape]}],
            "outputs": outputs,
            "parameters": {
                "labels": list(self.labels),
                "variant": self.variant_name,
                "task": self.manifest.task,
                "batch": self.batch,
                **self.identity(),
            },
        }

    def outputs(self, logits: NDArray[np.float32]) -> ModelOutputs:
        """Return the outputs of the protocol for logits, float32 ``[n, outputs]``."""
        return ModelOutputs(self.name, self.version, self.labels, scores_of(self.decoding, logits), logits, self.identity())


class Models:
    """Collection of all served models, by name and version."""

    def __init__(self, models: list[Model]) -> None:
        """
        Raises:
            ConfigError: two bundles have the same name and release.
        """
        self._all = models
        self._by_name: dict[str, dict[str, Model]] = {}
        for model in models:
            versions = self._by_name.setdefault(model.name, {})
            if model.version in versions:
                raise ConfigError(
                    f"two bundles have the name {model.name!r} and release {model.version}. Export one with another --release."
                )
            versions[model.version] = model

    @property
    def names(self) -> list[str]:
        """Model names in the order of the bundles."""
        return list(self._by_name)

    def index(self, model: Model) -> int:
        """Return the index of the model's bundle."""
        return next(index for index, candidate in enumerate(self._all) if candidate is model)

    def versions(self, name: str) -> list[str]:
        """Return the releases of a model, the oldest first.

        Raises:
            RequestError: 404 for an unknown model.
        """
        if name not in self._by_name:
            raise RequestError(404, "no model has this name. GET /models lists the models.")
        return sorted(self._by_name[name], key=int)

    def find(self, name: str, version: str | None = None) -> Model:
        """Return a version of a model. The default is the newest version.

        Raises:
            RequestError: 404 for an unknown model or version.
        """
        versions = self.versions(name)
        if version is not None and version not in versions:
            raise RequestError(404, "the model does not have this version. GET /models lists the versions.")
        return self._by_name[name][version or versions[-1]]

    def all(self) -> list[Model]:
        """Return all models, in the order of the bundles."""
        return list(self._all)
