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
from bench.peers.peers import BUDGETS, TOOLS, Tool, budget_name
from bench.peers.results import Results
from edgetl.core.system.host import available_cores, describe_host

SETS = ("trashnet", "sign-digits", "pacs/photo", "pacs/cartoon")
SEEDS = (0, 1, 2)
SIDE, TEST_RATIO = 128, 0.25
LIMIT_S = 7200
WEIGHTS = SHARED / "weights/mobilenetv2_100.imagenet"


def measure_training(
    work: Path,
    results: Results,
    tools: Sequence[Tool] = TOOLS,
    sets: Sequence[str] = SETS,
    *,
    budgets: Sequence[int | None] = BUDGETS,
    seeds: Sequence[int] = SEEDS,
) -> None:
    """Run the missing jobs, and write a row after each.

    Where "all" are no more images than the budget before, its result counts for both.
    """
    stage(work)
    for budget, seed, name, tool in product(budgets, seeds, sets, tools):
        key = job_key(tool, name, budget, seed)
        if ("training", key) in results or budget not in tool.budgets:
            continue
        facts = {"tool": tool.title, "set": name, "budget": budget_name(budget), "seed": seed}
        with tempfile.TemporaryDirectory(dir=work) as folder:
            train, test = divide(SHARED / "data" / name, Path(folder), budget, seed)
            measured = results.get("training", job_key(tool, name, BUDGETS[-2], seed)) or {}
            if budget is not None or measured.get("images") != train:
                measured = {"host": describe_host(), "images": train, "test_images": test, **_run(work, tool, _job(Path(folder), seed))}
        row = {**measured, **facts}
        results.add("training", key, **{field: value for field, value in row.items() if field not in ("kind", "key")})
        print(f"{key}: {row.get('accuracy') or row['reason']}", flush=True)


def job_key(tool: Tool, name: str, budget: int | None, seed: int) -> str:
    """Return the key of a job in the results."""
    return f"{tool.title}, {name}, {budget_name(budget)}, seed {seed}"


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


def _run(work: Path, tool: Tool, job: str) -> dict[str, Any]:
    python = work / "environments" / tool.environment / "bin/python"
    command = ["nice", "-n", "19", str(python), "-m", f"bench.peers.{tool.module}", job]
    # Threads that wait for work sleep. Otherwise their CPU time counts, and depends on other programs.
    environment = variables(available_cores()) | {"OMP_WAIT_POLICY": "passive"}
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=work / "code", timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"reason": f"not finished after {LIMIT_S} s"}
    if done.returncode:
        return {"reason": " | ".join(done.stderr.strip().splitlines()[-1:])}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
