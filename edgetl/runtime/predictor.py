"""Predictor: preprocessing, inference and output decoding on a device, without torch."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.config import read_json
from edgetl.core.images.decode import ImageInput
from edgetl.core.manifest import Manifest, Variant
from edgetl.core.output_decoding import decode
from edgetl.core.preprocess import Batch, InputForm, PreprocessSpec, decode_image, to_batch
from edgetl.core.results import Prediction
from edgetl.core.store import Start, is_store
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting, Tuning
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task
from edgetl.errors import BundleError, ConfigError, EdgetlError, EngineError, GalleryError
from edgetl.runtime.engine import Engine, LoadedEngine, open_engine
from edgetl.runtime.gallery.file import OpenedGallery
from edgetl.runtime.gallery.loading import GalleryEngine, features_of, find_gallery, release_gallery
from edgetl.runtime.release import Selection, tuned_choice, usable_release, usable_variant
from edgetl.runtime.trial import try_variant

MAX_BATCH = 16
_log = logging.getLogger(__name__)

# Source of a predictor: the bundle's absolute path, the requested number of threads, and the execution setting.
Origin: TypeAlias = tuple[Path, int | None, ExecutionSetting]


class Predictor:
    """Loaded network with its labels, preprocessing and decision rule.

    ``edgetl.load`` creates a predictor from a bundle. Methods may be called from several threads. A predictor from a bundle can be copied
    and pickled; the copy loads the bundle again from its path.

    Args:
        engine: engine that runs the network. A custom engine needs a method ``run`` (see ``edgetl.runtime.engine.Engine``).
        labels: names of the classes or labels, in the order of the network's outputs. For a regression, the name of the column.
        spec: preprocessing of the training.
        variant: manifest entry of the loaded variant. None for a custom engine.
        task: task of the network.
        decision_rule: thresholds, levels or tolerance of the task. None uses the defaults.

    Attributes:
        labels: names of the classes or labels, in the order of the scores.
        decoding: task, labels and decision rule.
        spec: preprocessing of the training.
        variant: manifest entry of the loaded variant. None for a custom engine.
        input_form: input of the engine: ``float`` (normalized float32) or ``uint8`` (pixels).
        manifest: manifest of the bundle. None for a custom engine.
        setting: execution setting of the engine.
        gallery: gallery whose images vote, too. None without a gallery.

    Raises:
        ConfigError: the decision rule does not match the task or the labels.
    """

    def __init__(
        self,
        engine: Engine,
        labels: Sequence[str],
        spec: PreprocessSpec,
        *,
        variant: Variant | None = None,
        task: Task = "classification",
        decision_rule: DecisionRule | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self.decoding = OutputDecoding(task, self.labels, decision_rule or DecisionRule())
        if problem := self.decoding.decision_rule.problem(task, len(self.labels)):
            raise ConfigError(f"the decision rule does not match the {task} task: {problem}.")
        self.spec = spec
        self.variant = variant
        self.input_form: InputForm = variant.input_form if variant else "float"
        self.manifest: Manifest | None = None
        self.setting = DEFAULT_SETTING
        self.gallery: OpenedGallery | None = None
        self._engine = engine
        self._network: LoadedEngine | None = None
        self._origin: Origin | None = None

    @property
    def is_rolled_back(self) -> bool:
        """True after the store has rolled back the loaded release, such as for its latency. Load the store again."""
        return isinstance(self._engine, _ObservedEngine) and self._engine.is_rolled_back

    def __reduce__(self) -> tuple[Any, ...]:
        """Support copy and pickle: the copy loads the bundle again from its path.

        Raises:
            TypeError: the predictor has a custom engine.
        """
        if self._origin is None:
            raise TypeError("a Predictor with a custom engine cannot be copied or pickled. Load it from a bundle: edgetl.load(PATH).")
        return _load_again, (*self._origin, self.variant, self.gallery)

    @overload
    def predict(self, images: ImageInput) -> Prediction: ...  # type: ignore[overload-overlap]  # a str or an array is one image
    @overload
    def predict(self, images: Iterable[ImageInput]) -> list[Prediction]: ...

    def predict(self, images: ImageInput | Iterable[ImageInput]) -> Prediction | list[Prediction]:
        """Predict one image or several images.

        An image is one of:

        - a path (``str`` or ``os.PathLike``);
        - encoded bytes (``bytes``, ``bytearray``, ``memoryview``) or a binary file object;
        - a ``PIL.Image.Image``;
        - an array ``[H, W]`` (gray), ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA), uint8 or uint16.

        Args:
            images: an image, or an ordered iterable of images such as a list or a generator. At most 16 images of an iterable are in
                memory at the same time.

        Returns:
            one prediction for an image; a list of predictions, in order, for an iterable.

        Raises:
            ImageError: an image cannot be read, or its type is not supported. The message names the image.
            EngineError: the engine failed.
            OutOfMemoryError: there is too little memory.
        """
        if _is_one(images):
            return self._decode(self.prepare(self.read(cast(ImageInput, images))))[0]
        results: list[Prediction] = []
        following = iter(cast(Iterable[ImageInput], images))
        while batch := [self.read(image) for image in islice(following, MAX_BATCH)]:
            results += self._decode(self.prepare(*batch))
        return results

    def read(self, image: ImageInput) -> Image.Image:
        """Decode an image by the rules of the model, for ``prepare``.

        Args:
            image: image, as for ``predict``.

        Returns:
            upright RGB image.

        Raises:
            ImageError: the image cannot be read, or its type is not supported.
        """
        return decode_image(image, self.spec)

    def prepare(self, *images: Image.Image) -> Batch:
        """Preprocess images for ``logits``.

        Args:
            images: upright RGB images, as ``read`` returns them.

        Returns:
            batch of the images: normalized float32 ``[n, 3, H, W]``, or RGB pixels uint8 ``[n, H, W, 3]`` if ``input_form`` is ``uint8``.
        """
        return to_batch(images, self.spec, self.input_form)

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Run the network on a batch.

        Args:
            batch: batch in the form that ``prepare`` returns.

        Returns:
            logits, or the predicted numbers of a regression: float32 ``[batch, labels]``. Anomaly detection: the outputs of the heat map,
            ``[batch, height * width]``.

        Raises:
            EngineError: the engine failed, or the number of outputs does not match the manifest.
        """
        result = self._engine.run(batch)
        if result.shape != (len(batch), self.decoding.outputs):
            raise EngineError(
                f"the model returned the shape {list(result.shape)} for {len(batch)} image(s) and {self.decoding.outputs} outputs. "
                f"Export the bundle again."
            )
        return result

    def features(self, batch: Batch) -> NDArray[np.float32]:
        """Compute the features of a k-NN bundle for a gallery, centered and of length 1.

        Args:
            batch: batch in the form that ``prepare`` returns.

        Returns:
            float32 ``[batch, width]``.

        Raises:
            GalleryError: the bundle has no k-NN head with feature outputs.
            EngineError: the engine failed.
        """
        return features_of(*self._knn(), batch)

    def use_gallery(self, gallery: OpenedGallery) -> None:
        """Let the images of a gallery vote, too. Its new labels follow those of the bundle.

        Raises:
            GalleryError: the bundle has no k-NN head with feature outputs.
        """
        network, manifest = self._knn()
        self.gallery, self.labels = gallery, gallery.gallery.labels(manifest)
        self.decoding = replace(self.decoding, labels=self.labels)
        self._engine = GalleryEngine(network, manifest, gallery.gallery)

    def _knn(self) -> tuple[LoadedEngine, Manifest]:
        if self.manifest is None or self.manifest.knn is None or self._network is None:
            raise GalleryError("the model has no k-NN head with feature outputs. Train with --head knn, and export the run again.")
        return self._network, self.manifest

    def _decode(self, batch: Batch) -> list[Prediction]:
        return decode(self.decoding, self.logits(batch))


def _is_one(images: ImageInput | Iterable[ImageInput]) -> bool:
    """Return True for a single image. File objects are iterable by lines, and sets and mappings have no order of images."""
    single = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | np.ndarray | Mapping | Set)
    return single or hasattr(images, "read") or not isinstance(images, Iterable)


def _load_again(path: Path, threads: int | None, setting: ExecutionSetting, variant: Variant, gallery: OpenedGallery | None) -> Predictor:
    """Load a copied or pickled predictor, in this or another process.

    Raises:
        BundleError: the bundle at ``path`` has changed.
    """
    bundle = open_bundle(path)
    if bundle.variant(variant.name) != variant:
        raise BundleError(f"{path}: {variant.name} has changed since the predictor was copied. Load it again from the bundle.")
    predictor = load_variant(bundle, variant, threads=threads, setting=setting)
    if gallery is not None:
        predictor.use_gallery(gallery)
    return predictor


def load(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    variant: str | None = None,
    threads: int | None = None,
    trial: bool = False,
    tuning: str | os.PathLike[str] | Tuning | None = None,
    gallery: bool | OpenedGallery = True,
) -> Predictor:
    """Load a variant of a bundle as a predictor.

    The files are checked against the hashes of the manifest before they are loaded.

    Args:
        bundle: folder that ``edgetl export`` wrote, an opened bundle (``edgetl.open_bundle``), or a store with an active release.
        variant: name of a variant. None uses the tuned variant, that of the store, or the first that can be loaded on this host: the
            fastest at export time, or the best of the deployment contract. A warning is logged for each variant that cannot be loaded.
        threads: threads per inference. None uses the tuned number, that of the contract, or all cores available to this process.
        trial: load the variant and run one image in a separate process first, with limits on memory and time. Use it for bundles from
            other authors. It takes about a second.
        tuning: result of ``edgetl tune`` on this host, or its file. An outdated result is not used, and a warning is logged.
        gallery: True uses the gallery of a k-NN bundle (``edgetl gallery add``) if there is one. False uses none.

    Raises:
        BundleError: the folder is not a bundle, or has no such variant.
        ConfigError: ``threads`` is less than 1, or ``tuning`` is not a file of ``edgetl tune``.
        IntegrityError: a file does not match the manifest.
        MissingExtraError: the engine is not installed. The message has the pip command.
        EngineError: the engine cannot load the model, the model does not match the manifest, or the trial failed.
        OutOfMemoryError: there is too little memory.
        StoreError: the store has no healthy release.
        GalleryError: the gallery is damaged, or belongs to another bundle.
    """
    select = partial(_load_selected, threads=threads, trial=trial)
    if not isinstance(bundle, Bundle) and is_store(bundle):
        return _load_from_store(Path(bundle), select, variant=variant, gallery=gallery)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    tuned = None if tuning is None else tuned_choice(opened, _read_tuning(tuning))
    added = find_gallery(opened) if gallery is True else gallery or None
    return _with_gallery(usable_variant(opened, select, tuned=tuned, variant=variant), opened, added)


def _read_tuning(tuning: str | os.PathLike[str] | Tuning) -> Tuning:
    return tuning if isinstance(tuning, Tuning) else read_json(Path(tuning), Tuning, ConfigError)


def _with_gallery(predictor: Predictor, bundle: Bundle, gallery: OpenedGallery | None) -> Predictor:
    if gallery is not None:
        gallery.check_belongs(bundle)
        predictor.use_gallery(gallery)
        _log.info("gallery of %d images: %s", len(gallery.gallery.images), gallery.path)
    return predictor


def _load_selected(bundle: Bundle, selection: Selection, *, threads: int | None, trial: bool) -> Predictor:
    """Load a selected variant. A given number of ``threads`` overrides the tuned one."""
    if trial:
        try_variant(bundle, selection.variant)
    used = selection.threads if threads is None else threads
    return load_variant(bundle, selection.variant, threads=used, setting=selection.setting)


def load_variant(bundle: Bundle, variant: Variant, *, threads: int | None = None, setting: ExecutionSetting = DEFAULT_SETTING) -> Predictor:
    """Load a variant with an execution setting.

    Raises:
        BundleError: the accuracy gate did not keep ``setting`` for this variant.
        EdgetlError: as ``load``.
    """
    manifest = bundle.manifest
    if not variant.allows(setting):
        raise BundleError(
            f"{bundle.path}: the accuracy gate did not keep the execution setting {setting.describe()} for {variant.name}. "
            f"Tune the bundle again: edgetl tune {bundle.path}"
        )
    engine = open_engine(bundle, variant, threads=threads, setting=setting)
    spec = manifest.preprocess.model_copy(update={"decode": setting.decode})
    predictor = Predictor(engine, manifest.labels, spec, variant=variant, task=manifest.task, decision_rule=manifest.decision_rule)
    predictor.manifest, predictor._network = manifest, engine
    predictor.setting, predictor._origin = setting, (bundle.path.absolute(), threads, setting)
    return predictor


def _load_from_store(
    store: Path, load_selected: Callable[[Bundle, Selection], Predictor], *, variant: str | None, gallery: bool | OpenedGallery
) -> Predictor:
    """Load the release in use of a store with its gallery, and observe its health while it is in probation."""
    start, bundle, predictor = usable_release(store, load_selected, variant=variant)
    try:
        _with_gallery(predictor, bundle, release_gallery(start.release, bundle) if gallery is True else gallery or None)
    except GalleryError:
        start.close()
        raise
    if start.observed:
        predictor._engine = _ObservedEngine(predictor._engine, start)
        # Runs when the predictor is deleted or the interpreter exits, but not after a crash.
        weakref.finalize(predictor, start.close)
    return predictor


class _ObservedEngine:
    """Engine that reports each success and failure to the probation of its release."""

    def __init__(self, engine: Engine, start: Start) -> None:
        self._engine, self._start = engine, start

    @property
    def is_rolled_back(self) -> bool:
        return self._start.rolled_back

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        begun = time.perf_counter()
        try:
            result = self._engine.run(batch)
        except EdgetlError as error:
            self._start.failed(str(error))
            raise
        if not np.isfinite(result).all():
            self._start.failed("it returned a score that is not a number.")
        self._start.succeeded(len(batch), time.perf_counter() - begun)
        return result
