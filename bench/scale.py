"""Batch scoring at scale: throughput against a plain loop, memory, and results after kills.

``python -m bench.scale --work DIR`` makes 200,000 variations (crops and flips) of the photographs of trashnet, 64 pixels, in 64 tar shards,
and keeps them in DIR. ``--bundle`` is the bundle to run; by default, a probe of the embedded backbone is trained and exported. Parts:

- ``throughput``: images per second of a loop of ``Predictor.predict``, and of ``edgetl predict --out`` with one and with two processes,
  measured in turn, without the start (imports and loading). Each process has one thread. The rate with the start is printed, too.
- ``growth``: images per second by the number of images (1,000 to all), of shards (1, 8, 64) and of processes (1, 2), in turn.
- ``memory``: resident memory during a run, MB, and its slope over the images.
- ``kills``: a run with two processes is killed (SIGKILL) at random moments and repeated, and its merged output is compared with that of an
  undisturbed run. A damaged image is reported by its key.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import edgetl
from bench.memory import family_mb
from bench.paths import SHARED
from edgetl.core.system.host import describe_host, versions
from edgetl.data.inputs.blocks import parse_shard

SHARDS, SIDE = 64, 64
PARTS = ("throughput", "growth", "memory", "kills")
# Numbers of images below that of --images, and of shards below SHARDS.
GROWTH_IMAGES, GROWTH_SHARDS = (1_000, 10_000, 50_000), (1, 8)
BATCH = 16
_COMMAND = (sys.executable, "-m", "edgetl.cli.app")
# Exit code of a run with unreadable images.
_UNREADABLE = 5


def main() -> None:
    """Make the images, and print the result of each part."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for images, bundle and outputs")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--loop", type=parse_shard, help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.work / f"shards-{given.images}"
    if given.loop:
        print(json.dumps(loop(given.bundle, sorted(folder.glob("*.tar"))[given.loop.index :: given.loop.count])))
        return
    if not (SHARED / "data/trashnet").is_dir():
        parser.exit(2, f"Nothing was measured: the reference images are not at {SHARED}. Set EDGETL_SHARED to their folder.\n")
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    given.bundle = given.bundle or make_bundle(given.work)
    make_shards(folder, given.images)
    variant = edgetl.load(given.bundle).variant
    print(f"{given.images:,} images of {SIDE} pixels in {SHARDS} tar shards; {variant.name if variant else given.bundle}")
    for part in given.parts:
        {"throughput": throughput, "growth": growth, "memory": memory, "kills": kills}[part](given, f"{folder}/{{00..{SHARDS - 1}}}.tar")


def make_bundle(work: Path) -> Path:
    """Train a probe of the embedded backbone on trashnet and export it, unless that is done."""
    if not (work / "bundle").exists():
        train = ("train", SHARED / "data/trashnet", "--strategy", "probe", "--input-size", SIDE, "--out", work / "run", "--allow-leakage")
        for arguments in (train, ("export", work / "run", "--out", work / "bundle", "--format", "onnx", "--precision", "fp32")):
            subprocess.run([*_COMMAND, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return work / "bundle"


def make_shards(folder: Path, images: int, shards: int = SHARDS) -> None:
    """Write the tar shards, unless they exist. The first image of shard 7 is damaged."""
    if folder.exists():
        return
    staging = folder.with_suffix(".part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    photographs = sorted((SHARED / "data/trashnet").rglob("*.jpg"))
    sources = [Image.open(path).convert("RGB") for path in photographs[:: max(1, len(photographs) // 250)]]
    for shard in range(shards):
        rng = random.Random(shard)
        with tarfile.open(staging / f"{shard:02d}.tar", "w") as archive:
            for index in range(shard, images, shards):
                data = b"damaged" if (shard, index) == (7, 7) else variation(sources[index % len(sources)], rng)
                member = tarfile.TarInfo(f"{index:07d}.jpg")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    staging.rename(folder)


def variation(photograph: Image.Image, rng: random.Random) -> bytes:
    """Return a JPEG file of a random square of a photograph, flipped at random."""
    side = int(min(photograph.size) * rng.uniform(0.5, 1.0))
    left, top = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
    image = photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    file = io.BytesIO()
    (ImageOps.mirror(image) if rng.random() < 0.5 else image).save(file, "JPEG", quality=90)
    return file.getvalue()


def loop(bundle: Path, shards: Sequence[Path]) -> float:
    """Return the images per second of a plain loop over shards, without the start."""
    predictor = edgetl.load(bundle, threads=1)
    begun, count = time.perf_counter(), 0
    images = _images(shards)
    while batch := list(islice(images, BATCH)):
        count += len(predictor.predict(batch))
    return count / (time.perf_counter() - begun)


def _images(shards: Sequence[Path]) -> Iterator[bytes]:
    for path in shards:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and (data := file.read()) != b"damaged":
                    yield data


def throughput(given: argparse.Namespace, pattern: str) -> None:
    """Compare the loop with one and two processes, in turn. Two loops at the same time show what the cores of the host allow."""
    rates: dict[str, list[float]] = {"loop": [], "1 process": [], "2 loops": [], "2 processes": []}
    whole: dict[str, float] = {}
    for _ in range(given.rounds):
        rates["loop"].append(_loops(given, 1))
        rates["2 loops"].append(_loops(given, 2))
        for count, name in ((1, "1 process"), (2, "2 processes")):
            rate, whole[name] = _rates(given, pattern, given.images, count)
            rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("| way | images/s | ratio to the loop, per process |\n|---|---|---|")
    for name in rates:
        processes = 2 if name.startswith("2") else 1
        ratios = [rate / processes / base for rate, base in zip(rates[name], rates["loop"], strict=True)]
        print(f"| {name} | {medians[name]:,.0f} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |")
    print(f"with the start, last round: {', '.join(f'{name} {rate:,.0f} images/s' for name, rate in whole.items())}")
    print(f"merged outputs of 1 and 2 processes are identical: {_merged(given.work / 'out-1') == _merged(given.work / 'out-2')}")


def _rates(given: argparse.Namespace, pattern: str, images: int, processes: int) -> tuple[float, float]:
    """Return the images per second of a run without its start, and with it."""
    out = given.work / f"out-{processes}"
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    _predict(given.bundle, pattern, out, processes).communicate()
    seconds = time.perf_counter() - begun
    records = [json.loads(path.read_text()) for path in out.glob("part-*.done")]
    return images / max(record["counts"]["seconds"] for record in records), images / seconds


def growth(given: argparse.Namespace, pattern: str) -> None:
    """Print the rates by the number of images, of shards and of processes. One changes; the others are all, 64 and 1."""
    sizes = [(images, SHARDS, 1) for images in (*(count for count in GROWTH_IMAGES if count < given.images), given.images)]
    sizes += [(given.images, shards, 1) for shards in GROWTH_SHARDS] + [(given.images, SHARDS, 2)]
    found: dict[tuple[int, int, int], list[tuple[float, float]]] = {size: [] for size in sizes}
    for _ in range(given.rounds):
        for size in sizes:
            images, shards, processes = size
            folder = Path(pattern).parent if size[:2] == (given.images, SHARDS) else given.work / f"shards-{images}-in-{shards}"
            make_shards(folder, images, shards)
            found[size].append(_rates(given, f"{folder}/*.tar", images, processes))
    print("| images | shards | processes | images/s | with the start |\n|---|---|---|---|---|")
    for (images, shards, processes), rates in found.items():
        rate, whole = (statistics.median(values) for values in zip(*rates, strict=True))
        print(f"| {images:,} | {shards} | {processes} | {rate:,.0f} | {whole:,.0f} |")


def _loops(given: argparse.Namespace, count: int) -> float:
    """Run loops at the same time, each over its part of the shards, and return the sum of their images per second."""
    command = [sys.executable, "-m", "bench.scale", "--bundle", given.bundle, "--work", given.work, "--images", given.images, "--loop"]
    running = [subprocess.Popen([*map(str, command), f"{index}/{count}"], stdout=subprocess.PIPE, text=True) for index in range(count)]
    return sum(float(process.communicate()[0]) for process in running)


def memory(given: argparse.Namespace, pattern: str) -> None:
    """Print the memory of a process over the images, without the first fifth."""
    out = given.work / "out-memory"
    shutil.rmtree(out, ignore_errors=True)
    points: list[tuple[int, float]] = []
    running = _predict(given.bundle, pattern, out, 1)
    while running.poll() is None:
        time.sleep(0.5)
        progress = out / "part-0-of-1.progress"
        try:
            points.append((json.loads(progress.read_text())["counts"]["images"], family_mb(running.pid)))
        except (OSError, StopIteration, ValueError):  # not yet written, or ended
            continue
    kept = [point for point in points if point[0] > given.images / 5]
    if len(kept) < 3:
        print("memory: too few images for a slope")
        return
    images, megabytes = np.array(kept).T
    slope = np.polyfit(images, megabytes, 1)[0] * 100_000
    print(f"memory: {megabytes.min():.0f} to {megabytes.max():.0f} MB, slope {slope:+.2f} MB per 100,000 images, {len(kept)} samples")


def kills(given: argparse.Namespace, pattern: str) -> None:
    """Kill and repeat a run, and compare its merged output with that of an undisturbed run."""
    whole, disturbed = given.work / "out-whole", given.work / "out-killed"
    for folder in (whole, disturbed):
        shutil.rmtree(folder, ignore_errors=True)
    begun = time.perf_counter()
    assert _predict(given.bundle, pattern, whole, 2).wait() == _UNREADABLE
    duration, rng, count, starts = time.perf_counter() - begun, random.Random(0), 0, 0
    while count < given.kills:
        running = _predict(given.bundle, pattern, disturbed, 2)
        starts += 1
        try:
            running.wait(rng.uniform(0.2, max(4.0, 3 * duration / given.kills)))
            shutil.rmtree(disturbed)  # it ended before the kill: begin again
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            count += 1
    assert _predict(given.bundle, pattern, disturbed, 2).wait() == _UNREADABLE
    same = _merged(whole) == _merged(disturbed)
    print(
        f"{count} kills in {starts} starts: the merged output is {'identical to' if same else 'DIFFERENT from'} that of an undisturbed run"
    )
    errors = [json.loads(line) for line in (disturbed / "predictions.jsonl").read_text().splitlines() if '"error"' in line]
    print(f"reported by key: {[(Path(row['file']).name, row['key']) for row in errors]}")


def _predict(bundle: Path, pattern: str, out: Path, processes: int) -> subprocess.Popen[bytes]:
    options: Sequence[object] = ("--out", out, "--processes", processes, "--threads", 1)
    command = [*_COMMAND, "predict", str(bundle), pattern, *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _merged(out: Path) -> str:
    """Merge the parts, and return the SHA-256 of the file."""
    subprocess.run([*_COMMAND, "merge", str(out)], check=False, stdout=subprocess.DEVNULL)
    return hashlib.sha256((out / "predictions.jsonl").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
