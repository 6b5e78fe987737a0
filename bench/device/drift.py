"""Drift detection on photographs: images until the event for changes of several strengths, false alarms, and time per image.

``python -m bench.device.drift RUN BUNDLE [OTHER]``. RUN and BUNDLE are of the same training, for instance on trashnet. OTHER is a folder
with images of another subject, such as ``../shared/data/sign-digits``. Each change is applied to 200 test images, and 20 random streams of
100 of them are observed.
"""

from __future__ import annotations

import argparse
import io
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import edgetl.device.monitoring.drift as drift
from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.images.decode import load_image
from edgetl.core.output_decoding import decode
from edgetl.core.preprocess import decode_image, to_batch
from edgetl.core.reference import STATISTICS, describe_validation, image_statistics
from edgetl.core.results import Prediction
from edgetl.core.system.host import describe_host
from edgetl.device.monitoring.config import MonitorConfig
from edgetl.device.monitoring.drift import DriftDetector
from edgetl.device.monitoring.monitor import MAX_WAITING, Monitor
from edgetl.runtime.predictor import Predictor, load
from edgetl.train.artifacts.run import open_run

Change = Callable[[Image.Image], Image.Image]
Stream = tuple[list[Prediction], NDArray[np.float32]]
STREAMS, WINDOW = 20, 100


def gains(*channels: float) -> Change:
    """Return a function that multiplies the channels."""

    def change(image: Image.Image) -> Image.Image:
        bands = zip(image.split(), channels, strict=True)
        return Image.merge("RGB", [band.point([min(255, round(value * gain)) for value in range(256)]) for band, gain in bands])

    return change


def blur(radius: float) -> Change:
    """Return a function that blurs an image."""
    return lambda image: image.filter(ImageFilter.GaussianBlur(radius))


CHANGES: dict[str, Change] = {
    "none": lambda image: image,
    "brightness x 0.9": gains(0.9, 0.9, 0.9),
    "brightness x 0.8": gains(0.8, 0.8, 0.8),
    "brightness x 0.6": gains(0.6, 0.6, 0.6),
    "blur, radius 0.7": blur(0.7),
    "blur, radius 1": blur(1),
    "blur, radius 2": blur(2),
    "blue x 0.9": gains(1, 1, 0.9),
    "blue x 0.8": gains(1, 1, 0.8),
    "red x 0.9": gains(0.9, 1, 1),
    "green x 0.9": gains(1, 0.9, 1),
    "gray": lambda image: image.convert("L").convert("RGB"),
}


def observed(predictor: Predictor, paths: Sequence[Path], change: Change) -> Stream:
    """Predict changed images."""
    batches = [predictor.prepare(change(load_image(path))) for path in paths]
    outputs = np.concatenate([predictor.logits(batch) for batch in batches])
    return decode(predictor.decoding, outputs), np.concatenate([image_statistics(batch, predictor.spec) for batch in batches])


def print_detection(name: str, bundle: Bundle, stream: Stream) -> None:
    """Print the ratio of streams with an event, the median number of images until it, and the most frequent changes."""
    rng, found, names = np.random.default_rng(0), [], Counter[str]()
    for _ in range(STREAMS):
        detector = _detector(bundle)
        for number, index in enumerate(rng.permutation(len(stream[0]))[:WINDOW], 1):
            if event := detector.add(stream[0][index], stream[1][index]):
                found.append(number)
                names.update(change.name for change in event.changes)
                break
    images = f"{np.median(found):.0f}" if found else "-"
    print(f"| {name} | {len(found)} of {STREAMS} | {images} | {', '.join(item for item, _ in names.most_common(3)) or '-'} |")


def print_false_alarms(bundle: Bundle, stream: Stream) -> None:
    """Print the ratio of independent windows of the validation images with an event, at several nominal levels."""
    rng, windows, before = np.random.default_rng(1), 400, drift.FALSE_ALARMS_PER_IMAGE
    for level in (before * drift.STEP, 1e-3, 1e-2, 5e-2):
        drift.FALSE_ALARMS_PER_IMAGE = level / drift.STEP
        alarms = 0
        for _ in range(windows):
            detector = _detector(bundle)
            for index in rng.integers(0, len(stream[0]), WINDOW):
                detector.add(stream[0][index], stream[1][index])
            alarms += bool(detector.changes())
        print(f"level {level:g} per window: {alarms} of {windows} windows of random validation images differ from the reference")
    drift.FALSE_ALARMS_PER_IMAGE = before


def print_scaled(predictor: Predictor, paths: Sequence[Path]) -> None:
    """Print the effect of scaled decoding on images that were enlarged to the size of a camera. The reference has them decoded in full."""
    assert predictor.variant is not None
    specs = [predictor.spec.model_copy(update={"decode": name}) for name in ("full", "scaled")]
    for factor in (2.0, 3.6, 7.5):
        streams: list[Stream] = []
        for spec in specs:
            batches = [to_batch([decode_image(_enlarged(path, factor), spec)], spec, predictor.variant.input_form) for path in paths]
            outputs = np.concatenate([predictor.logits(batch) for batch in batches])
            streams.append((decode(predictor.decoding, outputs), np.concatenate([image_statistics(batch, spec) for batch in batches])))
        reference = describe_validation(*streams[0], predictor.decoding)
        assert reference is not None, "too few images"
        rng, events = np.random.default_rng(0), 0
        for _ in range(STREAMS):
            detector = DriftDetector(reference, predictor.decoding, window=WINDOW)
            order = rng.integers(0, len(paths), WINDOW)
            events += any(detector.add(streams[1][0][index], streams[1][1][index]) for index in order)
        full, scaled = (np.sort(stream[1][:, STATISTICS.index("sharpness")]) for stream in streams)
        every = np.concatenate([full, scaled])
        distance = np.abs(np.searchsorted(full, every, side="right") - np.searchsorted(scaled, every, side="right")).max() / len(paths)
        print(f"scaled decoding, images enlarged {factor:g} times: sharpness {distance:.2f}; {events} of {STREAMS} streams with an event")


def _enlarged(path: Path, factor: float) -> bytes:
    image, file = load_image(path), io.BytesIO()
    image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def print_times(bundle: Bundle, predictor: Predictor, path: Path) -> None:
    """Print the time of the statistics, of ``observe``, and of the monitor's thread, per image."""
    batch = predictor.prepare(load_image(path))
    prediction = decode(predictor.decoding, predictor.logits(batch))[0]
    statistics = [_seconds(lambda: image_statistics(batch, predictor.spec)) for _ in range(200)]
    with Monitor(MonitorConfig(drift=True)) as monitor:
        monitor.add(bundle.manifest)
        calls = [_seconds(lambda: monitor.observe(bundle.manifest, prediction, inputs=batch)) for _ in range(MAX_WAITING)]
    detector, row = _detector(bundle), image_statistics(batch, predictor.spec)[0]
    added = [_seconds(lambda: detector.add(prediction, row)) for _ in range(1000)]
    print(f"image_statistics: {1e3 * float(np.median(statistics)):.2f} ms; observe: {1e6 * float(np.median(calls)):.0f} us (median)")
    print(f"test of the window: {1e3 * float(np.mean(added)):.2f} ms per image (mean; a test every {drift.STEP} images)")


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _detector(bundle: Bundle) -> DriftDetector:
    assert bundle.manifest.reference is not None, "the bundle has no reference"
    return DriftDetector(bundle.manifest.reference, bundle.manifest.decoding, window=WINDOW)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.device.drift", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("other", type=Path, nargs="?")
    given = parser.parse_args()
    run, bundle = open_run(given.run), open_bundle(given.bundle)
    predictor = load(bundle, threads=1)
    reference = bundle.manifest.reference
    assert predictor.variant is not None and reference is not None
    print(describe_host())
    print(f"{predictor.variant.name}, reference of {reference.n} images, {len(reference.model_dump_json())} bytes of JSON\n")
    limit = drift.ks_limit(
        WINDOW, reference.n, drift.FALSE_ALARMS_PER_IMAGE * drift.STEP / (len(reference.scores) + len(reference.images) + 2)
    )
    print(f"limit of the Kolmogorov-Smirnov distance for {WINDOW} images: {limit:.2f}\n")
    print("| change | streams with an event | images until the event (median) | changed distributions |")
    print("|---|---|---|---|")
    paths = random.Random(0).sample([sample.path for sample in run.samples("test")], 200)
    for name, change in CHANGES.items():
        print_detection(name, bundle, observed(predictor, paths, change))
    if given.other is not None:
        others = sorted(path for path in given.other.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        print_detection(f"images of {given.other.name}", bundle, observed(predictor, random.Random(0).sample(others, 200), CHANGES["none"]))
    print()
    print_false_alarms(bundle, observed(predictor, [sample.path for sample in run.samples("val")], CHANGES["none"]))
    print()
    print_scaled(predictor, paths)
    print()
    print_times(bundle, predictor, paths[0])


if __name__ == "__main__":
    main()
