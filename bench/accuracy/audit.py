"""Data audit: recall of planted copies and label errors, and near-duplicates of CIFAR-10.

``python -m bench.accuracy.audit [planted|labels|cifar|speed …]``. Needs the reference images. ``speed`` prints CPU time and peak memory of
``edgetl check``. ``--sheet FILE`` writes 100 of the near-duplicates
of CIFAR-10 side by side, for a look at the precision.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

from bench.paths import SHARED
from edgetl.core.system.host import describe_host
from edgetl.data.audit.audit import audit
from edgetl.data.audit.copies import Joined, Pair, find_copies, find_identical
from edgetl.data.audit.result import STRONG_MARGIN
from edgetl.data.folder import ImageFolder, scan
from edgetl.data.loading import labels_of
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig
from edgetl.train.config.weights_dir import EMBEDDED_BACKBONE
from edgetl.train.workflows.audit.features import AuditFeatures, compute_features
from edgetl.train.workflows.audit.findings import find_by_features
from edgetl.train.workflows.audit.label_errors import find_label_errors, out_of_sample, self_confidence
from edgetl.train.workflows.audit.neighbors import find_near_duplicates

BACKBONES = (EMBEDDED_BACKBONE, f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet")
PLANTED, FLIPPED, CROPPED_SIDE = 0.05, 0.08, 0.8
SEEDS = 5
# Numbers of photos of each size: the difference of their times leaves out imports and the conversion of the network.
PHOTOS, SMALL_IMAGES = {(1600, 1200): (210, 510), (4000, 3000): (210, 310)}, (2500, 10_000)
NOISE = 12
SHEET_PAIRS, SHEET_SIDE, SHEET_COLUMNS = 100, 64, 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.audit", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], "planted", "labels", "cifar", "speed"], default=[])
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--sheet", type=Path, help="contact sheet of the near-duplicates of CIFAR-10 (PNG)")
    given = parser.parse_args()
    print(describe_host())
    parts = given.parts or ["planted", "labels", "cifar", "speed"]
    with tempfile.TemporaryDirectory() as work:
        planted = plant(SHARED / "data/trashnet", Path(work) / "planted")
        for name in given.backbones.split(","):
            if "planted" in parts:
                report_planted(planted, name)
            if "labels" in parts:
                report_labels(SHARED / "data/trashnet", name)
        if "cifar" in parts:
            with tarfile.open(SHARED / "data/cifar10.tar") as archive:
                archive.extractall(work, filter="data")
            for name in given.backbones.split(","):
                report_cifar(scan(Path(work) / "cifar10"), name, given.sheet)
        if "speed" in parts:
            report_speed(Path(work))


def plant(source: Path, target: Path) -> Path:
    """Copy a folder, and add re-encoded, resized copies (``re_``) and crops (``crop_``) of 5 % of its images each."""
    generator, files = random.Random(0), sorted(source.rglob("*.jpg"))
    for path in files:
        copied = target / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    count = round(PLANTED * len(files))
    for number, path in enumerate(generator.sample(files, 2 * count)):
        image = Image.open(path).convert("RGB")
        if number < count:
            scale = generator.uniform(0.5, 1)
            made = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
            made.save(target / path.parent.name / f"re_{path.name}", quality=generator.randint(40, 90))
        else:
            width, height = round(image.width * CROPPED_SIDE), round(image.height * CROPPED_SIDE)
            left, top = generator.randint(0, image.width - width), generator.randint(0, image.height - height)
            made = image.crop((left, top, left + width, top + height))
            made.save(target / path.parent.name / f"crop_{path.name}", quality=90)
    return target


def report_planted(root: Path, backbone: str) -> None:
    """Print the recall of the planted copies, and the other images that were reported."""
    start = time.perf_counter()
    folder = scan(root)
    copies = [*find_identical(folder.samples), *find_copies(folder.samples)]
    findings = find_by_features(folder, copies, BackboneConfig(name=backbone))
    report = audit(folder, copies, findings).report
    seconds = time.perf_counter() - start
    sets = [set(item.files) for item in report.copies]
    for prefix in ("re_", "crop_"):
        names = [(item, item.replace(prefix, "")) for item in _names(folder) if item.split("/")[1].startswith(prefix)]
        found = sum(any({copy, original} <= group for group in sets) for copy, original in names)
        print(f"{backbone}: {prefix} {found} of {len(names)} planted copies found ({found / len(names):.1%})")
    others = [{name for name in group if not name.split("/")[1].startswith(("re_", "crop_"))} for group in sets]
    reported = [sorted(group) for group in others if len(group) > 1]
    extra = sum(len(group) - 1 for group in reported)
    print(f"{backbone}: {extra} other images of {report.images} reported ({extra / report.images:.2%}), {seconds:.0f} s in total")
    for group in reported:
        print(f"  {' = '.join(group)}")
    print(f"{backbone}: conflicts: {[item.files for item in report.copies if item.conflict and item.kind != 'near-duplicate']}")


def report_labels(root: Path, backbone: str) -> None:
    """Print precision at k, area under the ROC curve, and precision of the two grades for 8 % changed labels, over five seeds."""
    folder = scan(root)
    found = compute_features(folder, load_backbone(BackboneConfig(name=backbone), 2), device="cpu")
    truth, groups = labels_of(folder.samples), _groups(folder)
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        changed = generator.choice(len(truth), round(FLIPPED * len(truth)), replace=False)
        labels = truth.copy()
        labels[changed] = (labels[changed] + generator.integers(1, truth.max() + 1, len(changed))) % (truth.max() + 1)
        probabilities = out_of_sample(found.stages, labels, groups)
        scores = -self_confidence(probabilities, labels)
        wrong = labels != truth
        first = np.argsort(-scores)[: len(changed)]
        print(f"{backbone}: seed {seed}, precision at {len(changed)} {wrong[first].mean():.3f}, AUROC {roc_auc_score(wrong, scores):.3f}")
        flagged = find_label_errors(probabilities, labels)
        strong = probabilities[flagged].max(axis=1) + scores[flagged] >= STRONG_MARGIN
        for grade, rows in (("strong", flagged[strong]), ("weak", flagged[~strong])):
            print(f"{backbone}: seed {seed}, {grade}: {wrong[rows].sum()} of {len(rows)} are changed labels ({wrong[rows].mean():.1%})")


def report_cifar(folder: ImageFolder, backbone: str, sheet: Path | None) -> None:
    """Print the ratio of the test images that are near-duplicates of training images."""
    start = time.perf_counter()
    copies = [*find_identical(folder.samples), *find_copies(folder.samples)]
    hashed = time.perf_counter() - start
    joined = Joined(len(folder.samples), copies)
    found: AuditFeatures = compute_features(folder, load_backbone(BackboneConfig(name=backbone), 2), device="cpu")
    near = find_near_duplicates(found, labels_of(folder.samples), joined)
    train = {joined.root(index) for index, sample in enumerate(folder.samples) if sample.part == "train"}
    test = [index for index, sample in enumerate(folder.samples) if sample.part == "test"]
    leaked = sum(joined.root(index) in train for index in test)
    print(
        f"{backbone}: {leaked} of {len(test)} test images are near-duplicates of training images ({leaked / len(test):.2%}); "
        f"copies by hash: {len(copies)} in {hashed:.0f} s; all {time.perf_counter() - start:.0f} s"
    )
    if sheet is not None:
        parts = [sample.part for sample in folder.samples]
        crossing = [pair for pair in (*copies, *near.pairs) if {parts[pair.first], parts[pair.second]} == {"train", "test"}]
        _draw(folder, random.Random(0).sample(crossing, min(SHEET_PAIRS, len(crossing))), sheet)


def report_speed(work: Path) -> None:
    """Print the CPU time and the peak memory of ``edgetl check`` for photos of two sizes, and for CIFAR-10 images."""
    for (width, height), counts in PHOTOS.items():
        title = f"photos of {width} x {height} px"
        photos = enlarge(work / f"photos{width}", max(counts), (width, height))
        few, many = (report_usage(link(photos, work / f"photos{width}-{count}", count), f"{count} {title}") for count in counts)
        print(f"10,000 {title}: {10_000 * (many - few) / (counts[1] - counts[0]):.0f} s of CPU time (slope)", flush=True)
    for count in SMALL_IMAGES:
        with tarfile.open(SHARED / "data/cifar10.tar") as archive:
            members = (member for member in archive if "/train/" in member.name and member.isfile())
            archive.extractall(work / f"small{count}", members=itertools.islice(members, 0, None, 50_000 // count), filter="data")
        report_usage(work / f"small{count}/cifar10/train", f"{count} CIFAR-10 images")


def enlarge(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write ``count`` enlarged photos of trashnet with noise, so that a photo of 12 megapixels has about 4 MB."""
    files = sorted((SHARED / "data/trashnet").rglob("*.jpg"))
    noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, (size[1], size[0], 1), np.int16)
    for path in files[:: len(files) // count][:count]:
        target = folder / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC))
        Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(target, quality=90)
    return folder


def link(source: Path, target: Path, count: int) -> Path:
    """Make hard links to the first ``count`` photos of a folder."""
    for path in sorted(source.rglob("*.jpg"))[:count]:
        linked = target / path.relative_to(source)
        linked.parent.mkdir(parents=True, exist_ok=True)
        linked.hardlink_to(path)
    return target


def report_usage(folder: Path, title: str) -> float:
    """Print the CPU time and the peak memory of a check without cached results. Return the CPU time, seconds."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache")}
    with (folder.parent / "check.json").open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", "edgetl.cli.app", "check", str(folder), "--json"], stdout=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = usage.ru_utime + usage.ru_stime
    print(f"{title}: {seconds:.0f} s of CPU time, peak memory {usage.ru_maxrss / 1024:.0f} MB, exit code {status}", flush=True)
    return seconds


def _draw(folder: ImageFolder, pairs: Sequence[Pair], sheet: Path) -> None:
    rows = -(-len(pairs) // SHEET_COLUMNS)
    canvas = Image.new("RGB", (SHEET_COLUMNS * (2 * SHEET_SIDE + 10), rows * (SHEET_SIDE + 6)), "white")
    for place, pair in enumerate(pairs):
        left, top = place % SHEET_COLUMNS * (2 * SHEET_SIDE + 10), place // SHEET_COLUMNS * (SHEET_SIDE + 6)
        for offset, index in enumerate((pair.first, pair.second)):
            image = Image.open(folder.samples[index].path).resize((SHEET_SIDE, SHEET_SIDE))
            canvas.paste(image, (left + offset * (SHEET_SIDE + 2), top))
    canvas.save(sheet)


def _names(folder: ImageFolder) -> list[str]:
    return [sample.path.relative_to(folder.root).as_posix() for sample in folder.samples]


def _groups(folder: ImageFolder) -> np.ndarray:
    joined = Joined(len(folder.samples), [*find_identical(folder.samples), *find_copies(folder.samples)])
    return np.array([joined.root(index) for index in range(len(folder.samples))])


if __name__ == "__main__":
    main()
