"""Limits on the structure of the package: lengths, parameters, modules per package, docstrings."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgetl
from tests.__main__ import GROUPS, WAITING

ROOT = Path(edgetl.__file__).parent
FUNCTION_LINES = 40
LONGER = {"edgetl.train.loop.loop.run_loop": 60}  # the training loop, read from top to bottom
MODULE_LINES = 400
PARAMETERS = 6
MODULES = 9
WIDER = {"edgetl.core": 15, "edgetl.runtime": 15}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _sources(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _functions(node: ast.AST, prefix: str, owner: type[ast.AST]) -> Iterator[tuple[str, Function, type[ast.AST]]]:
    """Yield every function below `node` with its qualified name and the kind of its parent node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield f"{prefix}.{child.name}", child, owner
            yield from _functions(child, f"{prefix}.{child.name}", type(child))
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}.{child.name}", ast.ClassDef)
        else:
            yield from _functions(child, prefix, owner)


def _parameters(function: Function, owner: type[ast.AST]) -> int:
    arguments = function.args
    static = any(isinstance(decorator, ast.Name) and decorator.id == "staticmethod" for decorator in function.decorator_list)
    bound = owner is ast.ClassDef and not static
    return len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs) - bound


def _public(name: str, owner: type[ast.AST]) -> bool:
    return not issubclass(owner, Function) and not any(part.startswith("_") for part in name.split("."))


def _overload(function: Function) -> bool:
    return any(isinstance(decorator, ast.Name) and decorator.id == "overload" for decorator in function.decorator_list)


def _violations(root: Path) -> Iterator[str]:
    modules: Counter[str] = Counter()
    for name, path in _sources(root):
        text = path.read_text(encoding="utf-8")
        if path.stem != "__init__":
            modules[name.rpartition(".")[0]] += 1
        if len(text.splitlines()) > MODULE_LINES:
            yield f"{name}:module-lines"
        if "fmt: skip" in text or "fmt: off" in text:
            yield f"{name}:fmt-skip"
        for qualified, function, owner in _functions(ast.parse(text), name, ast.Module):
            if (function.end_lineno or 0) - function.lineno + 1 > LONGER.get(qualified, FUNCTION_LINES):
                yield f"{qualified}:lines"
            if _parameters(function, owner) > PARAMETERS:
                yield f"{qualified}:parameters"
            if _public(qualified, owner) and not _overload(function) and not ast.get_docstring(function):
                yield f"{qualified}:docstring"
    yield from (f"{package}:modules" for package, count in modules.items() if count > WIDER.get(package, MODULES))


def test_lengths_parameters_and_packages_are_within_the_limits() -> None:
    assert sorted(_violations(ROOT)) == []


def test_lengths_and_parameters_of_benchmarks_are_within_the_limits() -> None:
    assert [item for item in _violations(ROOT.parent / "bench") if not item.endswith((":docstring", ":modules"))] == []


@pytest.mark.parametrize(
    ("source", "count"),
    [("def f(a, /, b, *, c): ...", 3), ("class C:\n def f(self, a): ...", 1), ("class C:\n @staticmethod\n def f(a, b): ...", 2)],
)
def test_parameter_counts_exclude_the_bound_object(source: str, count: int) -> None:
    (found,) = _functions(ast.parse(source), "module", ast.Module)
    assert _parameters(found[1], found[2]) == count


def test_every_folder_of_tests_belongs_to_a_group() -> None:
    folders = [f"tests/{path.name}" for path in Path(__file__).parent.iterdir() if any(path.glob("test_*.py"))]
    assert sorted(item for group in (*GROUPS, WAITING) for item in group) == sorted([*folders, "tests/test_structure.py"])
