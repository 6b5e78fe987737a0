"""Unusual names of classes and files from training to prediction, and scan notes in the run record."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from edgetl import load
from edgetl.core.config import parse_json
from edgetl.errors import RunError
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.splits_record import SplitEntry, SplitsRecord
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.estimate import estimate
from edgetl.train.workflows.runs.evaluate import evaluate_run
from edgetl.train.workflows.train import train
from tests.command import edgetl
from tests.conftest import write_colors

NAMES = {"red": "café\u00a0noir", "green": "猫\u3000種", "blue": '$a^$ [red] "b", |c'}
NOT_UTF8 = b"verre_cass\xe9 100%.png"
CONFIG = TrainConfig.from_options(
    backbone="test_resnet", pretrained=False, input_size=(32, 32), augmented_views=1, strategy="probe", val=0.25, test=0.25
)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folder with Unicode spaces in class names, a name that is not UTF-8, a mask, a thumbnail and a text file."""
    root = write_colors(tmp_path_factory.mktemp("odd") / "data", 12)
    for old, new in NAMES.items():
        (root / old).rename(root / new)
    os.rename(root / NAMES["red"] / "000.png", os.fsencode(root / NAMES["red"]) + b"/" + NOT_UTF8)
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(root / NAMES["red"] / "001_mask.png")
    (root / "@eaDir").mkdir()
    (root / "@eaDir" / "a.jpg").write_bytes(b"")
    (root / "readme.txt").write_text("from the web")
    return root


@pytest.fixture(scope="module")
def odd_run(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(odd, CONFIG, tmp_path_factory.mktemp("runs") / "odd")


def test_run_records_the_files_that_the_scan_left_out(odd_run: Run) -> None:
    notes = {note.reason: (note.used, note.count) for note in open_run(odd_run.path).record.notes}
    assert notes == {"system": (False, 1), "mask": (False, 1), "other": (False, 1), "not-utf8": (True, 1)}


def test_run_finds_files_with_names_that_are_not_utf_8(odd_run: Run) -> None:
    splits = open_run(odd_run.path).splits()
    (entry,) = (entry for entry in splits.entries if entry.raw)
    assert entry.path.endswith(r"/verre_cass\xe9 100%.png") and os.fsencode(entry.file).endswith(b"/" + NOT_UTF8)
    assert len(odd_run.samples(entry.part)) == sum(item.part == entry.part for item in splits.entries)


def test_class_names_with_unicode_spaces_are_kept_in_predictions(odd: Path, odd_run: Run, tmp_path: Path) -> None:
    bundle = export_bundle(odd_run.path, ExportConfig(formats=("onnx", "openvino"), precisions=("fp32",)), tmp_path / "bundle")
    assert set(bundle.manifest.labels) == set(NAMES.values())
    for variant in bundle.manifest.variants:
        prediction = load(bundle.path, variant=variant.name).predict(odd / NAMES["green"] / "000.png")
        assert prediction.label in NAMES.values()


def test_estimate_reports_files_left_out_and_applies_patterns(odd: Path) -> None:
    assert {note.reason for note in estimate(odd, CONFIG).notes} == {"system", "mask", "other", "not-utf8"}
    chosen = CONFIG.with_options(include=("*_mask.png",), exclude=("readme.txt", "@eaDir"))
    assert {note.reason: note.count for note in estimate(odd, chosen).notes} == {"excluded": 2, "not-utf8": 1}


def test_evaluate_prints_and_returns_files_left_out(odd: Path, odd_run: Run) -> None:
    shown = edgetl("evaluate", odd_run.path, odd, "--exclude", "readme.txt")
    assert "1 image left out: segmentation masks" in shown.stdout and "1 file left out by --exclude: *.txt (1)." in shown.stdout
    assert "mask" in {note.reason for note in evaluate_run(odd_run.path, odd).notes}


@pytest.mark.parametrize("raw", ["..%2Fetc%2Fpasswd", "a%2Fb%00.png", "a%2Fc.png"])
def test_split_entry_rejects_bytes_that_differ_from_its_path(raw: str) -> None:
    with pytest.raises(ValidationError, match="and its bytes in 'raw' differ"):
        SplitEntry(path="a/b.png", label=0, content="0" * 64, part="train", raw=raw)


def test_splits_record_rejects_an_entry_with_bytes_of_another_path() -> None:
    text = (
        '{"root": "/data", "fingerprint": "0", "broken": [], "conflicts": [], "entries": '
        '[{"path": "a/b.png", "label": 0, "content": "0", "part": "train", "raw": "..%2Fb.png"}]}'
    )
    with pytest.raises(RunError, match=r"splits\.json does not fit its schema"):
        parse_json(text.encode(), SplitsRecord, RunError, name="splits.json")
