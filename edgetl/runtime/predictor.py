"""Predictor: preprocessing, inference and output decoding on the device. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.images.decode import ImageInput, load_image
from edgetl.core.manifest import Variant
from edgetl.core.output_decoding import decode
from edgetl.core.preprocess import Batch, InputForm, PreprocessSpec, to_batch
from edgetl.core.results import Prediction
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task
from edgetl.errors import BundleError, ConfigError, EngineError
from edgetl.runtime.engine import Engine, choose_variant, open_engine
from edgetl.runtime.trial import try_variant

MAX_BATCH = 16

# Source of a predictor: the bundle's absolute path, and the requested number of threads.
Origin: TypeAlias = tuple[Path, int | None]


class Predictor:
    """A loaded network with its labels and its preprocessing.

    Attributes:
        labels: class (label, column) names, in the order of the scores.
        decoding: task, labels and decision rule.
        spec: the preprocessing of the training.
        variant: the manifest's entry of the loaded file; none for an engine of your own.
        input_form: what the engine takes: float32 tensors, or pixels, as the variant states.
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
            raise ConfigError(f"the predictor cannot read the outputs: {problem}.")
        self.spec = spec
        self.variant = variant
        self.input_form: InputForm = variant.input_form if variant else "float"
        self._engine = engine
        self._origin: Origin | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles, for other processes, load the bundle again from its path.

        Raises:
            TypeError: the engine is one of your own, not of a bundle.
        """
        if self._origin is None:
            raise TypeError("a Predictor with your own engine cannot be copied or pickled; load one from a bundle: edgetl.load(PATH).")
        return _load_again, (*self._origin, self.variant)

    @overload
    def predict(self, images: ImageInput) -> Prediction: ...  # type: ignore[overload-overlap]  # a str or an array is one image
    @overload
    def predict(self, images: Iterable[ImageInput]) -> list[Prediction]: ...

    def predict(self, images: ImageInput | Iterable[ImageInput]) -> Prediction | list[Prediction]:
        """Predict one image, or each of several.

        Args:
            images: a path, encoded bytes (also ``bytearray``, ``memoryview``), a binary file object, a PIL image, or an array
                ``[H, W]``, ``[H, W, 3]`` (RGB) or ``[H, W, 4]``, uint8 or uint16; or an ordered iterable of those, such as a list
                or a generator, of which ``MAX_BATCH`` images are in memory at once.

        Returns:
            One prediction, or for an iterable a list in its order.

        Raises:
            ImageError: an image cannot be read, or something else was given; the text names it.
            EngineError: the engine failed.
        """
        if _is_one(images):
            return self._decode(self._tensor([load_image(cast(ImageInput, images), intensity=self.spec.intensity)]))[0]
        results: list[Prediction] = []
        following = iter(cast(Iterable[ImageInput], images))
        while batch := [load_image(image, intensity=self.spec.intensity) for image in islice(following, MAX_BATCH)]:
            results += self._decode(self._tensor(batch))
        return results

    def prepare(self, image: Image.Image) -> Batch:
        """An upright RGB image (``edgetl.core.images.decode.load_image``) as the network's input: float32 ``[1, 3, H, W]``, or pixels."""
        return self._tensor([image])

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Logits (of a regression: numbers) float32 ``[batch, labels]`` of images as ``prepare`` makes them.

        Raises:
            EngineError: the engine failed, or gives another number of classes than there are labels.
        """
        result = self._engine.run(batch)
        if result.shape != (len(batch), len(self.labels)):
            raise EngineError(
                f"the model returns shape {list(result.shape)}; {len(batch)} images and {len(self.labels)} labels were expected."
            )
        return result

    def _tensor(self, images: Sequence[Image.Image]) -> Batch:
        return to_batch(images, self.spec, self.input_form)

    def _decode(self, batch: Batch) -> list[Prediction]:
        return decode(self.decoding, self.logits(batch))


def _is_one(images: ImageInput | Iterable[ImageInput]) -> bool:
    """True for a single image. File objects are iterable too, by lines; a set or mapping has no order of images."""
    single = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | np.ndarray | Mapping | Set)
    return single or hasattr(images, "read") or not isinstance(images, Iterable)


def _load_again(path: Path, threads: int | None, variant: Variant) -> Predictor:
    """A copy of a predictor, in this or another process.

    Raises:
        BundleError: the bundle at its path is another one now.
    """
    predictor = load(path, variant=variant.name, threads=threads)
    if predictor.variant != variant:
        raise BundleError(f"{path}: {variant.name} has changed since the predictor was copied. Load it again from the bundle.")
    return predictor


def load(
    bundle: str | os.PathLike[str] | Bundle, *, variant: str | None = None, threads: int | None = None, trial: bool = False
) -> Predictor:
    """Open a bundle, check the files of one variant, and load it.

    Args:
        bundle: the folder that ``edgetl export`` wrote, or an opened bundle.
        variant: its name, such as ``openvino-int8``; none takes the first whose engine is installed: the fastest
            at the export, or the one that keeps the bundle's contract best.
        threads: for one inference; none takes that of the bundle's contract, or every core that this process may use.
        trial: first load it and run one image in a process of its own, with limits of memory and time; for bundles that others made. Takes
            about a second.

    Raises:
        BundleError: not a bundle, or no such variant.
        IntegrityError: a file is not the one that the manifest names.
        MissingExtraError: the engine is not installed.
        EngineError: the engine refuses the model, it is not the one that the manifest describes, or it failed its trial.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    chosen = choose_variant(opened, variant)
    if trial:
        try_variant(opened, chosen)
    engine = open_engine(opened, chosen, threads=threads)
    manifest = opened.manifest
    predictor = Predictor(
        engine, manifest.labels, manifest.preprocess, variant=chosen, task=manifest.task, decision_rule=manifest.decision_rule
    )
    predictor._origin = (opened.path.absolute(), threads)
    return predictor
