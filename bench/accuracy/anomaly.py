"""Anomaly detection: AUROC on synthetic defects of real textures, and with one class of an image set as the normal class.

``python -m bench.accuracy.anomaly`` compares the scores by patches, by whole images, and by both, and a memory bank of patches (k-NN). The
features of each image set are computed once. ``--export`` trains, exports and evaluates bundles on the test images of some sets instead.
``--calibration`` compares int8 files of the first quantization attempt that are calibrated on normal images only, and also on copies with
confetti noise.

Defect sets: 120 normal training images, 40 normal test images, and the remaining images with a scratch, a spot, a missing piece, or a
pasted piece. They are drawn at random with a fixed seed. Class sets: 80 images of each class, of which 70 % are for training. The test has
the other 30 %, and 100 images of the other classes. The images and the weights are in the reference folder (``EDGETL_SHARED``, default
``../shared``).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from bench.paths import SHARED
from edgetl.core.manifest import Format
from edgetl.core.metrics import auroc
from edgetl.core.output_decoding import anomaly_outputs
from edgetl.core.progress import silent
from edgetl.data.folder import Sample, scan_unlabeled
from edgetl.data.loading import PixelSet, batches, truth_of
from edgetl.export import ExportConfig, export_bundle
from edgetl.export.context import ExportContext, open_files, prepare
from edgetl.export.formats import FORMATS, SOURCE_FORMAT
from edgetl.export.gate.agreement import outputs_of
from edgetl.export.gate.anomalies import score_correlation
from edgetl.export.quantize.attempts import QuantizerInput
from edgetl.train import train
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import Run
from edgetl.train.config.options import TrainConfig
from edgetl.train.heads.distances.fit import fit_distributions, fit_weights
from edgetl.train.heads.distances.modules import DistanceNetwork, describe_network
from edgetl.train.heads.modules import without_classifier
from edgetl.train.networks.backbone import Backbone

WEIGHTS = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
KINDS = ("scratch", "spot", "missing", "paste")
CLASS_SETS = ("trashnet", "sign-digits", "pacs/photo")
# Training and normal test images of a defect set, and anomalies of the test of a class set.
TRAINING, NORMAL, OTHERS = 120, 40, 100
BANK = 2000
# Defects are drawn at several times the size, so that their edges are smooth.
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Case:
    """Images of one detector: indices of the training images, the normal test images and the anomalies."""

    name: str
    train: NDArray[np.int64]
    normal: NDArray[np.int64]
    anomalies: NDArray[np.int64]


# ---- image sets


def cells() -> Iterator[Image.Image]:
    """Yield fields of blood cells under a microscope, 320 x 320."""
    for path in sorted((SHARED / "data/bccd/images").glob("*.jpg")):
        yield Image.open(path).convert("RGB").crop((160, 80, 480, 400))


def cardboard() -> Iterator[Image.Image]:
    """Yield plain brown areas of cardboard, 128 x 128: the area with the lowest contrast of each photo, if it is low."""
    for path in sorted((SHARED / "data/trashnet/cardboard").iterdir()):
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
        found: tuple[float, NDArray[np.float32]] | None = None
        for top in range(0, pixels.shape[0] - 127, 32):
            for left in range(0, pixels.shape[1] - 127, 32):
                area = pixels[top : top + 128, left : left + 128]
                red, green, blue = area.mean(axis=(0, 1))
                gray = area.mean(axis=2)
                contrast = float(np.abs(np.diff(gray, axis=0)).max() + np.abs(np.diff(gray, axis=1)).max())
                if red > 90 and red > green > blue and red - blue > 30 and contrast < min(90.0, found[0] if found else np.inf):
                    found = contrast, area
        if found:
            yield Image.fromarray(found[1].astype(np.uint8))


def hands() -> Iterator[Image.Image]:
    """Yield photos of open hands, 100 x 100."""
    for path in sorted((SHARED / "data/sign-digits/5").iterdir()):
        yield Image.open(path).convert("RGB")


DEFECT_SETS: dict[str, Callable[[], Iterator[Image.Image]]] = {"cells": cells, "cardboard": cardboard, "hands": hands}


def damage(image: Image.Image, kind: str, random: np.random.Generator) -> Image.Image:
    """Return a copy of an image with a defect of ``kind``."""
    width, height = (SUPERSAMPLING * side for side in image.size)
    side = min(width, height)
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    x, y = random.uniform(0.25, 0.75, 2) * (width, height)
    mean = np.asarray(image, np.float32).mean(axis=(0, 1))
    if kind == "paste":
        return _paste(image, random)
    if kind == "scratch":
        steps = np.cumsum(random.uniform(-0.4, 0.4, 4)) + random.uniform(0, 2 * np.pi)
        length = random.uniform(0.05, 0.11) * side
        places = np.cumsum([(x, y), *((np.cos(angle) * length, np.sin(angle) * length) for angle in steps)], axis=0)
        draw.line([*map(tuple, places)], fill=255, width=round(side * random.uniform(0.008, 0.016)), joint="curve")
        color = mean + random.choice([-90, 90])
    elif kind == "spot":
        radius, aspect = random.uniform(0.025, 0.05) * side, random.uniform(0.6, 1)
        draw.ellipse([x - radius, y - radius * aspect, x + radius, y + radius * aspect], fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(side * 0.006))
        color = mean * random.uniform(0.25, 0.5) + random.uniform(0, 30, 3)
    else:
        angles, radii = np.linspace(0, 2 * np.pi, 9, endpoint=False), random.uniform(0.6, 1.2, 9) * random.uniform(0.07, 0.13) * side
        draw.polygon([*zip(x + np.cos(angles) * radii, y + np.sin(angles) * radii, strict=True)], fill=255)
        color = mean
    changed = image.copy()
    changed.paste(tuple(int(value) for value in np.clip(color, 0, 255)), mask=mask.resize(image.size, Image.Resampling.BOX))
    return changed


def _paste(image: Image.Image, random: np.random.Generator) -> Image.Image:
    width, height = (max(2, int(share * min(image.size))) for share in random.uniform(0.1, 0.2, 2))
    left, top = int(random.integers(0, image.width - width)), int(random.integers(0, image.height - height))
    angle = float(random.uniform(40, 140))
    patch = image.crop((left, top, left + width, top + height))
    tinted = Image.fromarray(np.clip(np.asarray(patch, np.float32) * random.uniform(0.75, 1.25, 3), 0, 255).astype(np.uint8))
    changed, place = image.copy(), random.uniform(0.25, 0.75, 2) * image.size
    mask = Image.new("L", patch.size, 255).rotate(angle, Image.Resampling.BILINEAR, expand=True)
    changed.paste(
        tinted.rotate(angle, Image.Resampling.BILINEAR, expand=True), (int(place[0] - width / 2), int(place[1] - height / 2)), mask
    )
    return changed


def write_defect_set(name: str, folder: Path) -> None:
    """Write a defect set in the layout of MVTec AD: ``train/good``, ``test/good``, ``test/KIND``."""
    images, random = list(DEFECT_SETS[name]()), np.random.default_rng(0)
    for index, number in enumerate(random.permutation(len(images)).tolist()):
        image, kind = images[number], KINDS[index % len(KINDS)]
        part = "train/good" if index < TRAINING else "test/good" if index < TRAINING + NORMAL else f"test/{kind}"
        (folder / part).mkdir(parents=True, exist_ok=True)
        (image if part.endswith("good") else damage(image, kind, random)).save(folder / part / f"{number:03d}.png")


def write_class_set(name: str, label: str, folder: Path) -> None:
    """Link the images of a class as ``good``, and images of the other classes as ``other``."""
    random = np.random.default_rng(0)
    root = SHARED / "data" / name
    others = sorted(path for path in root.glob("*/*") if path.parent.name != label)
    for part, paths in (("good", sorted((root / label).iterdir())), ("other", random.permutation(np.array(others))[:OTHERS].tolist())):
        (folder / part).mkdir(parents=True)
        for path in paths:
            (folder / part / f"{path.parent.name}-{path.name}").symlink_to(path)


# ---- comparison on features


def detector(whole: bool = True) -> tuple[Backbone, DistanceNetwork]:
    """Return the backbone with ImageNet weights, and an anomaly head that is not fitted."""
    backbone = load_backbone(TrainConfig.from_options(backbone=WEIGHTS).backbone, 2)
    network = without_classifier(backbone.model).eval()
    spec = describe_network(network, backbone.spec.input_size, whole=whole)
    assert spec is not None
    return backbone, DistanceNetwork(network, spec).eval()


def features_of(folder: Path, most: int) -> tuple[Sequence[Sample], torch.Tensor, torch.Tensor]:
    """Return at most ``most`` images of each folder in ``folder``, with their patches and image features."""
    backbone, network = detector()
    folders: dict[Path, list[Sample]] = {}
    for sample in sorted(scan_unlabeled(folder), key=lambda item: item.content):
        folders.setdefault(sample.path.parent, []).append(sample)
    samples = [sample for found in folders.values() for sample in found[:most]]
    with torch.inference_mode():
        rows = [network.backbone(torch.from_numpy(batch)) for batch in batches(samples, backbone.spec)]
    return samples, torch.cat([patch for patch, _ in rows]), torch.cat([image for _, image in rows])


def cases_of(name: str, folder: Path, samples: Sequence[Sample]) -> Iterator[Case]:
    """Yield the cases of an image set: one for a defect set, one for each class of a class set."""
    parts = np.array([sample.path.parent.relative_to(folder).as_posix() for sample in samples])
    if name in DEFECT_SETS:
        where = [parts == "train/good", parts == "test/good", np.array([part not in ("train/good", "test/good") for part in parts])]
        yield Case(name, *map(np.flatnonzero, where))
        return
    for label in sorted(set(parts.tolist())):
        random = np.random.default_rng(0)
        own, others = random.permutation(np.flatnonzero(parts == label)), random.permutation(np.flatnonzero(parts != label))
        count = round(0.7 * len(own))
        yield Case(f"{name} {label}", own[:count], own[count:], others[:OTHERS])


def scores_of_methods(patches: torch.Tensor, images: torch.Tensor, case: Case) -> dict[str, float]:
    """Return the AUROC of each method for one case. 20 % of the training images weight the distances."""
    _, network = detector()
    count = round(0.8 * len(case.train))
    fitted, validation = case.train[:count], case.train[count:]
    fit_distributions(network, [(patches[fitted], images[fitted])])
    with torch.inference_mode():
        near = {part: network.distances(patches[rows], images[rows]) for part, rows in _parts(case, validation)}
        fit_weights(network, near["validation"].numpy(), 0.01)
        both = {part: network.head(distances).flatten(1).numpy() for part, distances in near.items()}
    found = {"both": both}
    found |= {name: {part: item[:, :, index].numpy() for part, item in near.items()} for index, name in enumerate(("patches", "image"))}
    found["k-NN of patches"] = _nearest(patches, case, network)
    return {name: _auroc(item["normal"], item["anomalies"]) for name, item in found.items()}


def _parts(case: Case, validation: NDArray[np.int64]) -> list[tuple[str, NDArray[np.int64]]]:
    return [("validation", validation), ("normal", case.normal), ("anomalies", case.anomalies)]


def _nearest(patches: torch.Tensor, case: Case, network: DistanceNetwork) -> dict[str, NDArray[np.float32]]:
    """Return the distance of each patch to the nearest of ``BANK`` random training patches, whitened by the Gaussian distribution."""
    centered = patches[case.train].flatten(0, 1) - network.patch.center
    variances, axes = torch.linalg.eigh(centered.T @ centered / len(centered))
    white = axes / torch.sqrt(variances.clamp_min(0) + 0.01 * variances.mean())
    bank = (centered @ white)[torch.randperm(len(centered), generator=torch.Generator().manual_seed(0))[:BANK]]
    found = {}
    for part, rows in (("normal", case.normal), ("anomalies", case.anomalies)):
        found[part] = np.stack([torch.cdist((row - network.patch.center) @ white, bank).min(dim=1).values.numpy() for row in patches[rows]])
    return found


def _auroc(normal: NDArray[np.float32], anomalies: NDArray[np.float32]) -> float:
    truth = np.arange(len(normal) + len(anomalies)) >= len(normal)
    return auroc(truth, anomaly_outputs(np.concatenate([normal, anomalies])))


def compare(most: int) -> None:
    """Print the AUROC of the methods: a row for each defect set, and the mean over the classes of each class set."""
    names = ("both", "patches", "image", "k-NN of patches")
    print(f"| normal images | detectors | {' | '.join(names)} |\n|{'---|' * (2 + len(names))}")
    rows: list[list[float]] = []
    with tempfile.TemporaryDirectory() as work:
        for name in (*DEFECT_SETS, *CLASS_SETS):
            folder = SHARED / "data" / name
            if name in DEFECT_SETS:
                folder = Path(work) / name
                write_defect_set(name, folder)
            samples, patches, images = features_of(folder, TRAINING if name in DEFECT_SETS else most)
            found = [scores_of_methods(patches, images, case) for case in cases_of(name, folder, samples)]
            means = [float(np.mean([item[method] for item in found])) for method in names]
            rows.append(means)
            title = f"{name}, defects" if name in DEFECT_SETS else f"a class of {name}"
            print(f"| {title} | {len(found)} | {' | '.join(f'{value:.3f}' for value in means)} |", flush=True)
    print(f"| mean | | {' | '.join(f'{value:.3f}' for value in np.mean(rows, axis=0))} |")


# ---- bundles


def trained_detectors(wanted: Sequence[str]) -> Iterator[tuple[str, str, Run]]:
    """Yield name, kind of anomalies and run of the detectors of ``wanted``: defect sets, and classes as ``SET:CLASS``."""
    for name in wanted:
        with tempfile.TemporaryDirectory() as work:
            data, (group, _, label) = Path(work) / "data", name.partition(":")
            write_class_set(group, label, data) if label else write_defect_set(name, data)
            for kind in ("all",) if label else ("all", "defects"):
                config = TrainConfig.from_options(task="anomaly", backbone=WEIGHTS, val=0.2, test=0.3, anomalies=kind)
                yield name, kind, train(data, config, Path(work) / f"run-{kind}")


def export(wanted: Sequence[str]) -> None:
    """Train, export and print the AUROC of each variant on the test images. ``wanted``: as for ``trained_detectors``."""
    print("| normal images | anomalies | trained | onnx fp32 | onnx int8 | openvino fp32 | openvino int8 | false alarms | detected |")
    print(f"|{'---|' * 9}")
    for name, kind, run in trained_detectors(wanted):
        with tempfile.TemporaryDirectory() as work:
            bundle = export_bundle(run.path, ExportConfig(allow_missing=True), Path(work) / "bundle")
        variants = {item.name: item for item in bundle.manifest.variants}
        shown = [variants.get(f"{format_}-{precision}") for format_ in ("onnx", "openvino") for precision in ("fp32", "int8")]
        test = run.record.test
        assert test is not None and test.anomaly is not None
        cells = [f"{test.score.value:.3f}", *(f"{item.test.value:.3f}" if item and item.test else "rejected" for item in shown)]
        rates = [f"{item.value:.3f}" for item in (test.anomaly.false_alarms, test.anomaly.detected)]
        print(f"| {name} | {kind} | {' | '.join([*cells, *rates])} |", flush=True)
        for item in shown:
            if item and item.attempts:
                correlation = f"score correlation {item.agreement.score_correlation:.3f}"
                print(f"{item.name}: {item.attempts[-1].method}; {len(item.attempts)} attempts, {correlation}", flush=True)
        for rejected in bundle.manifest.rejected:
            print(f"{rejected.name}: {rejected.reason}", flush=True)


def compare_calibrations(wanted: Sequence[str]) -> None:
    """Print the AUROC drop on the test images, and the score correlations of the accuracy gate, of int8 files with each calibration."""
    print("| normal images | anomalies | calibration | file | AUROC drop | correlation, normal | correlation, confetti |")
    print(f"|{'---|' * 7}")
    for name, kind, run in trained_detectors(wanted):
        with tempfile.TemporaryDirectory() as work:
            context = prepare(run, ExportConfig(allow_missing=True), Path(work), silent)
            context.write_source()
            normal = PixelSet([item for item in context.calibration.samples if item.synthetic is None], context.gate.spec)
            trained = _outputs(context, SOURCE_FORMAT, [context.source])
            for title, images in (("normal", normal), ("with confetti", context.calibration)):
                for format_, backend in FORMATS.items():
                    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as target:
                        ends = 2 if kind == "all" else 1
                        given = QuantizerInput(context.source, [row[None] for rows in images.batches() for row in rows], Path(folder), ends)
                        quantizer = backend.quantizer(given)
                        files = quantizer.quantize(quantizer.attempts("here")[0], Path(target))
                        found = _outputs(context, format_, files)
                    cells = [auroc_of(context.test, trained["test"]) - auroc_of(context.test, found["test"])]
                    cells += [score_correlation(trained[part], found[part]) for part in ("normal", "confetti")]
                    print(f"| {name} | {kind} | {title} | {format_} | {' | '.join(f'{cell:.4f}' for cell in cells)} |", flush=True)


def _outputs(context: ExportContext, format_: Format, files: list[Path]) -> dict[str, NDArray[np.float32]]:
    normal = PixelSet([item for item in context.gate.samples if item.label == 0], context.gate.spec)
    logits = open_files(format_, files)
    return {
        part: outputs_of(logits, images)
        for part, images in (("test", context.test), ("normal", normal), ("confetti", context.confetti.images))
    }


def auroc_of(images: PixelSet, outputs: NDArray[np.float32]) -> float:
    """Return the AUROC of heat maps ``[n, positions]`` for ``images``."""
    return auroc(truth_of(images.samples) > 0, anomaly_outputs(outputs))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.anomaly", description=__doc__)
    default = [*DEFECT_SETS, "trashnet:paper", "sign-digits:0", "pacs/photo:dog"]
    parser.add_argument("--export", nargs="*", metavar="SET", help=f"bundles of these sets [default: {' '.join(default)}]")
    parser.add_argument("--per-class", type=int, default=80, help="images of each class of a class set")
    parser.add_argument("--calibration", nargs="*", metavar="SET", help="int8 files of these sets [default: as for --export]")
    given = parser.parse_args()
    if given.calibration is not None:
        compare_calibrations(given.calibration or default)
    else:
        compare(given.per_class) if given.export is None else export(given.export or default)


if __name__ == "__main__":
    main()
