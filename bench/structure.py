"""``python -m bench.structure``: how far the configuration and the splits travel through the code of a training.

Prints the functions with a ``TrainConfig`` among their parameters, and the modules that a call with ``Splits``, or a dataclass that has
them, enters between ``fine_tune`` and the first optimizer step, in one probe and one partial fine-tuning of the demo's digits.
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
            entered[strategy] = modules_given_splits(splits, config, Path(work) / strategy)
            print(f"{strategy}: a call with splits enters {len(entered[strategy])} modules: {', '.join(sorted(entered[strategy]))}")
    print(f"both: {len(entered['probe'] | entered['partial'])} modules")


def signatures(name: str) -> list[str]:
    """Functions of edgetl with a parameter that is annotated with ``name``."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if any(item.annotation is not None and name in ast.unparse(item.annotation).split(" | ") for item in arguments):
                    found.append(f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{node.name}")
    return found


def modules_given_splits(splits: Splits, config: TrainConfig, out: Path) -> set[str]:
    """Modules of edgetl that a call with ``Splits`` among its arguments enters, before the optimizer's first step."""
    entered: set[str] = set()

    def watch(frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call":
            return
        module = str(frame.f_globals.get("__name__", ""))
        code = frame.f_code
        if code.co_name == "step" and module.startswith("torch.optim.adamw"):
            sys.setprofile(None)
        elif module.startswith("edgetl."):
            given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(_holds_splits(frame.f_locals.get(name)) for name in given):
                entered.add(module.removeprefix("edgetl."))

    sys.setprofile(watch)
    try:
        fine_tune(splits, config, out)
    finally:
        sys.setprofile(None)
    return entered


def _holds_splits(value: object) -> bool:
    return isinstance(value, Splits) or (is_dataclass(value) and isinstance(getattr(value, "splits", None), Splits))


if __name__ == "__main__":
    main()
