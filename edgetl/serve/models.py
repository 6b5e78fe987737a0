"""The models that a server answers for: a loaded bundle each, by name and version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.core.answers import scores_of
from edgetl.core.bundle import open_bundle
from edgetl.core.images import load_image
from edgetl.core.manifest import Manifest
from edgetl.core.preprocess import to_batch
from edgetl.errors import ConfigError, RequestError
from edgetl.runtime.predictor import Predictor, load
from edgetl.runtime.verify import verify
from edgetl.serve.protocol import LOGITS, SCORES, Answered, InferRequest, Port

_PLATFORMS = {"onnx": "onnxruntime_onnx", "openvino": "openvino_ir"}


@dataclass(frozen=True)
class Model:
    """One version of a model, loaded."""

    manifest: Manifest
    predictor: Predictor

    @property
    def name(self) -> str:
        """As requests say it."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The bundle's release counter."""
        return str(self.manifest.release)

    @property
    def port(self) -> Port:
        """The input."""
        variant = self.predictor.variant
        assert variant is not None, "a bundle's predictor has a variant"
        return Port(variant.input, "UINT8" if variant.input_form == "uint8" else "FP32", variant.input_shape(self.manifest.preprocess))

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """The protocol's model metadata."""
        variant, port = self.predictor.variant, self.port
        assert variant is not None
        outputs = [{"name": name, "datatype": "FP32", "shape": [-1, len(self.manifest.labels)]} for name in (SCORES, LOGITS)]
        return {
            "name": self.name,
            "versions": versions,
            "platform": _PLATFORMS[variant.format],
            "inputs": [{"name": port.name, "datatype": port.datatype, "shape": [-1, *port.shape]}],
            "outputs": outputs,
            "parameters": {"labels": list(self.manifest.labels), "variant": variant.name, "task": self.manifest.task},
        }

    def answer(self, request: InferRequest) -> Answered:
        """Run one request.

        Raises:
            ImageError: an image cannot be read.
            EngineError: the engine failed.
        """
        batch = request.tensor
        if batch is None:
            images = [load_image(data) for data in request.images]
            batch = to_batch(images, self.predictor.spec, self.predictor.input_form)
        logits = self.predictor.logits(batch)
        return Answered(self.name, self.version, self.manifest.labels, scores_of(self.predictor.reading, logits), logits)


class Models:
    """All models of a server, by name and version."""

    def __init__(self, models: list[Model]) -> None:
        """
        Raises:
            ConfigError: two have the same name and version.
        """
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


def open_models(paths: list[Path], *, variant: str | None, threads: int) -> Models:
    """Verify each bundle (hashes, golden images) and load it.

    Raises:
        BundleError, EngineError, MissingExtraError: as ``verify`` and ``load`` say.
        ConfigError: two bundles have the same name and release.
    """
    models = []
    for path in paths:
        verify(path)
        models.append(Model(open_bundle(path).manifest, load(path, variant=variant, threads=threads)))
    return Models(models)
