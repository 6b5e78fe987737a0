"""Tuning: time the choices of three networks, compare bfloat16 with float32, and compare the tuned bundle with timm and eager torch.

Run ``python -m bench.device.tuning``. The training images are trashnet photographs, enlarged to the size of a camera (640 x 480): the
accuracy gate measures scaled JPEG decoding only on images of the size that a device decodes. Ratios compare measurements of one run on one
host.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import timm
import torch
from PIL import Image

from bench.paths import SHARED
from bench.timing import in_turn
from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.preprocess import decode_image
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting, Tuning
from edgetl.core.system.host import available_cores, describe_host, versions
from edgetl.data.folder import Sample
from edgetl.data.loading import truth_of
from edgetl.device.tuning import tune
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.runtime.predictor import Predictor, load, load_variant
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train

ROUNDS = 300
CAMERA = (640, 480)
PRETRAINED = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
# No pretrained weights are embedded for these two. Latency does not depend on the weights.
UNTRAINED = ("mobilenetv3_small_100", "resnet18")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.device.tuning", description=__doc__)
    parser.add_argument("--work", type=Path, help="folder for images, runs and bundles, which a later call reuses [default: temporary]")
    parser.add_argument("--only-mobilenetv2", action="store_true", help="leave out the tables of the other networks")
    given = parser.parse_args()
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        images = camera_images(work / "trashnet-camera")
        run, bundle = network(images, PRETRAINED, work / "mobilenetv2")
        tuning = tune(bundle)
        show(tuning)
        compare_precisions(bundle, tuning)
        compare_with_torch(run, bundle, tuning)
        compare_accuracy(run, bundle, tuning)
        for name in () if given.only_mobilenetv2 else UNTRAINED:
            show(tune(network(images, name, work / name)[1]))


def camera_images(folder: Path) -> Path:
    """Write the photographs of trashnet at the size of a camera, one folder per class. Return ``folder``."""
    files = sorted((SHARED / "data/trashnet").glob("*/*.jpg"))

    def enlarge(path: Path) -> None:
        target = folder / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path).convert("RGB")
        size = CAMERA if image.width >= image.height else (CAMERA[1], CAMERA[0])
        image.resize(size, Image.Resampling.BICUBIC).save(target, quality=90)

    if not folder.is_dir():
        with ThreadPoolExecutor(available_cores()) as pool:
            list(pool.map(enlarge, files))
    return folder


def network(images: Path, backbone: str, folder: Path) -> tuple[Run, Bundle]:
    """Train a linear head on the images, and export fp32 and int8 variants."""
    pretrained = backbone.startswith("local-dir:")
    if not (folder / "bundle").is_dir():
        config = TrainConfig.from_options(backbone=backbone, pretrained=pretrained, strategy="probe", test=0.2)
        train(images, config, folder / "run")
        # A network without training separates the classes poorly. It may lose more accuracy, because only its latency is of interest.
        limits = ExportConfig() if pretrained else ExportConfig(max_drop=0.5, min_agreement=0.0, allow_missing=True)
        export_bundle(folder / "run", limits, folder / "bundle")
    return open_run(folder / "run"), open_bundle(folder / "bundle")


def show(tuning: Tuning) -> None:
    print(f"\n## {tuning.name}: tuned in {tuning.seconds:.1f} s {f'(busy host: {tuning.busy})' if tuning.busy else ''}")
    for item in tuning.timings:
        memory = f"{item.peak_rss_mb:6.0f} MB, load {item.load_ms:5.0f} ms" if item.peak_rss_mb and item.load_ms else ""
        chosen = "chosen" if item.choice == tuning.chosen else ""
        print(f"  {item.describe():52} {item.whole_ms:7.2f} ms (n = {item.n:2}) {memory} {chosen}")
    for skipped in tuning.skipped:
        print(f"  not timed: {skipped.variant} {skipped.setting.describe() if skipped.setting else ''}: {skipped.reason}")


def compare_precisions(bundle: Bundle, tuning: Tuning) -> None:
    """Print the network's time of the tuned OpenVINO fp32 variant and of its float32 setting, on the same threads."""
    variant = bundle.variant("openvino-fp32")
    tuned = next(item for item in tuning.timings if item.variant == variant.name and item.setting.decode == "full")
    predictors: dict[str, Predictor] = {
        setting.describe(): load_variant(bundle, variant, threads=tuned.threads, setting=setting)
        for setting in (tuned.setting, DEFAULT_SETTING, ExecutionSetting(static_batch=True))
    }
    image = decode_image(bundle.path / bundle.manifest.golden[0].image.path, bundle.manifest.preprocess)
    calls = {name: predictor.logits for name, predictor in predictors.items()}
    times = in_turn(calls, [predictors["f32"].prepare(image)], rounds=ROUNDS)
    print(f"\nopenvino-fp32, network only, {tuned.threads} thread(s), median of {ROUNDS}:")
    for name, milliseconds in times.items():
        print(f"  {name:30} {milliseconds:6.2f} ms   {times['f32'] / milliseconds:5.2f} times as fast as f32")


def compare_with_torch(run: Run, bundle: Bundle, tuning: Tuning) -> None:
    """Print the time from JPEG bytes to a label for the tuned bundle, for its default, and for timm with eager torch."""
    model, spec = run.load_model(), run.record.preprocess
    transform = timm.data.create_transform(
        (3, *spec.input_size), interpolation=spec.interpolation, mean=spec.mean, std=spec.std, crop_pct=spec.crop_pct
    )

    def eager(data: bytes) -> int:
        with torch.inference_mode():
            return int(model(transform(Image.open(io.BytesIO(data)).convert("RGB"))[None]).softmax(1).argmax())

    camera = [path.read_bytes() for path in sorted((SHARED / "data/bccd/images").glob("*.jpg"))[:60]]
    print(f"\nJPEG bytes (640 x 480) to label, median of {ROUNDS}:")
    for threads in dict.fromkeys((tuning.chosen.threads, 1)):
        torch.set_num_threads(threads)
        calls: dict[str, Callable[[bytes], object]] = {
            "timm, eager torch": eager,
            "first variant": load(bundle, threads=threads).predict,
            "tuned": load(bundle, threads=threads, tuning=tuning).predict,
        }
        times = in_turn(calls, camera, rounds=ROUNDS)
        for name, milliseconds in times.items():
            print(f"  {threads} thread(s), {name:20} {milliseconds:6.2f} ms   {times['timm, eager torch'] / milliseconds:5.2f} times torch")


def compare_accuracy(run: Run, bundle: Bundle, tuning: Tuning) -> None:
    """Print the accuracy on the test split: of the trained model, of the fp32 variant, and of the tuned choice."""
    samples = run.samples("test")
    trained = run.record.test.score.value if run.record.test else float("nan")
    plain = _accuracy(load(bundle, variant="openvino-fp32"), samples)
    tuned = _accuracy(load(bundle, tuning=tuning), samples)
    print(f"\naccuracy on {len(samples)} test images: trained model {trained:.4f}, openvino-fp32 {plain:.4f}, tuned {tuned:.4f}")
    print(f"  tuned minus fp32: {100 * (tuned - plain):+.2f} points")


def _accuracy(predictor: Predictor, samples: Sequence[Sample]) -> float:
    found = predictor.predict(sample.path for sample in samples)
    truth = truth_of(samples)
    right = sum(prediction.label == predictor.labels[label] for prediction, label in zip(found, truth, strict=True))
    return right / len(samples)


if __name__ == "__main__":
    main()
