"""Pretraining recipes of a small backbone, compared by linear probes.

``python -m bench.accuracy.routes --out DIR [NAME …]``. Each recipe of ``models/routes`` trains a backbone (200 steps, 65 px). Linear probes
measure the backbone on the acceptance sets (128 px, 2 seeds). Finished weights stay in the folder, and the same command continues an
interrupted comparison.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch

from bench.accuracy.transfer import SETS, probe
from bench.paths import SHARED
from edgetl.data.folder import scan
from edgetl.pretrain.pretrain import Folders, pretrain
from edgetl.pretrain.recipe import read_recipe
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.recipe import models_folder

SEEDS = 2
# This recipe starts from the weights of another one, so it is the last.
LAST = "distil_after_fractals"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.routes", description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    recipes = {path.stem: path for path in sorted((models_folder() / "routes").glob("*.toml"))}
    names = given.names or sorted(recipes, key=lambda name: (name == LAST, name))
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"| recipe | architecture | minutes | {' | '.join(SETS)} |\n|---|---|---|{'---|' * len(SETS)}")
    for name in names:
        shutil.copy(recipes[name], given.out)
        recipe = read_recipe(given.out / f"{name}.toml")
        weights = given.out / f"{name}.safetensors"
        places = Folders(out=given.out, data=SHARED / "data", weights=SHARED / "weights", recipes=given.out)
        minutes = "kept" if weights.is_file() else f"{pretrain(recipe, places).seconds / 60:.1f}"
        config = TrainConfig.from_options(
            backbone=recipe.architecture, weights=str(weights)
        )  # the record next to the weights has the other settings
        shown = " | ".join(f"{np.mean(probe(scan(SHARED / 'data' / path), config, SEEDS)):.3f}" for path in SETS.values())
        print(f"| {name} | {recipe.architecture} | {minutes} | {shown} |", flush=True)


if __name__ == "__main__":
    with torch.random.fork_rng(devices=[]):
        main()
