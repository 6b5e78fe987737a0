"""Damaged and malicious run folders: every command that opens a run raises an edgetl error, and does not access the network."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from edgetl.cli.app import main
from edgetl.errors import BackboneError, EdgetlError, RunError
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.export.to_hub import share_run
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.runs.evaluate import evaluate_run
from edgetl.train.workflows.runs.prune import prune_run
from edgetl.train.workflows.train import train
from tests.conftest import write_colors

Json = dict[str, Any]
Change = Callable[[Json], object]
HUGE = 10**12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colors(tmp_path_factory.mktemp("data") / "colors", 8)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small valid run."""
    config = TrainConfig.from_options(
        backbone="test_resnet", pretrained=False, strategy="probe", input_size=(32, 32), val=0.25, test=0.25, augmented_views=1
    )
    return train(data, config, tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _tampered(whole: Path, copy: Path, change: Change, *, name: str = "run.json") -> Path:
    """Copy the run with a changed record, or with another changed JSON file and its new hash in the record."""
    shutil.copytree(whole, copy)
    value = json.loads((copy / name).read_text())
    change(value)
    _write(copy, name, json.dumps(value).encode())
    return copy


def _write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    if name != "run.json":
        record = json.loads((folder / "run.json").read_text())
        record["files"][name] = hashlib.sha256(content).hexdigest()
        (folder / "run.json").write_text(json.dumps(record))


def _open_all(path: Path) -> None:
    run = open_run(path)
    run.load_model()
    run.splits()
    run.samples("val")


def _put(*place: str | int, value: object) -> Change:
    def change(record: Any) -> None:
        for part in place[:-1]:
            record = record[part]
        record[place[-1]] = value

    return change


def _drop(*place: str) -> Change:
    def change(record: Any) -> None:
        for part in place[:-1]:
            record = record[part]
        del record[place[-1]]

    return change


def _column(**changes: object) -> Json:
    port = {"module": "layer4", "channels": 8, "layout": "map"}
    record = {"head": "fc", "earlier": [{"name": "old", "classes": 3}], "laterals": [port]}
    return {**record, **changes}


RECORDS: dict[str, Change] = {
    "labels are a number": _put("labels", value=3),
    "labels are empty": _put("labels", value=[]),
    "a label is blank": _put("labels", value=["a", " ", "b"]),
    "two labels are equal": _put("labels", value=["a", "a", "b"]),
    "more labels than outputs": _put("labels", value=[f"c{index}" for index in range(5000)]),
    "a label is a list": _put("labels", value=["a", ["b"], "c"]),
    "schema version is true": _put("schema_version", value=True),
    "schema version is 1.0": _put("schema_version", value=1.0),
    "schema version is text": _put("schema_version", value="1"),
    "schema version of the future": _put("schema_version", value=99),
    "unknown task": _put("task", value="segmentation"),
    "metrics of another task": _put("task", value="multi-label"),
    "regression with three outputs": _put("task", value="regression"),
    "thresholds for classes": _put("decision_rule", value={"thresholds": [0.5]}),
    "spread is 0": _put("decision_rule", value={"spread": 0.0}),
    "a config of unknown keys": _put("config", "evil", value=1),
    "a config of wrong types": _put("config", "epochs", value="many"),
    "no backbone": _drop("backbone"),
    "backbone is a list": _put("backbone", value=[]),
    "unknown architecture": _put("backbone", "architecture", value="no_such_network"),
    "unknown architecture of torchvision": _put("backbone", "architecture", value="torchvision:no_such_network"),
    "architecture on a hub": _put("backbone", "architecture", value="hf-hub:evil/net"),
    "architecture in a folder": _put("backbone", "architecture", value="local-dir:/tmp"),
    "architecture is empty": _put("backbone", "architecture", value=""),
    "another architecture": _put("backbone", "architecture", value="test_byobnet"),
    "a giant architecture": _put("backbone", "architecture", value="vit_giant_patch14_dinov2"),
    "a head that does not exist": _put("backbone", "head_name", value="nothing.here"),
    "a head that is not the last layer": _put("backbone", "head_name", value="conv1.0"),
    "a checkpoint among the arguments": _put("backbone", "model_args", value={"checkpoint_path": "x.pth"}),
    "pretrained among the arguments": _put("backbone", "model_args", value={"pretrained": True}),
    "unknown arguments": _put("backbone", "model_args", value={"no_such_argument": 1}),
    "arguments of another architecture": _put("backbone", "model_args", value={"embed_dim": 64}),
    "huge arguments": _put("backbone", "model_args", value={"channels": [HUGE] * 4}),
    "large arguments": _put("backbone", "model_args", value={"channels": [16_384] * 4}),
    "arguments with infinity": _put("backbone", "model_args", value={"drop_rate": float("inf")}),
    "arguments are a list": _put("backbone", "model_args", value=[1]),
    "deep arguments": _put("backbone", "model_args", value={"img_size": [[[[[[[1]]]]]]]}),
    "pruned layers that do not exist": _put("backbone", "model_args", value={"edgetl_pruned": {"no.layer": [1, 1, 1]}}),
    "pruned layers that are larger than the original": _put("backbone", "model_args", value={"edgetl_pruned": {"conv1.0": [2**19, 3, 1]}}),
    "pruned layers with invalid groups": _put("backbone", "model_args", value={"edgetl_pruned": {"conv1.0": [8, 3, 2]}}),
    "an invalid hash of the weights": _put("backbone", "weights_sha256", value="x"),
    "parents are text": _put("backbone", "parents", value="me"),
    "a lateral connection to a missing module": _put(
        "backbone", "columns", value=_column(laterals=[{"module": "no", "channels": 8, "layout": "map"}])
    ),
    "a column without its head": _put("backbone", "columns", value=_column(head="no")),
    "a column with too many classes": _put("backbone", "columns", value=_column(earlier=[{"name": "old", "classes": HUGE}])),
    "no earlier column": _put("backbone", "columns", value=_column(earlier=[])),
    "columns without weights": _put("backbone", "columns", value=_column()),
    "a head that differs from the weights": _put("head", value={"kind": "mlp", "hidden": 8}),
    "a knn head without a bank": _put("head", value={"kind": "knn", "neighbors": 5, "bank": 0, "temperature": 0.1}),
    "a knn head with a huge bank": _put("head", value={"kind": "knn", "neighbors": 5, "bank": HUGE, "temperature": 0.1}),
    "a head with a negative width": _put("head", value={"kind": "mlp", "hidden": -1}),
    "features of all stages": _put("head", value={"kind": "linear", "features": "layers"}),
    "a huge input": _put("preprocess", "input_size", value=[10**6, 10**6]),
    "an input of no pixels": _put("preprocess", "input_size", value=[0, 0]),
    "a negative standard deviation of pixels": _put("preprocess", "std", value=[0.0, -1.0, 1.0]),
    "mean is not a number": _put("preprocess", "mean", value=[float("nan")] * 3),
    "a plan of negative steps": _put("plan", "steps", value=-1),
    "a plan with an infinite rate": _put("plan", "lr", value=float("inf")),
    "an unknown strategy": _put("plan", "strategy", value="magic"),
    "image counts without all splits": _put("images", value={"train": 1}),
    "a negative image count": _put("images", "val", value=-1),
    "an invalid fingerprint": _put("data_fingerprint", value="abc"),
    "metrics of two classes": lambda record: record["validation"]["classes"].pop(),
    "metrics of a multi-label task": _put("validation", "multi_label", value={"label_accuracy": 1.0}),
    "a confusion matrix that is not square": _put("validation", "confusion", value=[[1, 2, 3], [1]]),
    "no validation": _put("validation", value=None),
    "files outside the run folder": _put("files", "../../etc/passwd", value="0" * 64),
    "files with an absolute path": _put("files", "/etc/passwd", value="0" * 64),
    "files with a backslash": _put("files", "..\\x", value="0" * 64),
    "files with an invalid hash": _put("files", "weights.safetensors", value="no"),
    "no weights among the files": _drop("files", "weights.safetensors"),
    "no splits among the files": _drop("files", "splits.json"),
    "seconds are text": _put("seconds", value="12"),
}
SPLITS: dict[str, Change] = {
    "a path outside the image folder": _put("entries", 0, "path", value="../../etc/passwd"),
    "a path with parent folders": _put("entries", 0, "path", value="a/../../b.png"),
    "an absolute path": _put("entries", 0, "path", value="/etc/passwd"),
    "a path with NUL": _put("entries", 0, "path", value="a\0b"),
    "an empty path": _put("entries", 0, "path", value=""),
    "a label out of range": _put("entries", 0, "label", value=3),
    "a negative label": _put("entries", 0, "label", value=-1),
    "a label that is true": _put("entries", 0, "label", value=True),
    "an image twice": lambda splits: splits["entries"].append(splits["entries"][0]),
    "an unknown part": _put("entries", 0, "part", value="holdout"),
    "targets of another task": _put("entries", 0, "targets", value=[1.0, 0.0, 0.0]),
    "an invalid content hash": _put("entries", 0, "content", value="x"),
    "schema version is true": _put("schema_version", value=True),
    "entries are a number": _put("entries", value=3),
    "root is a number": _put("root", value=3),
    "a root with NUL": _put("root", value="/nothing/here\0"),
    "a very long root": _put("root", value="a" * 10_000),
    "a very long path": _put("entries", 0, "path", value="a" * 10_000),
    "a very long file name": _put("entries", 0, "path", value="a" * 1_000),
}


@pytest.mark.parametrize("case", RECORDS)
def test_invalid_run_record_raises_an_edgetl_error(whole: Path, tmp_path: Path, case: str) -> None:
    path = _tampered(whole, tmp_path / "run", RECORDS[case])
    with pytest.raises((RunError, BackboneError)) as found:
        _open_all(path)
    assert len(str(found.value)) < 2000


@pytest.mark.parametrize("case", SPLITS)
def test_invalid_splits_raise_an_edgetl_error(whole: Path, tmp_path: Path, case: str) -> None:
    path = _tampered(whole, tmp_path / "run", SPLITS[case], name="splits.json")
    with pytest.raises(EdgetlError):
        _open_all(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema_version": 1e999}',
        b'{"a": 1, "a": 2}',
        b"9" * 5000,
        b"{}" * 600_000,
    ],
)
def test_run_record_with_invalid_json_is_refused(whole: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(content)
    with pytest.raises(RunError):
        open_run(tmp_path / "run")


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        state = safetensors.torch.load(data)
        change(state)
        return safetensors.torch.save(state)

    return changed


WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "a huge header": lambda data: (2**40).to_bytes(8, "little") + data[8:],
    "a pickle": lambda _: b"\x80\x04\x95\x0b",
    "a tensor is missing": _weights(lambda state: state.pop("fc.weight")),
    "an additional tensor": _weights(lambda state: state.update(evil=torch.zeros(3))),
    "a tensor of another shape": _weights(lambda state: state.update({"fc.weight": torch.zeros(3, 1)})),
    "a tensor of NaN": _weights(lambda state: state["fc.weight"].fill_(float("nan"))),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_invalid_weights_are_refused(whole: Path, tmp_path: Path, case: str) -> None:
    shutil.copytree(whole, tmp_path / "run")
    _write(tmp_path / "run", "weights.safetensors", WEIGHTS[case]((whole / "weights.safetensors").read_bytes()))
    with pytest.raises(RunError, match=r"weights\.safetensors"):
        _open_all(tmp_path / "run")


def test_named_pipe_in_a_run_folder_is_refused(whole: Path, tmp_path: Path) -> None:
    for name in ("run.json", "weights.safetensors", "splits.json"):
        shutil.copytree(whole, tmp_path / name)
        (tmp_path / name / name).unlink()
        os.mkfifo(tmp_path / name / name)
        with pytest.raises(RunError):
            _open_all(tmp_path / name)


def _commands(run: Path, whole: Path, data: Path, out: Path) -> dict[str, Callable[[], object]]:
    other = TrainConfig.from_options(
        backbone="test_resnet", pretrained=False, strategy="full", epochs=1, augmented_views=1, input_size=(32, 32)
    )
    start = other.with_options(backbone=str(run), pretrained=True)
    return {
        "export": lambda: export_bundle(run, ExportConfig(), out),
        "evaluate": lambda: evaluate_run(run, data),
        "share": lambda: share_run(run, out),
        "prune": lambda: prune_run(run, out),
        "--backbone": lambda: load_backbone(start.backbone, 3),
        "train --backbone": lambda: train(data, start, out),
        "--teacher": lambda: train(data, other.with_options(teacher=str(run)), out),
        "--replay": lambda: train(data, start.with_options(replay=str(run)), out),
    }


@pytest.mark.parametrize(
    "case",
    [
        "another architecture",
        "a checkpoint among the arguments",
        "a head that is not the last layer",
        "a path outside the image folder",
        "a label out of range",
    ],
)
def test_every_command_that_opens_a_run_refuses_an_invalid_run(whole: Path, data: Path, tmp_path: Path, case: str) -> None:
    in_splits = case in SPLITS
    path = _tampered(whole, tmp_path / "run", (SPLITS if in_splits else RECORDS)[case], name="splits.json" if in_splits else "run.json")
    # share copies the weights file without building the network.
    copies = {"share"} if case in ("a head that is not the last layer", "another architecture") else set()
    unread = {"share", "evaluate", "--backbone", "train --backbone", "--teacher"} if in_splits else copies
    for command, call in _commands(path, whole, data, tmp_path / "out").items():
        if command not in unread:
            with pytest.raises(EdgetlError):
                call()
            assert not (tmp_path / "out").exists(), command


def test_inspect_exits_with_the_code_of_run_errors(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, case in enumerate(("schema version is true", "labels are empty", "files outside the run folder", "architecture on a hub")):
        path = _tampered(whole, tmp_path / str(index), RECORDS[case])
        for arguments in (["inspect", str(path)], ["inspect", str(path), "--json"]):
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert ended.value.code == RunError.exit_code, case
    assert "Traceback" not in capsys.readouterr().err


def test_inspect_shows_training_settings_and_files_of_a_run(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "classes.csv").unlink()
    run = open_run(whole)
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "run"), "--json"])
    output = json.loads(capsys.readouterr().out)
    sizes = output["sizes"]
    assert output["plan"]["strategy"] == "probe" and output["images"] == run.record.images
    assert sizes["weights.safetensors"] == (whole / "weights.safetensors").stat().st_size and sizes["classes.csv"] is None
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "run")])
    text = " ".join(capsys.readouterr().out.split())
    counts = run.record.images
    for words in (
        "strategy probe (set by --strategy), 0 steps",
        f"images {counts['train']} train, {counts['val']} val, {counts['test']} test",
        "validation accuracy",
        "test accuracy",
        "weights.safetensors 1",
        "classes.csv is missing",
        "backbone test_resnet (test_resnet)",
    ):
        assert words in text, words


_VALUES: tuple[object, ...] = (None, True, -1, 0, HUGE, 1e308, "", "../x", "\ud83d\ude00", [], {}, [[]], {"a": 1}, "a" * 10_000)


@pytest.mark.slow
def test_random_changes_of_a_run_raise_only_edgetl_errors(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    original, splits = (json.loads((whole / name).read_text()) for name in ("run.json", "splits.json"))
    for seed in range(1000):
        chosen = random.Random(seed)
        name, value = chosen.choice([("run.json", original), ("splits.json", splits)])
        (tmp_path / "run" / "run.json").write_text(json.dumps(original))
        (tmp_path / "run" / "splits.json").write_text(json.dumps(splits))
        changed = json.loads(json.dumps(value))
        place: Any = changed
        while True:
            key = chosen.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or chosen.random() < 0.2:
                break
            place = place[key]
        place[key] = chosen.choice(_VALUES)
        _write(tmp_path / "run", name, json.dumps(changed).encode())
        try:
            _open_all(tmp_path / "run")
        except EdgetlError:
            continue
