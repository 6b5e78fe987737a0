"""Structure of the training code: functions that receive the configuration, and modules that receive the splits.

``python -m bench.structure`` prints the functions with a ``TrainConfig`` parameter. It also prints the modules that are called with
``Splits``, or with a dataclass that contains them, between ``fine_tune`` and the first optimizer step. It runs one linear probe and one
partial fine-tuning of the demo's digits.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from dataclasses import is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import edgetl
from edgetl.data.folder import scan
from edgetl.data.split import Splits, split
from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.digits import write_digits
from edgetl.train.workflows.finetune import fine_tune

ROOT = Path(edgetl.__file__).parent


def main() -> None:
    lines = [line for path in ROOT.rglob("*.py") for line in path.read_text("utf-8").splitlines()]
    print(f"{len(lines):,} lines in {len(list(ROOT.rglob('*.py')))} files of edgetl")
    found = signatures("TrainConfig")
    print(f"TrainConfig in {len(found)} signatures: {', '.join(found)}")
    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "digits"
        write_digits(data)
        splits = split(scan(data))
        entered: dict[str, set[str]] = {}
        for strategy in ("probe", "partial"):
            config = TrainConfig.from_options(strategy=strategy, epochs=1, input_size=(32, 32), workers=0, cache_views=1)
            entered[strategy] = modules_with_splits(splits, config, Path(work) / strategy)
            print(f"{strategy}: {len(entered[strategy])} modules receive splits: {', '.join(sorted(entered[strategy]))}")
    print(f"both strategies: {len(entered['probe'] | entered['partial'])} modules")


def signatures(name: str) -> list[str]:
    """Return the functions of edgetl with a parameter that has the annotation ``name``."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if any(item.annotation is not None and name in ast.unparse(item.annotation).split(" | ") for item in arguments):
                    found.append(f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{node.name}")
    return found


def modules_with_splits(splits: Splits, config: TrainConfig, out: Path) -> set[str]:
    """Return the modules of edgetl with functions that are called with ``Splits`` before the first optimizer step."""
    entered: set[str] = set()

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call":
            return
        module = str(frame.f_globals.get("__name__", ""))
        code = frame.f_code
        if code.co_name == "step" and module.startswith("torch.optim.adamw"):
            sys.setprofile(None)
        elif module.startswith("edgetl."):
            parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(_contains_splits(frame.f_locals.get(name)) for name in parameters):
                entered.add(module.removeprefix("edgetl."))

    sys.setprofile(profile)
    try:
        fine_tune(splits, config, out)
    finally:
        sys.setprofile(None)
    return entered


def _contains_splits(value: object) -> bool:
    return isinstance(value, Splits) or (is_dataclass(value) and isinstance(getattr(value, "splits", None), Splits))


if __name__ == "__main__":
    main()
