"""Shell completion: the script of bash completes commands, options and values, without heavy libraries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import edgetl_in_one_process

HEAVY = {"torch", "timm", "onnx", "onnxruntime", "openvino", "nncf", "sklearn", "matplotlib"}


@pytest.fixture(scope="module")
def command_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the command ``edgetl``, as an installer writes it."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "edgetl"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom edgetl.cli.app import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return folder


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


CASES = {
    "edgetl tr": ["train"],
    "edgetl p": ["plan", "pretrain", "prune", "predict", "pack"],
    "edgetl train --strat": ["--strategy"],
    "edgetl train --strategy p": ["probe", "partial", "progressive"],
    "edgetl rank --license-policy c": ["commercial"],
    "edgetl export run --format o": ["onnx", "openvino"],
    "edgetl export run --precision fp32,i": ["fp32,int8", "fp32,int8-weights"],
    "edgetl predict bundle": [],  # bash completes the path
}


def _variables(line: str) -> dict[str, str]:
    """Return the environment of a completion of the last word of ``line``, by the protocol of the bash script."""
    return {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_EDGETL_COMPLETE": "complete_bash"}


def test_bash_completes_commands_options_and_values() -> None:
    printed = edgetl_in_one_process([[] for _ in CASES], [_variables(line) for line in CASES])
    assert {line: item.stdout.split() for line, item in zip(CASES, printed, strict=True)} == CASES


def test_the_printed_script_completes_in_bash(command_folder: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    commands = """
eval "$(edgetl --show-completion)"
COMP_WORDS=(edgetl export run --cpu a); COMP_CWORD=4
_edgetl_completion edgetl
echo "completions: ${COMPREPLY[@]}"
complete -p edgetl
"""
    done = subprocess.run([bash, "-c", commands], capture_output=True, text=True, check=True, env=_environment(command_folder))
    assert "completions: any\n" in done.stdout and "-o default" in done.stdout, done.stderr


def test_a_completion_loads_no_heavy_library(command_folder: Path) -> None:
    code = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr))\n"
        "from edgetl.cli.app import main\nmain()\n"
    )
    environment = {**_environment(command_folder), **_variables("edgetl train --strategy f")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["full"]
    assert set(json.loads(done.stderr)) & HEAVY == set()
