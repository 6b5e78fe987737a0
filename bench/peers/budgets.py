"""Training with few and with many labels: the same images, weights and test images for all tools.

The order is budgets, seeds, image sets, tools. An interrupted call leaves complete comparisons of the small budgets. Each job is a process
in the environment of its tool. Times are CPU seconds, because they depend less on other programs than the elapsed time.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from bench.paths import SHARED
from bench.peers.environments import stage, variables
from bench.peers.peers import TOOLS, Tool
from bench.peers.results import Results
from edgetl.core.system.host import available_cores, describe_host

SETS = ("trashnet", "sign-digits", "pacs/photo", "pacs/cartoon")
SEEDS = (0, 1, 2)
BUDGETS: tuple[int | None, ...] = (10, 100, None)  # images per class; None: all
SIDE, TEST_RATIO = 128, 0.25
WEIGHTS = SHARED / "weights/mobilenetv2_100.imagenet"


def measure_training(work: Path, results: Results, tools: Sequence[Tool] = TOOLS, *, limit_s: float = 7200.0) -> None:
    """Run the missing jobs, and write a row after each."""
    stage(work)
    # Tools that start from random weights come last within a budget.
    groups = [[tool for tool in tools if tool.pretrained == pretrained] for pretrained in (True, False)]
    for budget, seed, name, tool in (
        (budget, seed, name, tool) for budget in BUDGETS for group in groups for seed, name, tool in product(SEEDS, SETS, group)
    ):
        key = f"{tool.title}, {name}, {budget_name(budget)}, seed {seed}"
        if ("training", key) in results:
            continue
        facts = {"tool": tool.title, "set": name, "budget": budget_name(budget), "seed": seed, "host": describe_host()}
        with tempfile.TemporaryDirectory(dir=work) as folder:
            train, test = divide(SHARED / "data" / name, Path(folder), budget, seed)
            found = _run(work, tool, _job(Path(folder), seed), limit_s)
        results.add("training", key, **facts, images=train, test_images=test, **found)
        print(f"{key}: {found}", flush=True)


def budget_name(budget: int | None) -> str:
    """Return the column of a budget."""
    return "all" if budget is None else f"{budget} per class"


def divide(source: Path, folder: Path, budget: int | None, seed: int) -> tuple[int, int]:
    """Copy the images of a part of each class to ``train`` and ``test`` in ``folder``. The test images do not depend on the budget.

    Returns:
        numbers of training and of test images.
    """
    counts = {"train": 0, "test": 0}
    classes: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(source.glob("*/*")):
        classes[path.parent.name].append(path)
    for label, paths in classes.items():
        random.Random(f"{seed} {label}").shuffle(paths)
        held_out = round(len(paths) * TEST_RATIO)
        for part, chosen in (("test", paths[:held_out]), ("train", paths[held_out:][:budget])):
            (folder / part / label).mkdir(parents=True)
            for path in chosen:
                shutil.copyfile(path, folder / part / label / path.name)
            counts[part] += len(chosen)
    return counts["train"], counts["test"]


def _job(folder: Path, seed: int) -> str:
    out = folder / "out"
    out.mkdir()
    paths = {"train": folder / "train", "test": folder / "test", "weights": WEIGHTS.resolve(), "out": out}
    return json.dumps({**{name: str(path) for name, path in paths.items()}, "side": SIDE, "seed": seed})


def _run(work: Path, tool: Tool, job: str, limit_s: float) -> dict[str, Any]:
    python = work / "environments" / tool.environment / "bin/python"
    command = ["nice", "-n", "19", str(python), "-m", f"bench.peers.{tool.module}", job]
    # Threads that wait for work sleep. Otherwise their CPU time counts, and depends on other programs.
    environment = variables(available_cores()) | {"OMP_WAIT_POLICY": "passive"}
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=work / "code", timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"reason": f"not finished after {limit_s:.0f} s"}
    if done.returncode:
        return {"reason": " | ".join(done.stderr.strip().splitlines()[-1:])}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
