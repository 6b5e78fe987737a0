"""Command ``edgetl run``: signals, pipes, options, the unit, and long operation."""

from __future__ import annotations

import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from bench.device.runner import soak
from tests.command import edgetl_in_one_process
from tests.device.bundles import add_release, image, write_bundle

SOAK_S = float(os.environ.get("EDGETL_SOAK_S", "1800"))
RED = image()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "colors", 1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folder with ten images, one of which is damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(image((25 * number, 60, 30)) if number != 4 else b"damaged")
    return folder


@contextmanager
def running(bundle: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command with pipes."""
    command = [sys.executable, "-m", "edgetl.cli.app", "run", str(bundle), "--threads", "1", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        if process.poll() is None:
            process.kill()


def test_images_of_a_pipe_are_predicted_until_sigterm(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, "--source", "-", "--stdin", "images", "--health", tmp_path / "health.json") as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        for number in range(3):
            process.stdin.write(struct.pack("<I", len(RED)) + RED)
            process.stdin.flush()
            record = json.loads(process.stdout.readline())
            assert record["label"] == "red" and record["image"] == f"image {number + 1}"
        process.stdin.write(struct.pack("<I", len(RED)) + RED[:20])  # incomplete: not accepted
        process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"" and process.wait() == 0
        assert process.stderr.read().decode().splitlines() == ["running colors 1 (onnx-fp32) on -", "3 images: 3 predicted, 0 unreadable"]
    assert json.loads((tmp_path / "health.json").read_text())["state"] == "stopped"


def test_closed_standard_output_ends_the_command(bundle: Path, images: Path) -> None:
    with running(bundle, "--source", images, "--loop") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait() == 15 and "standard output cannot be written: Broken pipe" in errors and "Traceback" not in errors


def test_tuning_and_trust_are_options_for_a_bundle(bundle: Path, images: Path, tmp_path: Path) -> None:
    add_release(tmp_path / "store", bundle)
    lines = [["run", str(tmp_path / "store"), "--source", str(images), "--limit", "1", "--sink", f"jsonl:{tmp_path}/out.jsonl"]] * 2
    lines[0] = [*lines[0], "--trust", str(tmp_path)]
    refused, accepted = edgetl_in_one_process(lines, [{}, {"EDGETL_TRUST": str(tmp_path)}])
    assert refused.code == 3 and "Remove --tuning and --trust" in refused.words
    assert accepted.code == 0 and accepted.words.endswith("1 images: 1 predicted, 0 unreadable")


def run_all(bundle: Path, commands: Sequence[Sequence[object]]) -> list[tuple[int, str]]:
    """Run commands in one process, and return the exit code and error output of each."""
    lines = [["run", str(bundle), *map(str, arguments)] for arguments in commands]
    return [(printed.code, printed.words) for printed in edgetl_in_one_process(lines)]


def test_folder_is_written_to_every_sink(bundle: Path, images: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "a.jsonl", tmp_path / "a.csv"
    sinks = ["--sink", f"jsonl:{outputs[0]}", "--sink", f"csv:{outputs[1]}"]
    ((code, words),) = run_all(bundle, [["--source", images, *sinks]])
    assert code == 0 and words.endswith("10 images: 9 predicted, 1 unreadable")
    records = [json.loads(line) for line in outputs[0].read_text().splitlines()]
    assert [record["image"] for record in records] == [str(images / f"{number}.png") for number in range(10)]
    assert "is not a JPEG" in records[4]["error"] and len(outputs[1].read_text().splitlines()) == 11


def test_mistakes_are_reported_without_a_traceback(bundle: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(RED)
    cases: list[tuple[list[object], int, str]] = [
        (["--source", tmp_path / "missing"], 4, "does not exist. Give a folder, a video file, a camera or -."),
        (["--source", tmp_path / "photo.jpg"], 4, "is an image. Give a folder or a video, or use: edgetl predict BUNDLE IMAGE"),
        (["--source", "-", "--follow"], 3, "--source -: --follow is for a folder. Remove the option."),
        (["--source", "0", "--processed", "delete"], 3, "--processed is for a folder"),
        (["--source", images, "--loop", "--follow"], 3, "--follow and --loop exclude each other"),
        (["--source", images, "--sink", "jsonl", "--sink", "jsonl"], 3, "an address is given twice"),
        (["--source", images, "--sink", "mqtt://host"], 3, "has no valid topic"),
        (["--source", images, "--secret-file", "x"], 3, "--secret-file is for a network sink"),
        (["--source", images, "--sink", f"csv:{tmp_path}/missing/x"], 15, "cannot write"),
        (["--source", "-", "--systemd"], 3, "--systemd needs another --source than -"),
        (["--source", images, "--trust", tmp_path], 3, "has no public key"),
        (["--source", images, "--tuning", tmp_path / "missing"], 3, "cannot read"),
        (["--source", images, "--max-fps", "0"], 3, "--max-fps: must be greater than 0"),
    ]
    for (code, words), (_, expected, message) in zip(run_all(bundle, [case[0] for case in cases]), cases, strict=True):
        assert (code, message in words) == (expected, True), words


@pytest.mark.parametrize(
    ("library", "arguments", "extra"), [("cv2", ["--source", "0"], "video"), ("paho", ["--sink", "mqtt://host/a"], "mqtt")]
)
def test_missing_extra_is_named_with_its_command(bundle: Path, images: Path, library: str, arguments: list[str], extra: str) -> None:
    arguments = arguments if "--source" in arguments else ["--source", str(images), *arguments]
    code = f"import sys; sys.modules[{library!r}] = None; from edgetl.cli.app import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, "run", bundle, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 14 and f"[{extra}]" in done.stderr, done.stderr


def test_unit_of_the_command_has_absolute_paths(bundle: Path, images: Path, tmp_path: Path) -> None:
    arguments = [
        "--source",
        "images",
        "--follow",
        "--processed",
        "delete",
        "--sink",
        "csv:out/a.csv",
        "--health",
        "h.json",
        "--max-fps",
        "5",
    ]
    command = [sys.executable, "-m", "edgetl.cli.app", "run", str(bundle), *arguments, "--systemd"]
    unit = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith(("#", "ReadWritePaths")))
    words = shlex.split(lines["ExecStart"])
    assert words[words.index("run") :] == [
        *["run", str(bundle), "--source", str(images), "--sink", f"csv:{tmp_path}/out/a.csv", "--max-fps", "5.0"],
        *["--follow", "--processed", "delete", "--health", f"{tmp_path}/h.json"],
    ]
    assert all(f"ReadWritePaths={path}" in unit for path in (images, tmp_path / "out", tmp_path))
    assert 100_000_000 < int(lines["MemoryMax"]) < 2_000_000_000


def test_each_file_has_a_record_though_the_runner_is_killed(bundle: Path, tmp_path: Path) -> None:
    incoming, output = tmp_path / "in", tmp_path / "out.jsonl"
    incoming.mkdir()
    for number in range(400):
        (incoming / f"{number:03d}.png").write_bytes(RED)
    arguments = ["--source", incoming, "--processed", "delete", "--sink", f"jsonl:{output}"]
    for records in (20, 100):
        with running(bundle, *arguments) as process:
            while process.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") < records):
                time.sleep(0.002)
            process.kill()
    with running(bundle, *arguments) as process:
        assert process.wait() == 0
    names = [Path(json.loads(line)["image"]).name for line in output.read_text().splitlines()]
    assert set(names) == {f"{number:03d}.png" for number in range(400)} and len(names) <= 402, "at most one repeated record per kill"
    assert list(incoming.iterdir()) == []


@pytest.fixture
def small_group() -> Iterator[Path]:
    """Real control group with 250 MB of memory. Yield the file that takes processes."""
    tops = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")]
    names = {"memory.limit_in_bytes", "memory.max"}
    group = next((top / f"edgetl-run-{os.getpid()}" for top in tops if (top / "cgroup.procs").exists()), tops[0] / "none")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a control group cannot be created: {error}")
    try:
        limits = [group / name for name in sorted(names) if (group / name).exists()]
        if not limits:
            pytest.skip("control groups do not limit memory here")
        limits[0].write_text("250000000")
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def test_image_beyond_the_memory_limit_is_an_error_of_this_image(bundle: Path, tmp_path: Path, small_group: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (6400, 6200)).save(tmp_path / "in/1-huge.png")
    (tmp_path / "in/2-small.png").write_bytes(RED)
    code = "import os, sys; open(sys.argv.pop(1), 'w').write(str(os.getpid())); from edgetl.cli.app import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(small_group), "run", str(bundle), "--source", str(tmp_path / "in"), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    huge, small = map(json.loads, done.stdout.splitlines())
    assert "too little memory" in huge["error"] and small["label"] == "red"


@pytest.mark.parametrize("seconds", [10.0, pytest.param(SOAK_S, marks=pytest.mark.slow)], ids=["short", "EDGETL_SOAK_S"])
def test_long_operation_loses_no_frame_and_keeps_memory_and_descriptors(bundle: Path, images: Path, seconds: float) -> None:
    result = soak(bundle, images, seconds=seconds)
    print(result.describe())
    assert result.code == 0 and result.gaps == 0 and result.records == result.frames > 0
    late = len(result.hours) // 10
    assert max(result.rss_mb[late:]) - result.rss_mb[late] < 5
    # Writing the health file opens two descriptors for a moment.
    assert max(result.descriptors[late:]) - min(result.descriptors) <= 2
