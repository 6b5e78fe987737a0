"""Captured images: layout, label table, disk budget, repair after a crash, full disk."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.core.results import Prediction
from edgetl.core.tasks import DecisionRule, OutputDecoding
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import scan_table
from edgetl.device.monitoring.capture import Captured, CaptureFolder, Reason, is_uncertain
from edgetl.errors import DataError, StorageError

ANIMALS = OutputDecoding("classification", ("cat", "dog"))
SQUARES = OutputDecoding("multi-label", ("red", "score"), DecisionRule(thresholds=(0.5, 0.3)))


def frame(number: int, side: int = 16) -> bytes:
    """Return an encoded JPEG image, different for each number."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def facts(reason: Reason = "sample", label: str = "cat") -> Captured:
    """Return the facts of a captured image."""
    return Captured(Prediction(label, 0.55, (0.55, 0.45)), reason, "2026-11-26T12:00:00+00:00", release=3, source="line 1, left")


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a label table."""
    with open(path / "labels.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def disk_usage(folder: Path) -> int:
    """Return the size of all files below a folder, in blocks of 4096 bytes."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def test_a_captured_image_has_a_row_with_its_prediction_and_an_empty_label(tmp_path: Path) -> None:
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=10**6)
    assert folder.save(frame(0), facts())
    (row,) = table(tmp_path / "animals")
    assert row.pop("file").startswith("2026-11-26-sample-")
    assert row == {
        "label": "",
        "predicted": "cat",
        "score": "0.5500",
        "reason": "sample",
        "captured": "2026-11-26T12:00:00+00:00",
        "release": "3",
        "source": "line 1, left",
    }
    assert [path.read_bytes() for path in (tmp_path / "animals/images").iterdir()] == [frame(0)]


def test_an_image_is_captured_once(tmp_path: Path) -> None:
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=10**6)
    assert folder.save(frame(0), facts()) and not folder.save(frame(0), facts("drift"))
    assert not CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=10**6).save(frame(0), facts())
    assert len(table(tmp_path / "animals")) == 1


def test_data_of_an_unknown_format_is_not_captured(tmp_path: Path) -> None:
    assert not CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=10**6).save(b"no image", facts())


def label_all(folder: Path, labels: dict[str, str]) -> None:
    """Fill in the label column, as a person does."""
    rows = table(folder)
    for row in rows:
        row["label"] = labels[row["predicted"]]
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_training_reads_the_folder_after_labeling(tmp_path: Path) -> None:
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=10**6)
    for number in range(8):
        folder.save(frame(number), facts(label=("cat", "dog")[number % 2]))
    asked = Table(tmp_path / "animals/labels.csv", columns=("label",))
    with pytest.raises(DataError, match="no row has a label in 'label'"):
        scan_table(tmp_path / "animals/images", asked)
    label_all(tmp_path / "animals", {"cat": "dog", "dog": "horse"})
    assert scan_table(tmp_path / "animals/images", asked).counts() == {"dog": 4, "horse": 4}


def test_training_leaves_out_the_captured_images_without_a_label(tmp_path: Path) -> None:
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=10**6)
    for number in range(12):
        folder.save(frame(number), facts(label=("cat", "dog", "horse")[number % 3]))
    label_all(tmp_path / "animals", {"cat": "cat", "dog": "dog", "horse": ""})
    found = scan_table(tmp_path / "animals/images", Table(tmp_path / "animals/labels.csv", columns=("label",)))
    assert found.counts() == {"cat": 4, "dog": 4}
    (note,) = [note for note in found.notes if not note.used]
    assert (note.reason, note.count) == ("no-label", 4)
    assert note.describe().startswith("4 rows of the table left out: no label: ")


def test_multi_label_tables_have_a_column_for_each_label(tmp_path: Path) -> None:
    folder = CaptureFolder(tmp_path, "squares", SQUARES, max_bytes=10**6)
    folder.save(frame(0), Captured(Prediction("red", 0.9, (0.9, 0.4), labels=("red", "score")), "drift", "2026-11-26T12:00:00+00:00", 1))
    (row,) = table(tmp_path / "squares")
    assert list(row) == ["file", "red", "score", "predicted", "reason", "captured", "release", "source"]
    assert row["predicted"] == "red score" and row["red"] == row["score"] == ""


def test_other_label_columns_get_another_folder(tmp_path: Path) -> None:
    CaptureFolder(tmp_path, "squares", SQUARES, max_bytes=10**6).save(frame(0), facts())
    more = OutputDecoding("multi-label", ("red", "score", "blue"), DecisionRule(thresholds=(0.5, 0.3, 0.5)))
    assert CaptureFolder(tmp_path, "squares", more, max_bytes=10**6).path == tmp_path / "squares-2"
    assert CaptureFolder(tmp_path, "squares", SQUARES, max_bytes=10**6).path == tmp_path / "squares"


@pytest.mark.parametrize("frames", [250, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_folder_stays_within_its_budget(tmp_path: Path, frames: int) -> None:
    budget = 500_000
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=budget)
    data = frame(0, side=64)
    largest = 0
    for number in range(frames):
        # A suffix after the end of the image makes each file another one.
        folder.save(data + number.to_bytes(4), facts(("drift", "uncertain", "uncertain")[number % 3]))
        if number % 50 == 0:
            largest = max(largest, disk_usage(tmp_path))
    kept = sorted(path.name for path in (tmp_path / "animals/images").iterdir())
    assert largest <= budget and disk_usage(tmp_path) == folder.used_bytes <= budget
    assert folder.deleted == frames - len(kept)
    assert sorted(row["file"] for row in table(tmp_path / "animals")) == kept
    # Frequent reasons do not displace rare ones.
    assert abs(2 * sum("drift" in name for name in kept) - len(kept)) <= len(kept) / 3


def test_labeled_images_are_not_deleted(tmp_path: Path) -> None:
    budget = 100_000
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=budget)
    for number in range(5):
        folder.save(frame(number), facts())
    label_all(tmp_path / "animals", {"cat": "cat"})
    labeled = {row["file"] for row in table(tmp_path / "animals")}
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=budget)
    for number in range(5, 60):
        folder.save(frame(number), facts())
    assert labeled <= {row["file"] for row in table(tmp_path / "animals") if row["label"] == "cat"}
    assert folder.deleted > 0 and disk_usage(tmp_path) <= budget
    label_all(tmp_path / "animals", {"cat": "cat"})
    with pytest.raises(StorageError, match="have labels and use up the budget"):
        for number in range(60, 90):
            folder.save(frame(number), facts())


def test_a_restart_repairs_what_a_crash_left(tmp_path: Path) -> None:
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=10**6)
    for number in range(3):
        folder.save(frame(number), facts("drift"))
    names = [row["file"] for row in table(tmp_path / "animals")]
    path = tmp_path / "animals/labels.csv"
    path.write_bytes(path.read_bytes()[:-30])  # the last row is torn
    (tmp_path / "animals/images" / names[0]).unlink()  # an image was deleted
    (tmp_path / "animals/images/.edgetl-partial-0123abcd-x.jpg").write_bytes(b"unfinished")
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=10**6)
    assert [(row["file"], row["reason"]) for row in table(tmp_path / "animals")] == [(name, "drift") for name in names[1:]]
    assert folder.used_bytes == disk_usage(tmp_path)


def test_files_of_the_user_stay(tmp_path: Path) -> None:
    (tmp_path / "animals/images").mkdir(parents=True)
    (tmp_path / "animals/images/mine.jpg").write_bytes(frame(0))
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=50_000)
    for number in range(1, 30):
        folder.save(frame(number), facts())
    assert (tmp_path / "animals/images/mine.jpg").exists()


def test_uncertain_predictions_have_a_low_score_or_a_score_near_a_threshold() -> None:
    assert is_uncertain(Prediction("cat", 0.55, (0.55, 0.45)), ANIMALS, 0.6)
    assert not is_uncertain(Prediction("cat", 0.95, (0.95, 0.05)), ANIMALS, 0.6)
    assert is_uncertain(Prediction(None, 0.95, (0.95, 0.05)), ANIMALS, 0.6)
    assert is_uncertain(Prediction("red", 0.9, (0.9, 0.35)), SQUARES, 0.6)
    assert not is_uncertain(Prediction("red", 0.9, (0.9, 0.05)), SQUARES, 0.6)
    assert not is_uncertain(Prediction("mm", 5.8, (5.8,), value=5.8), OutputDecoding("regression", ("mm",)), 0.6)


def test_a_full_disk_is_a_storage_error_and_leaves_no_partial_file(small_disk: Path) -> None:
    folder = CaptureFolder(small_disk, "animals", ANIMALS, max_bytes=10**7)
    with pytest.raises(StorageError, match="No space left on device"):
        for number in range(2000):
            folder.save(frame(number, side=64), facts())
    listed = {row["file"] for row in table(small_disk / "animals")}
    assert listed == {path.name for path in (small_disk / "animals/images").iterdir()}
    # A restart on the full disk is possible.
    assert CaptureFolder(small_disk, "animals", ANIMALS, max_bytes=10**7).used_bytes == disk_usage(small_disk)


def test_the_row_of_an_unknown_image_has_no_predicted_class(tmp_path: Path) -> None:
    folder = CaptureFolder(tmp_path, "animals", ANIMALS, max_bytes=10**6)
    assert folder.save(frame(0), Captured(Prediction(None, 0.55, (0.55, 0.45)), "uncertain", "2026-11-26T12:00:00+00:00", release=3))
    (row,) = table(tmp_path / "animals")
    assert (row["predicted"], row["score"]) == ("", "0.5500")
