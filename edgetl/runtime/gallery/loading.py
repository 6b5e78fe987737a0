"""Loading of the gallery of a bundle folder or of a release of a store, and the engine that uses it."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle
from edgetl.core.manifest import Manifest
from edgetl.core.preprocess import Batch
from edgetl.core.store import Release
from edgetl.errors import EngineError, GalleryError
from edgetl.runtime.engine import LoadedEngine
from edgetl.runtime.gallery.file import Gallery, OpenedGallery, gallery_path, read_gallery
from edgetl.runtime.gallery.votes import combined_logits

_log = logging.getLogger(__name__)


def find_gallery(bundle: Bundle) -> OpenedGallery | None:
    """Return the gallery beside a bundle folder; None without one. If it belongs to another release, log a warning and return None.

    Raises:
        GalleryError: the gallery is damaged.
    """
    path = gallery_path(bundle.path)
    if not path.exists():
        return None
    opened = read_gallery(path)
    if opened.gallery.manifest_sha256 != bundle.manifest_sha256:
        _log.warning(
            "%s belongs to release %d of %s. It is kept and not used. Add the images again: edgetl gallery add",
            path,
            opened.gallery.release,
            opened.gallery.name,
        )
        return None
    opened.check_belongs(bundle)
    return opened


def release_gallery(release: Release, bundle: Bundle) -> OpenedGallery | None:
    """Return the gallery of a release of a store; None without one. Galleries of other releases are logged.

    Raises:
        GalleryError: the gallery is damaged, was replaced, or is missing.
    """
    if release.gallery is None:
        if kept := [path.name for path in release.other_galleries()]:
            _log.info("galleries of other releases are kept and not used: %s", ", ".join(kept))
        return None
    opened = read_gallery(release.gallery)
    if opened.sha256 != release.record.gallery:
        raise GalleryError(
            f"{release.gallery} was changed since it was written (SHA-256). It was not used. Restore the file from a copy, or remove the "
            f"gallery: edgetl gallery remove STORE --all"
        )
    opened.check_belongs(bundle)
    return opened


class GalleryEngine:
    """Engine with the k-NN head of a bundle and the vectors of a gallery (see ``edgetl.runtime.engine.Engine``).

    Args:
        engine: engine with the network of the bundle.
        manifest: manifest of the bundle.
        gallery: gallery of the bundle.
    """

    def __init__(self, engine: LoadedEngine, manifest: Manifest, gallery: Gallery) -> None:
        assert manifest.knn is not None, "only a bundle with a k-NN head has a gallery"
        self._engine, self._head = engine, manifest.knn
        self._names = tuple(manifest.knn.outputs(len(manifest.labels)))
        self._vectors, self._votes = gallery.matrix(), gallery.votes(manifest, manifest.knn)

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """Return the logits float32 ``[batch, labels]`` for the labels of the bundle and those of the gallery."""
        features, similarities, votes = self._engine.run_outputs(batch, self._names)
        return combined_logits(self._head, (features, similarities, votes), self._vectors, self._votes)


def features_of(engine: LoadedEngine, manifest: Manifest, batch: Batch) -> NDArray[np.float32]:
    """Return the features of a batch for a gallery, float32 ``[batch, width]``, centered and of length 1.

    Raises:
        EngineError: the engine failed, or its features are not finite.
    """
    assert manifest.knn is not None, "only a bundle with a k-NN head has features"
    (features,) = engine.run_outputs(batch, (manifest.knn.features,))
    if features.shape != (len(batch), manifest.knn.width) or not np.isfinite(features).all():
        raise EngineError(
            f"the model returned features of the shape {list(features.shape)} that are not finite or have another size than "
            f"[{len(batch)}, {manifest.knn.width}]. Use another variant, or export the bundle again."
        )
    return features
