"""``python -m bench.routes --out DIR [NAME …]``: ways to pretrain a small backbone, compared by one protocol.

Every recipe of ``models/routes`` is followed (200 steps, 65 px) and its weights are probed on the acceptance sets at 128 px, 2 seeds.
Finished routes are kept in the folder; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch

from bench.paths import SHARED
from bench.transfer import SETS, probe
from edgetl.data.folder import scan
from edgetl.pretrain.pretrain import Folders, pretrain
from edgetl.pretrain.recipe import read_recipe
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.recipe import models_folder

SEEDS = 2
# The last is started from another's weights.
LAST = "distil_after_fractals"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.routes", description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    recipes = {path.stem: path for path in sorted((models_folder() / "routes").glob("*.toml"))}
    names = given.names or sorted(recipes, key=lambda name: (name == LAST, name))
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"| route | architecture | minutes | {' | '.join(SETS)} |\n|---|---|---|{'---|' * len(SETS)}")
    for name in names:
        shutil.copy(recipes[name], given.out)
        recipe = read_recipe(given.out / f"{name}.toml")
        weights = given.out / f"{name}.safetensors"
        places = Folders(out=given.out, data=SHARED / "data", weights=SHARED / "weights", recipes=given.out)
        minutes = "kept" if weights.is_file() else f"{pretrain(recipe, places).seconds / 60:.1f}"
        config = TrainConfig.from_options(
            backbone=recipe.architecture, weights=str(weights)
        )  # its record stands beside it and says the rest
        shown = " | ".join(f"{np.mean(probe(scan(SHARED / 'data' / path), config, SEEDS)):.3f}" for path in SETS.values())
        print(f"| {name} | {recipe.architecture} | {minutes} | {shown} |", flush=True)


if __name__ == "__main__":
    with torch.random.fork_rng(devices=[]):
        main()
