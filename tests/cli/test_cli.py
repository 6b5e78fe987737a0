"""Command line in a real process: output streams and exit codes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.tasks import DecisionRule
from edgetl.data.predictions import parse_predictions
from edgetl.train.artifacts.run import Run
from tests.command import Command, edgetl
from tests.device.bundles import image, write_bundle, write_manifest
from tests.disks import small_disk


def _fails(done: subprocess.CompletedProcess[str], code: int, *phrases: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    flat = " ".join(done.stderr.split())
    for phrase in phrases:
        assert phrase in flat


def test_help_lists_every_command() -> None:
    done = edgetl("--help")
    assert done.returncode == 0
    for command in ("demo", "train", "evaluate", "export", "share", "verify", "inspect", "predict", "bench"):
        assert f" {command} " in done.stdout


def test_version_option_prints_the_version() -> None:
    assert edgetl("--version").stdout.startswith("edgetl 0.")


def test_an_unknown_command_or_option_is_a_usage_error() -> None:
    _fails(edgetl("trian", "x"), 2, "No such command")
    _fails(edgetl("predict", "--frobnicate"), 2, "No such option")


def test_a_misspelled_backbone_name_suggests_the_nearest(colors: Path, tmp_path: Path) -> None:
    done = edgetl("train", colors, "--backbone", "mobilenetv3_smal_100", "--out", tmp_path / "run")
    _fails(done, 6, "mobilenetv3_smal_100", "mobilenetv3_small_100")
    assert not (tmp_path / "run").exists()


def test_several_mistakes_are_reported_together(colors: Path, tmp_path: Path) -> None:
    arguments = ("--backbone", "test_resnet", "--out", tmp_path / "run", "--val", 0.9, "--epochs", 0, "--cache-views", 99)
    _fails(edgetl("train", colors, *arguments), 3, "--val:", "--epochs:", "--cache-views:")


def test_a_missing_or_unusable_folder_is_a_data_error(tmp_path: Path) -> None:
    arguments = ("--backbone", "test_resnet", "--out", tmp_path / "run")
    _fails(edgetl("train", tmp_path / "gone", *arguments), 4, "gone does not exist")
    (tmp_path / "empty").mkdir()
    _fails(edgetl("train", tmp_path / "empty", *arguments), 4, "has no images", "one folder for each class")


def test_predict_with_a_run_prints_the_export_command(run: Run, digits: Path) -> None:
    _fails(edgetl("predict", run.path, digits / "3"), 8, "is a run, not a bundle", f"edgetl export {run.path} --out BUNDLE")


def test_export_with_a_bundle_is_a_run_error(bundle: Bundle, tmp_path: Path) -> None:
    _fails(edgetl("export", bundle.path, "--out", tmp_path / "out"), 7, "is a bundle, not a run")


def test_an_unknown_format_or_precision_lists_the_known_ones(run: Run, tmp_path: Path) -> None:
    _fails(
        edgetl("export", run.path, "--out", tmp_path / "b", "--format", "onnx,trt"), 3, "trt is not supported. Choose from onnx, openvino"
    )
    _fails(edgetl("export", run.path, "--out", tmp_path / "b", "--format", " , "), 3, "no value was given")
    _fails(
        edgetl("export", run.path, "--out", tmp_path / "b", "--precision", "int4"),
        3,
        "--precision:",
        "int4 is not supported. Choose from fp32",
    )


def test_each_reserved_format_prints_the_conversion_tool(run: Run, tmp_path: Path) -> None:
    done = edgetl("export", run.path, "--out", tmp_path / "b", "--format", "onnx,tflite,executorch,coreml,ncnn")
    ways = {"tflite": "onnx2tf", "executorch": "torch.export", "coreml": "coremltools.convert", "ncnn": "pnnx model.onnx"}
    lines = {line.split(":")[0]: line for line in done.stderr.splitlines()}
    assert done.returncode == 3 and "Traceback" not in done.stderr and not (tmp_path / "b").exists()
    for name, way in ways.items():
        assert "edgetl does not write this format" in lines[name] and way in lines[name]


def test_int8_export_without_images_names_the_data_option(run: Run, tmp_path: Path) -> None:
    _fails(edgetl("export", run.path, "--out", tmp_path / "b", "--data", tmp_path / "gone"), 4, "--data")


def test_verify_of_a_damaged_file_is_an_integrity_error(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "copy")
    file = tmp_path / "copy/openvino-int8/1/model.bin"
    data = bytearray(file.read_bytes())
    data[100] ^= 4
    file.write_bytes(data)
    _fails(edgetl("verify", tmp_path / "copy"), 9, "model.bin", "differs from the manifest (SHA-256)")


def test_errors_are_json_with_the_json_option(tmp_path: Path) -> None:
    done = edgetl("verify", tmp_path / "gone", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["class"], error["exit_code"]) == (8, "BundleError", 8)
    assert "gone does not exist" in error["message"]


def test_predict_reports_unreadable_images_and_predicts_the_others(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff nothing")
    good = sorted((digits / "7").iterdir())[0]
    done = edgetl("predict", bundle.path, bad, good, "--json")
    rows = json.loads(done.stdout)["predictions"]
    assert done.returncode == 5
    assert "bad.jpg" in rows[0]["error"] and rows[1]["label"] == "7"
    assert list(rows[1]["scores"]) == list(bundle.manifest.labels)


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_predict_lists_each_unreadable_image_of_a_folder(tmp_path: Path, count: int) -> None:  # B15
    bundle, folder, bad = write_bundle(tmp_path / "bundle", 1), tmp_path / "images", range(0, count, 33)
    folder.mkdir()
    for index in range(count):
        data = image((index % 256, 60, 30))
        (folder / f"{index:05d}.png").write_bytes(data[: len(data) // 2] if index in bad else data)
    done = edgetl("predict", bundle, folder, "--json")
    rows = json.loads(done.stdout)["predictions"]
    assert done.returncode == 5
    assert len(rows) == count
    assert [index for index, row in enumerate(rows) if f"{index:05d}.png" in row.get("error", "")] == list(bad)
    assert all(row["label"] for index, row in enumerate(rows) if index not in bad)


def test_predict_of_a_folder_prints_the_top_classes(bundle: Bundle, digits: Path) -> None:
    done = edgetl("predict", bundle.path, digits / "5", "--top", 1)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(list((digits / "5").iterdir()))
    assert sum(": 5 0." in line or ": 5 1." in line for line in lines) > 0.9 * len(lines)


def test_inspect_evaluate_verify_and_bench_print_json(bundle: Bundle, run: Run, digits: Path, tmp_path: Path) -> None:
    manifest = json.loads(edgetl("inspect", bundle.path, "--json").stdout)
    assert manifest["name"] == bundle.manifest.name and manifest["labels"] and manifest["variants"]
    assert json.loads(edgetl("inspect", run.path, "--json").stdout)["name"] == run.record.name
    report = json.loads(edgetl("evaluate", bundle.path, digits, "--variant", "onnx-int8", "--json").stdout)
    assert report["left_out"] > 0 and report["result"]["accuracy"]["value"] > 0.9
    checked = json.loads(edgetl("verify", bundle.path, "--data", digits, "--json").stdout)
    assert len(checked["checked"]) == len(checked["evaluations"]) == 6
    chart = tmp_path / "latency.png"
    timed = edgetl("bench", bundle.path, "--runs", 12, "--variant", "onnx-fp32", "--plot", chart, "--json")
    assert json.loads(timed.stdout)["variants"][0]["whole"]["n"] == 12 and chart.stat().st_size > 10_000


def test_tables_fit_eighty_columns(bundle: Bundle, run: Run) -> None:
    for path in (bundle.path, run.path):
        done = edgetl("inspect", path)
        assert done.returncode == 0
        rows = [line for line in done.stdout.splitlines() if line.startswith(" ") and "…" in line]
        assert not rows, "a column was truncated"


def _without_checkpoints(folder: Path) -> list[Path]:
    """Return the paths in ``folder`` except the checkpoints of a training, which are complete."""
    return [path for path in folder.iterdir() if not path.name.endswith(".checkpoints")]


@pytest.mark.parametrize("stage", ["computing features", "fine-tuning"])
def test_ctrl_c_prints_one_line_and_leaves_no_incomplete_output(digits: Path, tmp_path: Path, stage: str) -> None:
    strategy = "full" if stage == "fine-tuning" else "probe"
    options = ["--backbone", "test_resnet", "--random-weights", "--strategy", strategy, "--epochs", 50, "--out", tmp_path / "run"]
    command = Command("train", digits, *options)
    command.signal(signal.SIGINT, at=stage)
    stopped = command.wait()
    text = stopped.stderr
    assert stopped.returncode == 130, text
    assert "Traceback" not in text and text.rstrip().splitlines()[-1].startswith("interrupted")
    assert _without_checkpoints(tmp_path) == []


@pytest.mark.parametrize("command", ["train", "export"])
def test_output_of_a_killed_process_is_rejected_by_other_commands(run: Run, digits: Path, tmp_path: Path, command: str) -> None:
    target = tmp_path / "out"
    arguments: dict[str, list[object]] = {
        "train": ["train", digits, "--backbone", "test_resnet", "--random-weights", "--strategy", "full", "--epochs", 50, "--out", target],
        "export": ["export", run.path, "--out", target],
    }
    process = Command(*arguments[command])
    process.signal(signal.SIGKILL, at="fine-tuning" if command == "train" else "comparing")
    process.wait()
    assert not target.exists()
    left = _without_checkpoints(tmp_path)
    assert left, "the process ended before the signal"
    for path in left:
        assert edgetl("inspect", path).returncode == 8
        assert edgetl("export", path, "--out", tmp_path / "again").returncode == 7
    again = edgetl("export", run.path, "--out", target, "--format", "onnx", "--precision", "fp32")
    assert again.returncode == 0, again.stderr
    assert [path.name for path in _without_checkpoints(tmp_path)] == ["out"], "the next process removes the incomplete output"


def test_export_to_a_full_disk_is_a_storage_error_and_leaves_no_file(run: Run, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        _fails(edgetl("export", run.path, "--out", disk / "bundle"), 15, "MB of free space", "--out")
        assert list(disk.iterdir()) == []


def test_predict_and_evaluate_write_only_the_table_of_save(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    done = edgetl("predict", bundle.path, digits / "1", cwd=tmp_path)
    assert done.stderr == f"variant: {bundle.manifest.variants[0].name}\n"
    assert list(tmp_path.iterdir()) == []
    done = edgetl("evaluate", bundle.path, digits, "--all", "--save", "wrong.csv", cwd=tmp_path)
    assert "warning: the model was trained or selected on" in done.stdout and "Omit --all" in done.stdout
    assert "predictions written to wrong.csv" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.csv"]
    assert {row.split for row in parse_predictions((tmp_path / "wrong.csv").read_text())} == {"seen", "unseen"}
    (tmp_path / "wrong.csv").write_text("my notes\n")
    _fails(edgetl("evaluate", bundle.path, digits, "--save", "wrong.csv", cwd=tmp_path), 3, "edgetl did not write it")
    assert (tmp_path / "wrong.csv").read_text() == "my notes\n"


def test_an_unknown_image_is_shown_with_its_scores(tmp_path: Path) -> None:
    folder, photo = write_bundle(tmp_path / "bundle", 1), tmp_path / "photo.png"
    photo.write_bytes(image())
    rule = DecisionRule(temperature=2.0, reject_below=0.95)
    write_manifest(folder, open_bundle(folder).manifest.model_copy(update={"decision_rule": rule}))
    assert f"{photo}: unknown (red 0." in edgetl("predict", folder, photo).stdout
    (row,) = json.loads(edgetl("predict", folder, photo, "--json").stdout)["predictions"]
    assert row["label"] is None and max(row["scores"].values()) == row["score"] < 0.95
    assert "temperature 2, unknown below 0.95" in edgetl("inspect", folder).stdout
