"""Domain adaptation without labels: accuracy on another domain by ``edgetl adapt``, for pairs of domains and each method.

``python -m bench.accuracy.adaptation --work FOLDER``. The ImageNet MobileNetV2 is trained on one domain with the defaults of ``edgetl
train``, adapted to all images of another domain without their labels, and measured on these images. The domains are those of PACS
(``photo-sketch``), and half of an image set with the other half as another camera would take it: darker, with a color cast, out of
focus (``trashnet-camera``). Runs and measurements are kept in the work folder: a repeated call completes them, and prints all rows.

The methods ``coral``, ``mmd``, ``dann`` and their combinations with ``mcc`` (``mcc+coral``) are those of ``bench.accuracy.alignment``.
``edgetl adapt`` does not have them. ``--export`` exports the adapted runs, and prints the accuracy of each variant on the target images
instead. Half of these images calibrate int8 and the other half are those of the accuracy gate, without labels.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from bench.accuracy.alignment import ALIGNMENTS, measure_alignment
from bench.paths import SHARED
from edgetl.core.images.decode import load_image
from edgetl.core.system.host import describe_host
from edgetl.export import ExportConfig, export_bundle
from edgetl.runtime.evaluation import EvaluationConfig, evaluate_bundle
from edgetl.train.config.adaptation.options import SOURCE_ONLY, AdaptationConfig
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.runs.adapt import adapt_run
from edgetl.train.workflows.runs.evaluate import evaluate_run
from edgetl.train.workflows.train import train

PACS = SHARED / "data/pacs"
BACKBONE = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
PAIRS = "photo-sketch,photo-cartoon,sketch-photo,cartoon-photo,cartoon-sketch,sketch-cartoon,trashnet-camera,sign-digits-camera"
CAMERA = "camera"
RESULTS = "results.jsonl"


def main() -> None:
    """Complete the measurements, and print one table of all measurements in the work folder."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.adaptation", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of runs and measurements")
    parser.add_argument("--pairs", default=PAIRS, help="pairs of domains, SOURCE-TARGET")
    parser.add_argument("--methods", default="auto", help="methods of edgetl adapt")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--side", type=int, default=128, help="input height and width, px")
    parser.add_argument("--export", action="store_true", help="accuracy of the exported variants of the adapted runs instead")
    parser.add_argument("--max-drop", type=float, default=0.01, help="limit of the accuracy gate for --export")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds.split(","):
        for pair in given.pairs.split(","):
            for method in (SOURCE_ONLY, *given.methods.split(",")):
                if (pair, int(seed), method) not in {key(row) for row in read(given.work)}:
                    measure(given.work, pair, int(seed), method, given.side)
    if given.export:
        export_all(given.work, [key(row) for row in read(given.work)], given.max_drop)
        return
    print(f"{describe_host()}; ImageNet MobileNetV2 at {given.side} px")
    print_table(read(given.work))


def measure(work: Path, pair: str, seed: int, method: str, side: int) -> None:
    """Train and adapt as far as necessary, measure the accuracy on the target domain, and append it to the results."""
    source, target = domains(pair, work)
    run = work / f"{source.name}-{seed}"
    if not run.exists():
        config = TrainConfig.from_options(backbone=BACKBONE, input_size=(side, side), seed=seed)
        train(source, config, run, resume=run.with_name(f"{run.name}.checkpoints").exists())
    row: dict[str, Any] = {"pair": pair, "seed": seed, "method": method}
    if method.split("+")[-1] in ALIGNMENTS:
        write(work, row | measure_alignment(run, target, method, seed))
        return
    if method != SOURCE_ONLY:
        adapted = adapt_run(
            run,
            target,
            work / f"{pair}-{seed}-{method}",
            AdaptationConfig.model_validate({"method": method, "seed": seed}),
            overwrite=True,
        )
        assert adapted.record.adaptation is not None
        row |= {"seconds": adapted.record.seconds, **adapted.record.adaptation.model_dump(mode="json")}
        run = adapted.path
    result = evaluate_run(run, target, EvaluationConfig(every_image=True)).result
    row["accuracy"] = result.accuracy.value
    write(work, row)


def write(work: Path, row: dict[str, Any]) -> None:
    """Append a measurement to the results in the work folder, and print its accuracy."""
    with (work / RESULTS).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{row['pair']} seed {row['seed']} {row['method']}: {row['accuracy']:.3f}", flush=True)


def export_all(work: Path, measured: list[tuple[str, int, str]], max_drop: float) -> None:
    """Export the adapted runs in the work folder, and print the accuracy of each variant on the target images."""
    print("| pair | seed | method | variant | accuracy on target images | agreement | expected drop | last quantization |")
    print(f"|{'---|' * 8}")
    for pair, seed, method in measured:
        run, target = work / f"{pair}-{seed}-{method}", domains(pair, work)[1]
        if not run.exists():
            continue
        trained = evaluate_run(run, target, EvaluationConfig(every_image=True)).result.accuracy.value
        print(f"| {pair} | {seed} | {method} | trained | {trained:.3f} | | | |", flush=True)
        with TemporaryDirectory() as folder:
            bundle = export_bundle(run, ExportConfig(unlabeled=target, allow_missing=True, max_drop=max_drop), Path(folder) / "bundle")
            for item in bundle.manifest.variants:
                config = EvaluationConfig(every_image=True, variant=item.name)
                accuracy = evaluate_bundle(bundle, target, config).result.accuracy.value
                last = item.attempts[-1].method if item.attempts else ""
                row = f"{item.name} | {accuracy:.3f} | {item.validation.value:.3f} | {bundle.manifest.drop_of(item):.4f} | {last}"
                print(f"| {pair} | {seed} | {method} | {row} |", flush=True)
            for rejected in bundle.manifest.rejected:
                print(f"rejected: {rejected.name}: {rejected.reason}", flush=True)


def domains(pair: str, work: Path) -> tuple[Path, Path]:
    """Return the image folders of the source and of the target domain."""
    source, target = pair.rsplit("-", 1)
    if target != CAMERA:
        return PACS / source, PACS / target
    folders = work / f"{source}-half", work / f"{source}-{CAMERA}-images"
    if not folders[1].exists():
        for number, file in enumerate(sorted((SHARED / "data" / source).glob("*/*"))):
            half = folders[number % 2] / file.parent.name
            half.mkdir(parents=True, exist_ok=True)
            image = load_image(file)
            (other_camera(image) if number % 2 else image).save(half / f"{file.stem}.jpg", quality=92)
    return folders


def other_camera(image: Image.Image) -> Image.Image:
    """Return the image as another camera would take it: darker by one and a half stops, with a warm color cast, out of focus."""
    blurred = image.filter(ImageFilter.GaussianBlur(min(image.size) / 100))
    pixels = np.asarray(blurred, np.float32) * np.array([0.45, 0.35, 0.22], np.float32)
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def read(work: Path) -> list[dict[str, Any]]:
    """Return the measurements in the work folder."""
    path = work / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: dict[str, Any]) -> tuple[str, int, str]:
    """Return the pair, the seed and the method of a measurement."""
    return row["pair"], row["seed"], row["method"]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the mean accuracy of each method and pair, and its gain over the network of the run with the same seeds."""
    pairs = [pair for pair in PAIRS.split(",") if any(row["pair"] == pair for row in rows)]
    base = {(row["pair"], row["seed"]): row["accuracy"] for row in rows if row["method"] == SOURCE_ONLY}
    print(f"| method | {' | '.join(pair.replace('-', ' to ') for pair in pairs)} |\n|---|{'---|' * len(pairs)}")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for pair in pairs:
            found = [row for row in rows if (row["method"], row["pair"]) == (method, pair)]
            if not found:
                cells.append("")
                continue
            accuracy = statistics.mean(row["accuracy"] for row in found)
            gain = statistics.mean(row["accuracy"] - base[pair, row["seed"]] for row in found)
            cells.append(f"{accuracy:.3f}" if method == SOURCE_ONLY else f"{accuracy:.3f} ({100 * gain:+.1f}, n = {len(found)})")
        print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
