"""Code blocks of README.md and docs/: each one runs, or is parsed. CONTRIBUTING.md lists the rules for authors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks_of, notes_of

RUN = {"bash", "console", "python"}
PARSED = {"toml", "json", "yaml"}
# Programs and outputs in other languages, and directives of Sphinx.
SHOWN = {"text", "cpp", "cmake", "ini", "csv", "html", "http", "promql", "dockerfile", "mermaid"}
NOTES = {"skip", "slow", "file", "background", "fails", "with"}
IMAGES_PER_CLASS = 8
_MARK = "--- next command ---"


def _cases(*, slow: bool) -> list[Path]:
    """Pages with blocks to run: the slow tests run whole pages that have slow blocks, the others leave such blocks out."""
    cases = []
    for page in PAGES:
        blocks = [block for block in blocks_of(page) if block.language in RUN and "skip" not in block.notes]
        if any(block.is_slow for block in blocks) if slow else any(not block.is_slow for block in blocks):
            cases.append(page)
    return cases


def _title(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_title)
def test_page_uses_known_languages_and_notes(page: Path) -> None:
    for block in blocks_of(page):
        known = block.language in RUN | PARSED | SHOWN or block.language.startswith("{")
        assert known, f"{block.place}: the language {block.language!r} is not one of {sorted(RUN | PARSED | SHOWN)}"
        assert set(block.notes) <= NOTES, f"{block.place}: the notes {sorted(block.notes)} are not all among {sorted(NOTES)}"
        assert block.notes.get("skip", "reason"), f"{block.place}: a skipped block needs a reason"


@pytest.mark.parametrize("page", PAGES, ids=_title)
def test_data_blocks_of_page_parse(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            list(pytest.importorskip("yaml").safe_load_all(block.text))


@pytest.mark.parametrize("page", _cases(slow=False), ids=_title)
def test_short_blocks_of_page_run(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    _run_page([block for block in blocks_of(page) if not block.is_slow], page, request, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", _cases(slow=True), ids=_title)
def test_all_blocks_of_page_run(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    _run_page(blocks_of(page), page, request, tmp_path)


def test_console_block_is_split_into_commands_and_output() -> None:
    text = "$ edgetl train images/ \\\n    --out run/\nstrategy: probe\n\n$ ls\nrun\n"
    assert _commands(text) == [("edgetl train images/ \\\n    --out run/", ["strategy: probe"]), ("ls", ["run"])]


def test_output_line_with_figures_is_not_compared() -> None:
    _compare(["accuracy 0.99", "written to run/", "…"], "accuracy 0.85\nwritten   to run/\n", "here")
    with pytest.raises(AssertionError, match="written to bundle"):
        _compare(["written to bundle/"], "written to run/\n", "here")


def _run_page(blocks: list[Block], page: Path, request: pytest.FixtureRequest, folder: Path) -> None:
    """Run the blocks in order in one folder."""
    _prepare(folder, notes_of(page).get("with", "").split(), request)
    environment = _environment(folder)
    with _servers() as servers:
        for block in blocks:
            if "skip" in block.notes:
                continue
            if "file" in block.notes:
                (folder / block.notes["file"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.notes["file"]).write_text(block.text, "utf-8")
            elif "background" in block.notes:
                servers.append(_start(block, folder, environment))
            elif block.language in RUN:
                _run(block, folder, environment)


def _prepare(folder: Path, wanted: list[str], request: pytest.FixtureRequest) -> None:
    """Write ``images/`` (handwritten digits), ``photo.jpg``, and ``squares/`` (images with labels.csv); copy ``run/`` and ``bundle/``."""
    from PIL import Image

    from tests.conftest import write_squares

    for label in sorted(request.getfixturevalue("digits").iterdir()):
        (folder / "images" / label.name).mkdir(parents=True)
        for image in sorted(label.iterdir())[:IMAGES_PER_CLASS]:
            shutil.copy(image, folder / "images" / label.name)
    Image.open(next((folder / "images" / "3").iterdir())).convert("RGB").save(folder / "photo.jpg")
    write_squares(folder / "squares", 60)
    for name in wanted:
        assert name in ("run", "bundle"), f"a page can start with run and bundle, not with {name}"
        shutil.copytree(request.getfixturevalue(name).path, folder / name)


def _environment(folder: Path) -> dict[str, str]:
    """Environment of the blocks: ``edgetl`` and ``python`` of this interpreter, one thread, no network, a free port for the server."""
    programs = folder.parent / f"{folder.name}-bin"
    programs.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with_port = f'if [ "$1" = serve ]; then case "$*" in *--port*) ;; *) set -- "$@" --port {port} ;; esac; fi'
    scripts = {
        "edgetl": f'{with_port}\nexec "{sys.executable}" -P -m edgetl.cli.app "$@"',
        "python": f'exec "{sys.executable}" "$@"',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PORT_OF_8000": port,
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _text(block: Block, environment: dict[str, str]) -> str:
    """Text of the block with a free port in place of 8000."""
    return re.sub(r"(?<=:)8000\b|(?<=--port )8000\b", environment["PORT_OF_8000"], block.text)


def _run(block: Block, folder: Path, environment: dict[str, str]) -> None:
    text = _text(block, environment)
    commands = _commands(text) if block.language == "console" else []
    script = f"\necho '{_MARK}'\n".join(command for command, _ in commands) if commands else text
    command = [sys.executable, "-c", script] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        encoding="utf-8",
        check=False,
    )
    if "fails" in block.notes:
        expected = block.notes["fails"]
        assert done.returncode != 0 and expected in ("", str(done.returncode)), f"{block.place}: exit code {done.returncode}\n{done.stdout}"
    else:
        assert done.returncode == 0, f"{block.place}: exit code {done.returncode}\n{done.stdout}"
    for (_, expected_lines), output in zip(commands, done.stdout.split(_MARK), strict=False):
        _compare(expected_lines, output, block.place)


def _commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a console block (after ``$``, with continued lines), each with its lines of output."""
    found: list[tuple[str, list[str]]] = []
    continued = False
    for line in text.splitlines():
        if continued:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        elif line.startswith("$ "):
            found.append((line[2:], []))
        elif found and line.strip():
            found[-1][1].append(line)
        continued = (continued or line.startswith("$ ")) and line.endswith("\\")
    return found


def _compare(expected: list[str], output: str, place: str) -> None:
    """Check that each expected line without figures, an ellipsis or a rule of a table is in the output. Spaces are not compared."""
    lines = {" ".join(line.split()) for line in output.splitlines()}
    for line in (" ".join(line.split()) for line in expected):
        if not re.search(r"\d|…|\.\.\.|──", line):
            assert line in lines, f"{place}: the output has no line {line!r}:\n{output}"


@contextmanager
def _servers() -> Iterator[list[subprocess.Popen[str]]]:
    """List of background processes that end with the page."""
    started: list[subprocess.Popen[str]] = []
    try:
        yield started
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(block: Block, folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start the block in the background and wait until its server is ready."""
    commands = [command for command, _ in _commands(_text(block, environment))]
    script = "\n".join(commands) or _text(block, environment)
    process = subprocess.Popen(["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, text=True, start_new_session=True)
    while process.poll() is None and not _is_ready(environment["PORT_OF_8000"]):
        time.sleep(0.1)
    assert process.returncode is None, f"{block.place}: the server ended with exit code {process.returncode}"
    return process


def _is_ready(port: str) -> bool:
    """Return True if a server accepts requests on the port, with or without TLS."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready") as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
