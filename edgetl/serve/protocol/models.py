"""The models that a server answers for, by name and version, as their manifests describe them; nothing is loaded here."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """The input of a bundle's variant."""
    return InputPort(variant.input, "UINT8" if variant.input_form == "uint8" else "FP32", variant.input_shape(manifest.preprocess))


@dataclass(frozen=True)
class Model:
    """One version of a model: its bundle's manifest, the name of the variant that is loaded, and how many images of waiting requests are
    computed together at most.
    """

    manifest: Manifest
    variant_name: str
    # Measured at each start of a worker, so it says nothing about which model this is.
    batch: int = field(default=1, compare=False)

    @property
    def name(self) -> str:
        """As requests say it."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The bundle's release counter."""
        return str(self.manifest.release)

    @cached_property
    def variant(self) -> Variant:
        """What computes."""
        return next(variant for variant in self.manifest.variants if variant.name == self.variant_name)

    @cached_property
    def port(self) -> InputPort:
        """The input."""
        return port_of(self.manifest, self.variant)

    @cached_property
    def decoding(self) -> OutputDecoding:
        """How its outputs are read."""
        return self.manifest.decoding

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """The protocol's model metadata."""
        port = self.port
        outputs = [{"name": name, "datatype": "FP32", "shape": [-1, len(self.manifest.labels)]} for name in (SCORES, LOGITS)]
        return {
            "name": self.name,
            "versions": versions,
            "platform": _PLATFORMS[self.variant.format],
            "inputs": [{"name": port.name, "datatype": port.datatype, "shape": [-1, *port.shape]}],
            "outputs": outputs,
            "parameters": {
                "labels": list(self.manifest.labels),
                "variant": self.variant_name,
                "task": self.manifest.task,
                "batch": self.batch,
            },
        }

    def outputs(self, logits: NDArray[np.float32]) -> ModelOutputs:
        """What the network's logits ``[n, labels]`` say."""
        return ModelOutputs(self.name, self.version, self.manifest.labels, scores_of(self.decoding, logits), logits)


class Models:
    """All models of a server, by name and version."""

    def __init__(self, models: list[Model]) -> None:
        """
        Raises:
            ConfigError: two have the same name and version.
        """
        self._all = models
        self._by_name: dict[str, dict[str, Model]] = {}
        for model in models:
            versions = self._by_name.setdefault(model.name, {})
            if model.version in versions:
                raise ConfigError(f"two bundles are called {model.name!r} with release {model.version}. Export one with another --release.")
            versions[model.version] = model

    @property
    def names(self) -> list[str]:
        """In the order that they were given."""
        return list(self._by_name)

    def place(self, model: Model) -> int:
        """Which of the bundles it is, from 0."""
        return next(index for index, one in enumerate(self._all) if one is model)

    def versions(self, name: str) -> list[str]:
        """The releases of a model, the oldest first.

        Raises:
            RequestError: 404.
        """
        if name not in self._by_name:
            raise RequestError(404, "there is no model of that name.")
        return sorted(self._by_name[name], key=int)

    def find(self, name: str, version: str | None = None) -> Model:
        """A model's version, or its newest.

        Raises:
            RequestError: 404.
        """
        versions = self.versions(name)
        if version is not None and version not in versions:
            raise RequestError(404, "the model has no such version.")
        return self._by_name[name][version or versions[-1]]

    def all(self) -> list[Model]:
        """Every version of every model, in the order of the bundles."""
        return list(self._all)
