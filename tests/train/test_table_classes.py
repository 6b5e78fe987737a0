"""Classification from a label table in place of class folders: training, export and evaluation."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest

from edgetl.data.split import split
from edgetl.errors import ConfigError
from edgetl.export.config import ExportConfig
from edgetl.export.model_card import run_lines
from edgetl.export.package import export_bundle
from edgetl.runtime.evaluation import EvaluationConfig, evaluate_bundle
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.resolve import check_conflicts, resolve
from edgetl.train.config.tasks import scan_images
from edgetl.train.workflows.runs.evaluate import evaluate_run
from edgetl.train.workflows.train import train
from tests.conftest import write_colors

COLORS = ("blue", "green", "red")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Folder with color patches in ``images``, and the label tables ``words.csv`` and ``numbers.csv``."""
    (tmp_path / "images").mkdir()
    names = []
    for path in sorted(write_colors(tmp_path / "folders", 12).rglob("*.png")):
        names.append((f"{path.parent.name}-{path.name}", path.parent.name))
        shutil.move(path, tmp_path / "images" / names[-1][0])
    (tmp_path / "words.csv").write_text("file,label\n" + "".join(f"{name},{label}\n" for name, label in names))
    (tmp_path / "numbers.csv").write_text("file,label\n" + "".join(f"{name},{COLORS.index(label)}\n" for name, label in names))
    return tmp_path


def config(table: Path, **changes: object) -> TrainConfig:
    return TrainConfig.from_options(**{"labels": str(table), "augmented_views": 1, "input_size": (64, 64), **changes})


def test_classifier_is_trained_exported_and_evaluated_from_a_table_of_class_names(flat: Path) -> None:
    run = train(flat / "images", config(flat / "words.csv"), flat / "run")
    assert run.record.task == "classification" and run.record.labels == COLORS
    assert run.record.test is not None and run.record.test.accuracy.value == 1.0
    report = evaluate_run(run.path, flat / "images", EvaluationConfig(labels=flat / "words.csv"))
    assert report.result.accuracy.n == run.record.images["test"] == 36 - report.left_out
    bundle = export_bundle(run.path, ExportConfig(precisions=("fp32",), formats=("onnx",)), flat / "bundle")
    one_hot = flat / "one-hot.csv"
    rows = [line.split(",") for line in (flat / "words.csv").read_text().splitlines()[1:]]
    one_hot.write_text(
        "image_id,red,green,blue\n"
        + "".join(f"{Path(name).stem},{','.join(str(int(label == color)) for color in ('red', 'green', 'blue'))}\n" for name, label in rows)
    )
    assert evaluate_bundle(bundle.path, flat / "images", EvaluationConfig(labels=one_hot)).result.classes == report.result.classes


def test_table_of_class_numbers_requires_a_task(flat: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 different numbers \(0, 1, 2\).*--task: classification"):
        scan_images(flat / "images", config(flat / "numbers.csv").data)
    found = scan_images(flat / "images", config(flat / "numbers.csv", task="classification").data)
    assert found.task == "classification" and found.counts() == {"0": 12, "1": 12, "2": 12}


def test_table_names_in_nfc_match_files_in_nfd(tmp_path: Path) -> None:
    lines = ["file,blue,green,red"]
    (tmp_path / "nfd").mkdir()
    for index, path in enumerate(sorted(write_colors(tmp_path / "folders", 3).rglob("*.png"))):
        name = f"büßchen_{index}.png"
        shutil.move(path, tmp_path / "nfd" / unicodedata.normalize("NFD", name))
        lines.append(f"{name}," + ",".join(str(int(path.parent.name == color)) for color in COLORS))
    (tmp_path / "nfd.csv").write_text("\n".join(lines), "utf-8")
    found = scan_images(tmp_path / "nfd", config(tmp_path / "nfd.csv").data)
    assert len(found.samples) == 9 and found.counts() == dict.fromkeys(COLORS, 3)


def test_resolve_rejects_options_of_another_task_than_the_table(flat: Path) -> None:
    with pytest.raises(ConfigError, match="--multilabel-loss asymmetric is only for multi-label tasks, not classification"):
        wrong = config(flat / "words.csv", multilabel_loss="asymmetric")
        resolve(wrong, split(scan_images(flat / "images", wrong.data)))


def test_run_and_card_report_groups(tmp_path: Path) -> None:
    images = write_colors(tmp_path / "images", 12)
    settings = {"augmented_views": 1, "input_size": (32, 32)}
    # The pattern puts ten images of a color into one group, and the other two into another.
    run = train(images, TrainConfig.from_options(**{"group": r"^(\w+/\d\d)", **settings, "val": 0.25}), tmp_path / "run")
    grouping = run.record.grouping
    assert grouping is not None and (grouping.groups, grouping.alone, grouping.crossing) == (6, 0, 0)
    parts: dict[str, set[str]] = {}
    for entry in run.splits().entries:
        parts.setdefault(entry.group, set()).add(entry.part)
    assert len(parts) == 6 and all(len(found) == 1 for found in parts.values())
    assert {sample.group for sample in run.samples("train")} <= parts.keys()
    assert any(
        "- Groups: 6 (pattern ^(\\w+/\\d\\d)), each in one split" in line
        for line in run_lines(run.record, run.record.preprocess, run.record.validation.score)
    )
    plain = train(images, TrainConfig.from_options(**settings), tmp_path / "plain")
    assert plain.record.grouping is None and not any(entry.group for entry in plain.splits().entries)
    assert any(
        line.startswith("- Groups: none given. Images of one object")
        for line in run_lines(plain.record, plain.record.preprocess, plain.record.validation.score)
    )


def test_label_table_accepts_exclude_and_rejects_include() -> None:
    check_conflicts(TrainConfig.from_options(labels="labels.csv", exclude=("old/*",)))
    with pytest.raises(ConfigError, match=r"--include is for class folders.*Add rows to the table"):
        check_conflicts(TrainConfig.from_options(labels="labels.csv", include=("*_mask.png",)))
