"""Path errors of commands: they are found before torch is imported, and only files of edgetl are deleted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = """
import json, sys
from edgetl.cli.app import main
for arguments in json.load(sys.stdin):
    try:
        main(arguments)
    except SystemExit as end:
        loaded = sorted({"torch", "onnx", "timm", "sklearn"} & set(sys.modules))
        print(json.dumps([arguments, end.code, loaded]), flush=True)
"""

Outcome = tuple[list[str], int, list[str]]


def run_all(commands: list[list[str]], cwd: Path) -> tuple[list[Outcome], str]:
    """Run the commands in one new process. Return their exit codes and imported heavy libraries, and the error stream."""
    done = subprocess.run([sys.executable, "-c", RUNNER], input=json.dumps(commands), capture_output=True, text=True, cwd=cwd, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert len(rows) == len(commands), done.stderr
    return [(row[0], row[1], row[2]) for row in rows], done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Folder with images, a run (only its record), a document, and a label table."""
    for name in ("images/cat/1.png", "images/dog/1.png", "documents/thesis.tex", "labels.csv", "photo.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    record: dict[str, object] = {key: {} for key in ("labels", "config", "backbone", "preprocess", "files")}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"schema_version": 1, **record}))
    return tmp_path


MISSING = (
    "train nope --out new",
    "plan nope",
    "rank nope",
    "diagnose nope",
    "diagnose images --fine-tune --source nope",
    "distance images nope",
    "distance nope images",
    "curve nope",
    "fit nope --out new --max-size-mb 1",
    "export nope --out new",
    "prune nope --out new",
    "share nope --out new",
    "pretrain nope --out new",
    "pretrain --ssl nope --out new",
    "evaluate nope images",
    "evaluate run nope",
    "inspect nope",
    "verify nope",
    "predict nope nope",
    "bench nope",
    "serve nope",
    "train images --out new --labels nope.csv",
    "train images --out new --recipe nope.toml",
    "train images --out new --weights nope.pth",
    "train images --out new --weights-dir nope",
    "train images --out new --replay nope",
    "train images --out new --backbone ./nope",
    "train images --out new --teacher local-dir:nope",
    "export run --out new --data nope",
    "export run --out new --unlabeled nope",
    "export run --out new --max-latency-ms 1 --profile nope.json",
)

OUTPUTS = (
    "train images --out images --overwrite",
    "train images --out . --overwrite",
    "train images --out ../{name} --overwrite",
    "train images --out images/run --overwrite",
    "train images --out documents --overwrite",
    "train images --out photo.png --overwrite",
    "train images --labels labels.csv --out labels.csv --overwrite",
    "train images --replay run --out run --overwrite",
    "train images --backbone run --out run --overwrite",
    "train images --teacher run --out run --overwrite",
    "export run --out run --overwrite",
    "export run --out documents --overwrite",
    "export run --out run/bundle",
    "prune run --out run --overwrite",
    "share run --out run --overwrite",
    "fit images --out images --overwrite --max-size-mb 1",
    "demo --out images --overwrite",
    "demo --out documents --overwrite",
    "train images --preview photo.png",
    "rank images --plot photo.png",
    "curve images --plot photo.png",
    "export run --out new --explain photo.png",
    "train images --preview images/sheet.png",
    "train images --out /proc/x",
)


def test_a_wrong_path_is_an_error_before_heavy_libraries_are_imported(place: Path) -> None:
    before = sorted(place.rglob("*"))
    outcomes, _ = run_all([line.split() for line in MISSING], place)
    assert [(arguments, code) for arguments, code, _ in outcomes if code in (0, 1, 2)] == []
    assert [(arguments, loaded) for arguments, _, loaded in outcomes if loaded] == []
    assert sorted(place.rglob("*")) == before


def test_an_output_of_another_program_is_kept_and_is_an_error_before_heavy_imports(place: Path) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    outcomes, errors = run_all([line.format(name=place.name).split() for line in OUTPUTS], place)
    assert [(arguments, code) for arguments, code, _ in outcomes if code not in (3, 15)] == []
    assert [(arguments, loaded) for arguments, _, loaded in outcomes if loaded] == []
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert "ree some space" not in errors
