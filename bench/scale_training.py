"""Training from shards at scale: accuracy against folders, memory, resume after a kill, and two processes.

``python -m bench.scale_training --work DIR --shards 1000`` makes variations (crops, flips and brightness) of the photographs of trashnet,
64 pixels, 100 images per shard, and keeps them in DIR. All variations of a photograph are in one split. Parts:

- ``accuracy``: test accuracy of shards and of a folder with the same images and splits, for each strategy and seed.
- ``memory``: peak resident memory of a training from a tenth of the shards and from all of them. Use 100 shards or more: below 200
  images torch computes the features instead of OpenVINO, and up to 33,000 images the number of listed images grows.
- ``resume``: a training is killed (SIGKILL) at random moments and resumed, and its weights are compared with an undisturbed one.
- ``processes``: weights after a training with two processes and with one, with the same batches.
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
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageEnhance

from bench.paths import SHARED
from edgetl.core.system.host import describe_host, versions
from edgetl.data.shards.index import SplitRule, fraction
from edgetl.train.artifacts.run import open_run

IMAGES_PER_SHARD, SIDE = 100, 64
PARTS = ("accuracy", "memory", "resume", "processes")
# The embedded backbone at the size of the images.
OPTIONS = ("--backbone", "edgetl_small", "--input-size", str(SIDE), "--augmented-views", "1", "--allow-leakage")
FINE_TUNING = ("--strategy", "full", "--epochs", "1", "--mixup", "0")
RULE = SplitRule(seed=0, val=0.15, test=0.15)


def main() -> None:
    """Make the images, and print the result of each part."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale_training", description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for images and runs")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    if not (SHARED / "data/trashnet").is_dir():
        parser.exit(2, f"Nothing was measured: the reference images are not at {SHARED}. Set EDGETL_SHARED to their folder.\n")
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    make_shards(given.work / "shards", given.shards)
    print(f"{given.shards} shards of {IMAGES_PER_SHARD} images, {SIDE} pixels")
    for part in given.parts:
        {"accuracy": accuracy, "memory": memory, "resume": resume, "processes": processes}[part](given)


def make_shards(folder: Path, count: int) -> None:
    """Write the shards that are missing. Each depends on its number only."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = sorted((SHARED / "data/trashnet").glob("*/*.jpg"))
    for number in range(count):
        path = folder / f"{number:05d}.tar"
        if path.exists():
            continue
        with tarfile.open(path.with_suffix(".partial"), "w") as archive:
            for name, data in _members(photos, number):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        path.with_suffix(".partial").rename(path)


def _members(photos: list[Path], number: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(number)
    for place in range(IMAGES_PER_SHARD):
        photo, key = rng.choice(photos), f"{number:05d}-{place:03d}"
        group = f"{photo.parent.name}/{photo.stem}"
        where = fraction(f"{RULE.seed} {group}")
        part = "test" if where < RULE.test else "val" if where < RULE.test + RULE.val else "train"
        yield f"{key}.jpg", _variation(photo, rng)
        yield f"{key}.cls", photo.parent.name.encode()
        yield f"{key}.json", json.dumps({"group": group, "split": part}).encode()


def _variation(photo: Path, rng: random.Random) -> bytes:
    with Image.open(photo) as opened:
        opened.draft("RGB", (2 * SIDE, 2 * SIDE))
        image = opened.convert("RGB")
    side = int(min(image.size) * rng.uniform(0.7, 1.0))
    left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
    image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    data = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2)).save(data, "JPEG", quality=90)
    return data.getvalue()


def train(source: str | Path, out: Path, *options: str, processes: int = 1) -> tuple[float, float]:
    """Train, and return the test accuracy and the peak resident memory in MB."""
    started = start(source, out, *options, "--overwrite", processes=processes)
    _, status, usage = os.wait4(started.pid, 0)
    if status:
        raise SystemExit(f"edgetl train ended with {os.waitstatus_to_exitcode(status)}. Its messages are in {out}.log")
    test = open_run(out).record.test
    assert test is not None
    return test.accuracy.value, usage.ru_maxrss * 1024 / 1e6


def start(source: str | Path, out: Path, *options: str, processes: int = 1) -> subprocess.Popen[bytes]:
    """Start a training."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [
        sys.executable,
        "-W",
        "ignore",
        *launcher,
        "-m",
        "edgetl.cli.app",
        "train",
        str(source),
        "--out",
        str(out),
        *OPTIONS,
        *options,
    ]
    with out.with_name(f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def pattern(given: argparse.Namespace, count: int) -> str:
    """Return the pattern of the first ``count`` shards."""
    return f"{given.work}/shards/{{00000..{count - 1:05d}}}.tar"


def accuracy(given: argparse.Namespace) -> None:
    """Print the test accuracy of shards and of a folder."""
    folder = given.work / "folder"
    _unpack(given, folder)
    print("accuracy: strategy, seed, folder, shards, difference")
    for strategy in (("--strategy", "probe"), FINE_TUNING):
        differences = []
        for seed in map(str, range(given.seeds)):
            options = (*strategy, "--seed", seed)
            values = [train(source, given.work / "run", *options)[0] for source in (folder, pattern(given, given.shards))]
            differences.append(values[1] - values[0])
            print(f"  {strategy[1]:6} {seed} {values[0]:.4f} {values[1]:.4f} {differences[-1]:+.4f}", flush=True)
        print(f"  {strategy[1]:6} mean difference {sum(differences) / len(differences):+.4f}")


def _unpack(given: argparse.Namespace, folder: Path) -> None:
    """Write the images of the shards as class folders of ready-made splits."""
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(given.shards):
        with tarfile.open(given.work / "shards" / f"{number:05d}.tar") as archive:
            found = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
        for name in (name for name in found if name.endswith(".jpg")):
            stem = name.removesuffix(".jpg")
            path = folder / json.loads(found[f"{stem}.json"])["split"] / found[f"{stem}.cls"].decode() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(found[name])


def memory(given: argparse.Namespace) -> None:
    """Print the peak memory of a tenth of the shards and of all shards."""
    print("memory: strategy, images, peak MB, ratio")
    for strategy in (("--strategy", "probe"), FINE_TUNING):
        first = 0.0
        for count in (given.shards // 10, given.shards):
            _, peak = train(pattern(given, count), given.work / "run", *strategy)
            first = first or peak
            print(f"  {strategy[1]:6} {count * IMAGES_PER_SHARD:7,} {peak:.0f} {peak / first:.3f}", flush=True)


def resume(given: argparse.Namespace) -> None:
    """Kill a training at random moments, resume it, and compare its weights with those of an undisturbed one."""
    rng = random.Random(0)
    for strategy in (("--strategy", "probe"), (*FINE_TUNING, "--checkpoint-s", "1")):
        started = time.monotonic()
        source, whole, out = pattern(given, given.shards), given.work / "whole", given.work / "killed"
        shutil.rmtree(out, ignore_errors=True)  # of the other strategy: --resume does not replace it
        train(source, whole, *strategy)
        seconds, kills, options = time.monotonic() - started, 0, ["--overwrite"]
        while True:
            process = start(source, out, *strategy, *options)
            try:
                code = process.wait(rng.uniform(0.4, 0.9) * seconds if kills < given.kills else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills, saved = kills + 1, any(given.work.glob("killed.checkpoints/step-*"))
                options = ["--resume"] if saved else ["--overwrite"]
                continue
            if code:
                raise SystemExit(f"edgetl train ended with {code}. Its messages are in {out}.log")
            break
        digests = {hashlib.sha256((path / "weights.safetensors").read_bytes()).hexdigest() for path in (whole, out)}
        print(f"resume: {strategy[1]}, {kills} kills, weights {'bit-identical' if len(digests) == 1 else 'DIFFERENT'}", flush=True)


def processes(given: argparse.Namespace) -> None:
    """Compare a training with two processes with one."""
    for strategy in (("--strategy", "probe"), FINE_TUNING):
        out = [given.work / f"processes-{count}" for count in (1, 2)]
        values = [train(pattern(given, given.shards), path, *strategy, processes=count)[0] for count, path in enumerate(out, start=1)]
        states = [open_run(path).load_model().state_dict() for path in out]
        largest = max(float((states[0][name].float() - states[1][name].float()).abs().max()) for name in states[0])
        print(f"processes: {strategy[1]}, test accuracy {values[0]:.4f} and {values[1]:.4f}, largest difference of a weight {largest:.1e}")


if __name__ == "__main__":
    main()
