"""Label tables (CSV): targets, errors, and splits."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from edgetl.core.tasks import Task
from edgetl.data.folder import ImageFolder
from edgetl.data.split import split
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import LEAST_STRATUM, scan_table
from edgetl.errors import ConfigError, DataError, EdgetlError
from tests.data.conftest import put

HEADER = "file,n_cell,rust\n"


def images(root: Path, count: int = 6) -> Path:
    for index in range(count):
        put(root / f"{index:03d}.png", index)
    return root


def written(root: Path, rows: str, *, header: str = HEADER) -> Path:
    path = root / "labels.csv"
    path.write_text(header + rows, "utf-8")
    return path


def read(root: Path, rows: str, task: Task = "multi-label", *, header: str = HEADER, columns: tuple[str, ...] = ()) -> ImageFolder:
    return scan_table(root, Table(written(root, rows, header=header), task, columns))


def many(tmp_path: Path, targets: list[str], *, header: str = HEADER, task: Task = "multi-label") -> ImageFolder:
    """Scan a table with one image for each line of cells."""
    root = images(tmp_path / "images", len(targets))
    return read(root, "".join(f"{index:03d}.png,{cells}\n" for index, cells in enumerate(targets)), task, header=header)


def test_values_above_zero_and_true_mean_that_a_label_is_present(tmp_path: Path) -> None:
    found = read(images(tmp_path / "images"), "000.png,19,TRUE\n001.png,0,false\n\n002.png, 0.5 ,1\n003.png,-1,no\n")
    assert found.labels == ("n_cell", "rust") and found.task == "multi-label"
    assert [sample.targets for sample in found.samples] == [(1, 1), (0, 0), (1, 1), (0, 0)]
    assert found.counts() == {"n_cell": 2, "rust": 2}
    assert [found.truth(sample) for sample in found.samples[:2]] == ["n_cell, rust", "none"]


def test_paths_are_relative_to_the_image_folder_or_to_the_table(tmp_path: Path) -> None:
    images(tmp_path / "set" / "photos" / "deep")
    table = tmp_path / "set" / "labels.csv"
    table.write_text("file,a,b\nphotos/deep/000.png,1,0\ndeep/001.png,0,1\n", "utf-8-sig")
    found = scan_table(tmp_path / "set" / "photos", Table(table, "multi-label"))
    assert [sample.path.relative_to(found.root).as_posix() for sample in found.samples] == ["deep/000.png", "deep/001.png"]


def test_the_fingerprint_depends_on_labels_and_not_on_file_names(tmp_path: Path) -> None:
    one = many(tmp_path / "one", ["1,0", "0,1"])
    for path in (tmp_path / "one" / "images").glob("*.png"):
        put(tmp_path / "two" / f"other-{path.name}", int(path.stem))
    same = read(tmp_path / "two", "other-000.png,3,0\nother-001.png,0,2\n")
    other = read(tmp_path / "two", "other-000.png,3,1\nother-001.png,0,2\n")
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("rows", "header", "task", "columns", "kind", "message"),
    [
        ("000.png,1,1\ngone.png,1,0\n", HEADER, "multi-label", (), DataError, r"line 3: there is no file 'gone.png' below"),
        ("000.png,1,1\n000.png,1,0\n", HEADER, "multi-label", (), DataError, r"line 3: 000.png is also in line 2"),
        ("000.png,1,1\n./000.png,1,0\n", HEADER, "multi-label", (), DataError, r"is also in line 2"),
        (
            "000.png,1,maybe\n",
            HEADER,
            "multi-label",
            (),
            DataError,
            r"'maybe' in the column 'rust' is not a number. .*true or false",
        ),
        ("000.png,1,\n", HEADER, "multi-label", (), DataError, r"line 2: '' in the column 'rust' is not a number"),
        ("000.png,1,nan\n", HEADER, "multi-label", (), DataError, r"'nan' in the column 'rust' is not a number"),
        ("000.png,1\n", HEADER, "multi-label", (), DataError, r"line 2: 2 cells, but the header has 3"),
        ("000.png,1,0\n001.png,1,0\n", HEADER, "multi-label", (), DataError, r"no image has the label 'rust'. Remove it"),
        ("", HEADER, "multi-label", (), DataError, r"has a header and no rows"),
        ("", "", "multi-label", (), DataError, r"no column `file` \(first line: empty\)"),
        ("000.png,1\n", "name,a\n", "multi-label", (), DataError, r"no column `file` \(first line: name, a\)"),
        ("000.png\n", "file\n", "multi-label", (), DataError, r"has no label column, only `file`"),
        ("000.png,1,1\n", "file,a,a\n", "multi-label", (), DataError, r"column 'a' occurs twice"),
        ("000.png,1,1\n", HEADER, "multi-label", ("moss",), ConfigError, r"has no column 'moss'. Its columns: n_cell, rust"),
        (
            "000.png,1,1\n",
            HEADER,
            "regression",
            (),
            ConfigError,
            r"needs one column of numbers, but .* has 2: n_cell, rust.*--columns NAME",
        ),
        ("000.png,1,x\n", HEADER, "regression", ("rust",), DataError, r"'x' in the column 'rust' is not a number. Write a number, or"),
        ("000.png,1,1\n001.png,1,2\n", HEADER, "regression", ("n_cell",), DataError, r"every image has the same number in 'n_cell'"),
        ("000.png,1,1.5\n", HEADER, "ordinal", ("rust",), DataError, r"1.5 in the column 'rust' is not a whole number"),
        ("000.png,0,1\n001.png,900,1\n", HEADER, "ordinal", ("n_cell",), DataError, r"levels from 0 to 900 in 'n_cell'"),
    ],
)
def test_errors_show_the_invalid_cell_and_its_line(
    tmp_path: Path, rows: str, header: str, task: Task, columns: tuple[str, ...], kind: type[EdgetlError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        read(images(tmp_path / "images"), rows, task, header=header, columns=columns)


def test_files_outside_the_image_folder_are_an_error(tmp_path: Path) -> None:
    images(tmp_path / "images")
    put(tmp_path / "elsewhere" / "x.png", 99)
    with pytest.raises(DataError, match=r"line 2: \.\./elsewhere/x\.png is outside .*images"):
        read(tmp_path / "images", "../elsewhere/x.png,1,1\n")


def test_a_missing_or_binary_table_is_an_error(tmp_path: Path) -> None:
    images(tmp_path / "images")
    with pytest.raises(DataError, match=r"no\.csv cannot be read: No such file"):
        scan_table(tmp_path / "images", Table(tmp_path / "no.csv"))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not text in UTF-8, UTF-16 or Windows-1252"):
        scan_table(tmp_path / "images", Table(binary))
    with pytest.raises(DataError, match="does not exist\\. Give a folder with the images"):
        scan_table(tmp_path / "nowhere", Table(binary))


def test_labels_of_a_trained_model_may_be_absent_in_an_evaluation(tmp_path: Path) -> None:
    table = Table(written(images(tmp_path / "images"), "000.png,1,0\n"), "multi-label", ("rust", "n_cell"))
    found = scan_table(tmp_path / "images", table, known=True)
    assert found.labels == ("rust", "n_cell") and found.samples[0].targets == (0.0, 1.0)


def test_up_to_ten_percent_broken_images_are_left_out(tmp_path: Path) -> None:
    root = images(tmp_path / "images", 12)
    (root / "003.png").write_bytes(b"not an image")
    rows = [f"{index:03d}.png,{index % 2},1\n" for index in range(12)]
    assert [item.path.name for item in read(root, "".join(rows)).broken] == ["003.png"]
    (root / "004.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="2 of 12 images cannot be decoded"):
        read(root, "".join(rows))


def test_every_split_keeps_the_proportions_of_common_combinations(tmp_path: Path) -> None:
    folder = many(tmp_path, ["1,1"] * 40 + ["1,0"] * 40 + ["0,1"] * 3)
    splits = split(folder, seed=1)
    for part in ("train", "val", "test"):
        found = Counter(sample.targets for sample in splits.part(part))
        assert found[(1.0, 1.0)] == found[(1.0, 0.0)] == {"train": 28, "val": 6, "test": 6}[part]
        assert found[(0.0, 1.0)] == 1, "a rare combination has an image in each split"


def test_rare_combinations_are_grouped_by_their_rarest_label(tmp_path: Path) -> None:
    folder = many(tmp_path, ["1,0,0"] * 20 + ["1,1,1", "0,1,1", "1,0,1", "0,0,1"] + ["0,1,0"] * 5, header="file,a,b,c\n")
    strata = {folder.truth(sample): sample.label for sample in folder.samples}
    assert len({strata[name] for name in ("a, b, c", "b, c", "a, c", "c")}) == 1, "each has c, the rarest label"
    assert len(set(strata.values())) == 3 and LEAST_STRATUM > 5


def test_copies_are_in_one_split_and_copies_with_different_labels_are_in_train(tmp_path: Path) -> None:
    root = images(tmp_path / "images", 30)
    for index, twin in ((0, 20), (1, 21)):
        shutil.copyfile(root / f"{index:03d}.png", root / f"{twin:03d}.png")
    rows = [f"{index:03d}.png,{int(index != 21)},{index % 2}\n" for index in range(30)]
    splits = split(read(root, "".join(rows)), val=0.3, test=0.3)
    where = {sample.path.name: part for part in ("train", "val", "test") for sample in splits.part(part)}
    assert where["000.png"] == where["020.png"]
    assert where["001.png"] == where["021.png"] == "train"
    assert [conflict.labels for conflict in splits.conflicts] == [("n_cell, rust", "rust")]


def test_splits_are_stratified_by_value_range_and_by_level(tmp_path: Path) -> None:
    numbers = many(tmp_path / "numbers", [str(index) for index in range(70)], header="file,mm\n", task="regression")
    for part in ("val", "test"):
        values = sorted(sample.targets[0] for sample in split(numbers).part(part))
        assert values[0] < 14 and values[-1] >= 56 and len(values) == 10
    grades = many(tmp_path / "grades", [str(index % 3) for index in range(30)], header="file,grade\n", task="ordinal")
    assert Counter(sample.targets[0] for sample in split(grades).test) == {0.0: 2, 1.0: 2, 2.0: 2}
    assert grades.truth(grades.samples[2]) == "2" and grades.counts() == {"grade": 30}


def test_ready_made_split_folders_are_kept(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "val", "test")):
        for index in range(4):
            put(tmp_path / "images" / part / f"{index}.png", 10 * number + index)
    rows = [f"{part}/{index}.png,{index % 2},1\n" for part in ("train", "val", "test") for index in range(4)]
    splits = split(read(tmp_path / "images", "".join(rows)))
    assert all(sample.path.parent.name == part for part in ("train", "val", "test") for sample in splits.part(part))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 4, 4)
