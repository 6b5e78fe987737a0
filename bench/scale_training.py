"""Training from shards at scale: accuracy against folders, memory and time by size, resume after a kill, and two processes.

``python -m bench.scale_training --work DIR --shards 1000`` makes variations (crops, flips and brightness) of the photographs of trashnet,
64 pixels, 100 images per shard, and keeps them in DIR. All variations of a photograph are in one split. The network is the embedded
backbone with an input of 32 pixels, and of 64 for the accuracy. Parts:

- ``accuracy``: accuracy of shards and of a folder on the same test images, for each strategy. Each seed has its own splits, the same for
  both.
- ``memory``: largest memory and time of a training from a hundredth and a tenth of the shards, and from all of them. Fine-tuning takes 60
  steps. Use 1,000 shards: a run lists up to 5,000 images of each split, and below 33,000 images this number grows.
- ``resume``: a training from 20 shards is killed (SIGKILL) at random moments and resumed, and its weights are compared with an undisturbed
  one. The last saved steps at the kills show that kills are in the fine-tuning.
- ``processes``: weights after a training from 20 shards with two processes and with one, with the same batches.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from bench.memory import Peak, watch
from bench.paths import SHARED
from edgetl.core.files.byte_ranges import open_range, range_path
from edgetl.core.system.host import describe_host, versions
from edgetl.data.predictions import PREDICTIONS_NAME, parse_predictions
from edgetl.data.shards.index import SplitRule
from edgetl.data.shards.members import Annotation, read_members
from edgetl.train.artifacts.run import open_run

IMAGES_PER_SHARD, SIDE = 100, 64
PARTS = ("accuracy", "memory", "resume", "processes")
# Shards of a training that is killed, and of one with two processes.
FEW_SHARDS, FEW_STEPS = 20, 60
# Steps of a fine-tuning that is killed. The start of the process and the evaluation take a smaller part of its time.
KILLED_STEPS = 1_000
# Input of the accuracy. With the 32 pixels of the other parts, nearly all features of the network are 0.
ACCURACY_SIDE = 64
OPTIONS = ("--backbone", "edgetl_small", "--input-size", "32", "--augmented-views", "1")
PROBE = ("--strategy", "probe")


def main() -> None:
    """Make the images, and print the result of each part."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale_training", description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for images and runs")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="steps of fine-tuning for the accuracy")
    parser.add_argument("--strategies", nargs="+", choices=("probe", "full"), default=("probe", "full"))
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--kill-steps", type=int, default=KILLED_STEPS, help="steps of the fine-tuning that is killed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    if not (SHARED / "data/trashnet").is_dir():
        parser.exit(2, f"Nothing was measured: the reference images are not at {SHARED}. Set EDGETL_SHARED to their folder.\n")
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    make_shards(given.work / "shards", max(given.shards, FEW_SHARDS))
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
        yield f"{key}.jpg", _variation(photo, rng)
        yield f"{key}.cls", photo.parent.name.encode()
        yield f"{key}.json", json.dumps({"group": f"{photo.parent.name}/{photo.stem}"}).encode()


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


def train(source: str | Path, out: Path, *options: str, processes: int = 1) -> Peak:
    """Train, and return the largest memory. Results of a scan of other shards are not read."""
    with tempfile.TemporaryDirectory() as cache:
        started = start(source, out, *options, "--overwrite", processes=processes, cache=cache)
        peak = watch(started)
    if started.returncode:
        raise SystemExit(f"edgetl train ended with {started.returncode}. Its messages are in {out}.log")
    return peak


def fine_tuning(work: Path, steps: int) -> tuple[str, ...]:
    """Return the options of a fine-tuning from a random head, because a folder and shards fit the head to different numbers of images."""
    recipe = work / f"steps-{steps}.toml"
    recipe.write_text(f"fit_head = false\nsteps = {steps}\n")
    return "--strategy", "full", "--recipe", str(recipe), "--mixup", "0"


def start(source: str | Path, out: Path, *options: str, processes: int = 1, cache: str | None = None) -> subprocess.Popen[bytes]:
    """Start a training. ``cache`` is the folder of the results of scans."""
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
    environment = {**os.environ, "XDG_CACHE_HOME": cache} if cache else None
    with out.with_name(f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def pattern(given: argparse.Namespace, count: int) -> str:
    """Return the pattern of the first ``count`` shards."""
    return f"{given.work}/shards/{{00000..{count - 1:05d}}}.tar"


def accuracy(given: argparse.Namespace) -> None:
    """Print the accuracy of shards and of a folder on the test images that the training from shards evaluates."""
    folder = given.work / "folder"
    images = _unpack(given, folder)
    print("accuracy: strategy, seed, test images, folder, shards, difference (standard error)")
    for name in given.strategies:
        options = *(PROBE if name == "probe" else fine_tuning(given.work, given.steps)), "--input-size", str(ACCURACY_SIDE)
        differences = []
        for seed in range(given.seeds):
            table = _write_splits(given.work / f"splits-{seed}.csv", images, seed)
            found = []
            for source, own in ((folder, ("--labels", str(table), "--allow-leakage")), (pattern(given, given.shards), ())):
                # Without this check, the run of the folder would be compared with itself.
                if code := start(source, given.work / "run", *options, *own, "--seed", str(seed), "--overwrite").wait():
                    raise SystemExit(f"edgetl train ended with {code}. Its messages are in {given.work / 'run'}.log")
                found.append(_correct(given.work / "run"))
            pairs = np.array([(found[0][key], right) for key, right in found[1].items()], float)
            difference = pairs[:, 1] - pairs[:, 0]
            differences.append(difference.mean())
            error = difference.std() / math.sqrt(len(difference))
            means = f"{pairs[:, 0].mean():.4f} {pairs[:, 1].mean():.4f} {differences[-1]:+.4f} ({error:.4f})"
            print(f"  {name:6} {seed} {len(pairs):,} {means}", flush=True)
        print(f"  {name:6} mean difference {np.mean(differences):+.4f}, standard deviation over the seeds {np.std(differences):.4f}")


def _correct(run: Path) -> dict[str, bool]:
    """Return for the key of each test image whether its prediction is right."""
    rows = parse_predictions((run / PREDICTIONS_NAME).read_text("utf-8"))
    return {Path(row.file).stem: row.label == row.prediction for row in rows if row.split == "test"}


def _unpack(given: argparse.Namespace, folder: Path) -> list[tuple[str, Annotation]]:
    """Write the images of the shards as files, unless that is done. Return their paths below ``folder``, and their classes and groups."""
    images = []
    for shard in (given.work / "shards" / f"{number:05d}.tar" for number in range(given.shards)):
        members = list(read_members(shard))
        images += [(f"{shard.stem}/{member.name}", member.annotation) for member in members]
        if not (folder / shard.stem).is_dir():
            partial = folder / f"{shard.stem}.partial"
            partial.mkdir(parents=True, exist_ok=True)
            for member in members:
                with open_range(range_path(member.part, member.name)) as (file, size):
                    (partial / member.name).write_bytes(file.read(size))
            partial.rename(folder / shard.stem)
    return images


def _write_splits(table: Path, images: list[tuple[str, Annotation]], seed: int) -> Path:
    """Write a label table with the splits that a training from shards with ``seed`` has."""
    rule = SplitRule(seed=seed, val=0.15, test=0.15)
    rows = (f"{name},{found.label},{rule.part_of(Path(name).stem, found)}\n" for name, found in images)
    table.write_text("file,label,split\n" + "".join(rows))
    return table


def memory(given: argparse.Namespace) -> None:
    """Print the largest memory and the time of a hundredth and a tenth of the shards and of all shards."""
    print("memory: strategy, images, anonymous MB, resident MB, seconds")
    for name in given.strategies:
        options = PROBE if name == "probe" else fine_tuning(given.work, FEW_STEPS)
        peaks = []
        for count in sorted({max(1, given.shards // part) for part in (100, 10, 1)}):
            begun = time.monotonic()
            peaks.append(train(pattern(given, count), given.work / "run", *options))
            images, seconds = count * IMAGES_PER_SHARD, time.monotonic() - begun
            print(f"  {name:6} {images:7,} {peaks[-1].anonymous:.0f} {peaks[-1].resident:.0f} {seconds:.0f}", flush=True)
        ratios = [last / first for last, first in zip(peaks[-1], peaks[-2], strict=True)] if len(peaks) > 1 else [1.0, 1.0]
        print(f"  {name:6} all shards against a tenth: anonymous {ratios[0]:.3f}, resident {ratios[1]:.3f}")


def resume(given: argparse.Namespace) -> None:
    """Kill a training at random moments, resume it, and compare its weights with those of an undisturbed one."""
    rng = random.Random(0)
    for name in given.strategies:
        strategy = PROBE if name == "probe" else (*fine_tuning(given.work, given.kill_steps), "--checkpoint-s", "1")
        started = time.monotonic()
        source, whole, out = pattern(given, FEW_SHARDS), given.work / "whole", given.work / "killed"
        for left in (out, out.with_name("killed.checkpoints")):  # of the other strategy
            shutil.rmtree(left, ignore_errors=True)
        train(source, whole, *strategy)
        seconds, kills, resumed, digests, done = time.monotonic() - started, list[int](), 0, {_digest(whole)}, False
        while not done:
            resumed += out.exists() or any(given.work.glob("killed.checkpoints/step-*"))
            process = start(source, out, *strategy, "--resume")
            try:
                code = process.wait(rng.uniform(0.1, 0.95) * seconds if len(kills) < given.kills else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills.append(_saved_step(given.work))
                continue
            if code:
                raise SystemExit(f"edgetl train ended with {code}. Its messages are in {out}.log")
            digests.add(_digest(out))
            shutil.rmtree(out)
            done = len(kills) >= given.kills  # a training that ends before the last kill is repeated
        result = "bit-identical" if len(digests) == 1 else "DIFFERENT"
        saved = ", ".join(map(str, kills))
        print(f"resume: {name}, {len(kills)} kills (last saved steps: {saved}), {resumed} times resumed, weights {result}", flush=True)


def _saved_step(work: Path) -> int:
    """Return the step of the last saved state, 0 without one."""
    return max((int(path.name.split("-")[1]) for path in work.glob("killed.checkpoints/step-*")), default=0)


def _digest(run: Path) -> str:
    return hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()


def processes(given: argparse.Namespace) -> None:
    """Compare a training with two processes with one."""
    for strategy in (PROBE, fine_tuning(given.work, FEW_STEPS)):
        out = [given.work / f"processes-{count}" for count in (1, 2)]
        for count, path in enumerate(out, start=1):
            train(pattern(given, FEW_SHARDS), path, *strategy, processes=count)
        runs = [open_run(path) for path in out]
        states = [run.load_model().state_dict() for run in runs]
        largest = max(float((states[0][name].float() - states[1][name].float()).abs().max()) for name in states[0])
        found = " and ".join(f"{run.record.test.accuracy.value:.4f}" for run in runs if run.record.test)
        print(f"processes: {strategy[1]}, test accuracy {found}, largest difference of a weight {largest:.1e}")


if __name__ == "__main__":
    main()
