"""Output streams with other encodings than UTF-8: no command fails on a character, and JSON is always UTF-8."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle

ENCODINGS = ["ascii", "latin-1", "cp1252", "utf-8"]
# Bytes that are not UTF-8, and a character that the other encodings lack.
NAME = b"caf\xe9 " + "\u732b".encode()


def run(encoding: str, *arguments: str | bytes | Path) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command: list[str | bytes | Path] = [sys.executable, "-m", "edgetl.cli.app", *arguments]
    return subprocess.run(command, capture_output=True, check=False, env=environment)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_message_escapes_characters_that_the_encoding_lacks(encoding: str, tmp_path: Path) -> None:
    done = run(encoding, "inspect", bytes(tmp_path) + b"/" + NAME)
    assert done.returncode == 8 and b"Traceback" not in done.stderr
    assert b"caf\\udce9" in done.stderr and (b"\\u732b" in done.stderr or encoding == "utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_json_is_utf_8_and_escapes_other_bytes_of_file_names(encoding: str, tmp_path: Path) -> None:
    done = run(encoding, "inspect", bytes(tmp_path) + b"/" + NAME, "--json")
    assert "caf\\xe9 \u732b" in json.loads(done.stdout.decode("utf-8"))["error"]["message"]


def test_help_is_printed_in_ascii() -> None:
    done = run("ascii", "train", "--help")
    assert done.returncode == 0 and done.stdout.decode("ascii")


def test_predictions_and_tables_are_printed_in_ascii(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    shutil.copy(bytes(sorted((digits / "3").iterdir())[0]), bytes(tmp_path) + b"/" + NAME + b".png")
    shown = run("ascii", "predict", bundle.path, tmp_path)
    assert shown.returncode == 0 and shown.stderr.startswith(b"variant: ") and shown.stderr.count(b"\n") == 1
    assert b"caf\\xe9 \\u732b.png: 3" in shown.stdout
    found = json.loads(run("ascii", "predict", bundle.path, tmp_path, "--json").stdout.decode("utf-8"))
    assert found["predictions"][0]["image"].endswith("caf\\xe9 \u732b.png")
    assert run("ascii", "inspect", bundle.path).returncode == 0
