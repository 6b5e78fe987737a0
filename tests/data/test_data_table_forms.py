"""Forms of label tables: separators, encodings, file names, splits, groups, and the task of the columns."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from edgetl.core.tasks import Task
from edgetl.data.folder import ImageFolder
from edgetl.data.selection import Selection
from edgetl.data.split import split
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import scan_table
from edgetl.errors import ConfigError, DataError, EdgetlError
from tests.data.conftest import put

CATS = "file,label\n0.png,cat\n1.png,dog\n2.png,cat\n3.png,dog\n"


def images(root: Path, *names: str) -> Path:
    for index, name in enumerate(names or ("0.png", "1.png", "2.png", "3.png")):
        put(root / name, index)
    return root


def read(root: Path, table: str | bytes, task: Task | None = None, *, columns: tuple[str, ...] = ()) -> ImageFolder:
    path = root.parent / "labels.csv"
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    return scan_table(root, Table(path, task, columns))


def classes(folder: ImageFolder) -> dict[str, str]:
    return {sample.path.relative_to(folder.root).as_posix(): folder.truth(sample) for sample in folder.samples}


# --- the task of the columns -------------------------------------------------------------------------------------------------------


def test_a_column_of_words_means_classification(tmp_path: Path) -> None:
    found = read(images(tmp_path / "images"), "file,label\n0.png, cat \n1.png,dog\n2.png,cat\n3.png,dog\n")
    assert found.task == "classification" and found.labels == ("cat", "dog") and found.counts() == {"cat": 2, "dog": 2}
    assert [sample.label for sample in found.samples] == [0, 1, 0, 1] and not any(sample.targets for sample in found.samples)


def test_table_and_class_folders_give_the_same_fingerprint(tmp_path: Path) -> None:
    from edgetl.data.folder import scan

    folders = scan(images(tmp_path / "folders", "cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png"))
    images(tmp_path / "images")
    table = read(tmp_path / "images", "file,label\n0.png,cat\n1.png,cat\n2.png,dog\n3.png,dog\n")
    assert table.fingerprint() == folders.fingerprint()


@pytest.mark.parametrize("values", ["0121", "1221", "0330"])
def test_the_error_for_one_column_of_whole_numbers_lists_the_tasks(tmp_path: Path, values: str) -> None:
    table = "file,label\n" + "".join(f"{index}.png,{value}\n" for index, value in enumerate(values))
    remedy = r"column 'label' has \d different numbers.*--task: classification .*ordinal .*regression .*multi-label"
    with pytest.raises(ConfigError, match=remedy):
        read(images(tmp_path / "images"), table)


def test_classification_of_whole_numbers_orders_classes_by_value(tmp_path: Path) -> None:
    table = "file,label\n" + "".join(f"{index}.png,{(10, 2, 2.0, 10)[index]}\n" for index in range(4))
    found = read(images(tmp_path / "images"), table, "classification")
    assert found.labels == ("2", "10") and [sample.label for sample in found.samples] == [1, 0, 0, 1]


def test_one_column_of_zeros_and_ones_is_one_label_and_reported(tmp_path: Path) -> None:
    found = read(images(tmp_path / "images"), "file,rust\n0.png,0\n1.png,1\n2.png,1\n3.png,0\n")
    assert found.task == "multi-label" and any("--task classification for two classes" in note.text for note in found.notes)


def test_columns_with_one_1_in_each_row_are_classes_and_reported(tmp_path: Path) -> None:
    rows = "file,melanoma,nevus\n0.png,1.0,0.0\n1.png,0,1\n2.png,1,0\n3.png,0,1\n"
    found = read(images(tmp_path / "images"), rows)
    assert found.task == "classification" and found.labels == ("melanoma", "nevus")
    assert [sample.label for sample in found.samples] == [0, 1, 0, 1]
    assert any("exactly one 1" in note.text and "--task multi-label" in note.text for note in found.notes)
    assert read(tmp_path / "images", rows, "multi-label").task == "multi-label"
    assert read(tmp_path / "images", rows.replace("0,1\n2", "1,1\n2")).task == "multi-label"


@pytest.mark.parametrize(
    ("rows", "task", "kind", "message"),
    [
        (CATS.replace("label", "label,width").replace(",cat", ",cat,3").replace(",dog", ",dog,4"), None, ConfigError, "--columns label"),
        ("file,a,b\n0.png,1,1\n1.png,0,1\n", "classification", ConfigError, r"2 columns may be the class \(a, b\).*--columns NAME"),
        ("file,mm\n0.png,1\n1.png,2\n2.png,x\n", None, DataError, r"line 4: 'x' in the column 'mm' is not a number, but most others are"),
        ("file,label\n0.png,\n1.png,\n", None, DataError, r"no row has a label in 'label'. Fill in the labels, or choose other columns"),
        (CATS.replace("cat\n3", '"a\nb"\n3'), None, DataError, r"line 5: 'a\\nb' in the column 'label' has a line break"),
        (CATS.replace("cat\n3", "cat|dog\n3"), None, DataError, r"'cat\|dog' lists several classes.*--task multi-label"),
        (CATS.replace("cat\n3", "bird\n3"), None, DataError, r"too few readable images of bird \(1\), cat \(1\)"),
        (CATS.replace("dog", "cat"), None, DataError, r"one class \(cat\)"),
        (CATS, "multi-label", DataError, r"'cat' in the column 'label' is not a number.*--task classification"),
    ],
)
def test_errors_for_ambiguous_columns_show_the_remedy(
    tmp_path: Path, rows: str, task: Task | None, kind: type[EdgetlError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        read(images(tmp_path / "images", *(f"{index}.png" for index in range(5))), rows, task)


@pytest.mark.parametrize(
    ("rows", "task", "labels"),
    [
        (CATS + "4.png,\n5.png, \n", None, ("cat", "dog")),
        ("file,mm\n0.png,1\n1.png,2\n4.png,\n2.png,3\n3.png,4\n5.png,\n", "regression", ("mm",)),
        ("file,a,b\n0.png,1,1\n1.png,0,1\n2.png,0,0\n3.png,1,0\n4.png,,\n5.png,,\n", None, ("a", "b")),
        ("file,a,b\n0.png,1,0\n1.png,0,1\n2.png,0,1\n3.png,1,0\n4.png,,\n5.png,,\n", "classification", ("a", "b")),
    ],
)
def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path, rows: str, task: Task | None, labels: tuple[str, ...]) -> None:
    root = images(tmp_path / "images", *(f"{index}.png" for index in range(6)))
    found = read(root, rows, task)
    assert found.labels == labels and [sample.path.name for sample in found.samples] == ["0.png", "1.png", "2.png", "3.png"]
    (note,) = [note for note in found.notes if not note.used]
    assert note.describe() == "2 rows of the table left out: no label: 4.png, 5.png. Fill in their labels to use them."


def test_rows_without_a_label_need_no_file(tmp_path: Path) -> None:
    found = read(images(tmp_path / "images"), CATS + "gone.png,\n")
    assert len(found.samples) == 4 and [note.reason for note in found.notes] == ["no-label"]


def test_an_empty_cell_beside_labels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: '' in the column 'b' is not a number"):
        read(images(tmp_path / "images"), "file,a,b\n0.png,1,\n1.png,0,1\n2.png,1,1\n3.png,0,0\n")


def test_an_evaluation_does_not_take_predictions_for_labels(tmp_path: Path) -> None:
    """A table of captured images has the predictions as suggestions. They fit the classes of the model, as the labels do."""
    table = tmp_path / "captured.csv"
    table.write_text("file,label,predicted\n0.png,cat,dog\n1.png,,dog\n2.png,dog,dog\n")
    with pytest.raises(ConfigError, match="2 of the columns label, predicted hold only class names of the model"):
        scan_table(images(tmp_path / "images"), Table(table, "classification", classes=("cat", "dog")), known=True)


def test_classes_that_differ_in_case_only_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = images(tmp_path / "images", *(f"{index}.png" for index in range(6)))
    assert read(root, CATS + "4.png,Cat\n5.png,Cat\n").labels == ("Cat", "cat", "dog")
    assert "'Cat', 'cat' differ only in case or spaces" in caplog.text


# --- form of the file ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_and_encodings_are_detected(tmp_path: Path, encoding: str, separator: str) -> None:
    root = images(tmp_path / "images", "käfer.png", "b.png", "c.png", "d.png")
    rows = [("file", "label"), ("käfer.png", "Käfer"), ("b.png", "Käfer"), ("c.png", "x"), ("d.png", "x")]
    found = read(root, "\r\n".join(separator.join(row) for row in rows).encode(encoding))
    assert classes(found) == {"käfer.png": "Käfer", "b.png": "Käfer", "c.png": "x", "d.png": "x"}
    assert any("Windows-1252" in note.text for note in found.notes) == (encoding == "cp1252")


def test_the_sep_line_of_excel_defines_the_separator_and_line_numbers_count_it(tmp_path: Path) -> None:
    root = images(tmp_path / "images")
    assert read(root, "sep=;\r\n" + CATS.replace(",", ";")).labels == ("cat", "dog")
    with pytest.raises(DataError, match=r"line 6: there is no file 'gone.png'"):
        read(root, "sep=;\n" + CATS.replace(",", ";").replace("3.png", "gone.png"))


def test_decimal_commas_are_numbers_with_another_separator(tmp_path: Path) -> None:
    root = images(tmp_path / "images")
    found = read(root, "file;mm\n0.png;1,5\n1.png;2,25\n2.png;-3\n3.png;0\n", "regression")
    assert [sample.targets for sample in found.samples] == [(1.5,), (2.25,), (-3.0,), (0.0,)]
    with pytest.raises(DataError, match="decimal commas and decimal points"):
        read(root, "file;mm\n0.png;1,5\n1.png;2.25\n2.png;-3\n3.png;0\n", "regression")
    with pytest.raises(DataError, match="'1,5' in the column 'mm' is not a number"):
        read(root, 'file,mm\n0.png,"1,5"\n1.png,2\n', "regression")


def test_separators_and_line_ends_in_quotes_are_part_of_the_cell(tmp_path: Path) -> None:
    root = images(tmp_path / "images")
    found = read(root, 'file,label,note\n0.png,"a, b","x\ny"\n1.png,c;d,\n2.png,"a, b",\n3.png,c;d,\n', columns=("label",))
    assert found.labels == ("a, b", "c;d") and any("columns note are not used" in note.text for note in found.notes)


@pytest.mark.parametrize("data", [b"PK\x03\x04rest", b"file,label\n0.png,\0\n", b"\xff\xfe\x00", b"file,label\n\x81.png,x\n"])
def test_the_error_for_spreadsheets_and_binary_files_shows_the_remedy(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="CSV UTF-8"):
        read(images(tmp_path / "images"), data)


def test_a_pipe_is_an_error(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="not a regular file"):
        scan_table(images(tmp_path / "images"), Table(tmp_path / "pipe.csv"))


# --- file names --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["filename", "File Name", "image", "image_id", "Path", "id"])
def test_common_names_of_the_file_column_are_accepted(tmp_path: Path, column: str) -> None:
    assert len(read(images(tmp_path / "images"), CATS.replace("file", column)).samples) == 4


def test_the_index_column_of_pandas_is_ignored(tmp_path: Path) -> None:
    rows = ",file,label\n" + "".join(f"{index},{index}.png,{'ab'[index % 2]}\n" for index in range(4))
    assert read(images(tmp_path / "images"), rows).labels == ("a", "b")


def test_file_names_match_despite_unicode_form_case_suffix_and_backslashes(tmp_path: Path) -> None:
    on_disk = unicodedata.normalize("NFD", "büchse.png")
    root = images(tmp_path / "images", on_disk, "IMG_1.PNG", "ISIC_7.png", "deep/er/3.png")
    table = f"file,label\n{unicodedata.normalize('NFC', 'büchse.png')},a\nimg_1.png,a\nISIC_7,b\ndeep\\er\\3.png,b\n"
    found = read(root, table)
    assert classes(found) == {on_disk: "a", "IMG_1.PNG": "a", "ISIC_7.png": "b", "deep/er/3.png": "b"}
    assert all(
        any(f"1 names differ from the file names in {difference}" in note.text for note in found.notes)
        for difference in ("Unicode form", "upper and lower case", "suffix")
    )


def test_absolute_paths_of_another_machine_match_by_their_last_folders(tmp_path: Path) -> None:
    root = images(tmp_path / "images", "a/0.png", "a/1.png", "b/0.png", "b/1.png")
    lines = [f"C:\\data\\set\\{folder}\\{index}.png,{folder}" for folder in "ab" for index in range(2)]
    found = read(root, "file,label\n" + "\n".join(lines))
    assert classes(found) == {"a/0.png": "a", "a/1.png": "a", "b/0.png": "b", "b/1.png": "b"}
    assert any("leading folders 'C:/data/set'" in note.text for note in found.notes)
    own = [f"{root}/{folder}/{index}.png,{folder}" for folder in "ab" for index in range(2)]
    assert len(read(root, "file,label\n" + "\n".join(own)).samples) == 4


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (("x.png", "x.jpg"), "x", r"line 2: 'x' matches 2 files: x.jpg and x.png. Write the path"),
        (("p/x.png", "q/x.png"), "x.png", r"line 2: 'x.png' matches 2 files: p/x.png and q/x.png"),
        (("X.png", "x.PNG"), "x.png", r"line 2: 'x.png' matches 2 files"),
        (("x.png",), "x.jpg", r"line 2: there is no file 'x.jpg' below .* Did you mean x.png\?"),
        (("y.png",), "", r"line 2: there is no file ''"),
        (("y.png",), "..", r"line 2: there is no file '..'"),
        (("y.png",), "x" * 5000, r"line 2: there is no file 'xxx"),
    ],
)
def test_names_that_match_several_files_or_none_are_an_error(tmp_path: Path, files: tuple[str, ...], name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(images(tmp_path / "images", *files), f"file,label\n{name},a\n")


def test_different_leading_folders_are_an_error(tmp_path: Path) -> None:
    rows = "file,label\n/one/0.png,a\n/two/1.png,b\n"
    with pytest.raises(DataError, match=r"line 3: '/one/0.png' and '/two/1.png' are in different folders"):
        read(images(tmp_path / "images"), rows)


# --- splits and groups of a table --------------------------------------------------------------------------------------------------


def test_a_split_column_takes_precedence_over_folders_and_is_reported(tmp_path: Path) -> None:
    root = images(tmp_path / "images", *(f"{part}/{index}.png" for part in ("train", "test") for index in range(4)))
    words = {"train": ["Training", "validation", "train", "dev"], "test": ["test", "TEST", "train", "train"]}
    rows = [f"{part}/{index}.png,{'ab'[index % 2]},{words[part][index]}" for part in words for index in range(4)]
    found = read(root, "file,label,split\n" + "\n".join(rows))
    splits = split(found)
    assert [len(splits.part(part)) for part in ("train", "val", "test")] == [4, 2, 2]
    assert found.labels == ("a", "b") and any("4 images are in the folder of another split" in note.text for note in found.notes)


def test_the_error_for_an_unknown_split_shows_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: 'fold2' in the column 'split' is not a split"):
        read(images(tmp_path / "images"), "file,label,split\n0.png,a,train\n1.png,a,fold2\n2.png,b,train\n")


def test_a_column_called_group_defines_groups_and_is_not_a_label(tmp_path: Path) -> None:
    found = read(images(tmp_path / "images"), "file,label,group\n0.png,a,p1\n1.png,a,p1\n2.png,b,p2\n3.png,b,\n")
    assert found.labels == ("a", "b") and found.grouping == "column group"
    assert [sample.group for sample in found.samples] == ["p1", "p1", "p2", ""]


def test_another_column_or_a_pattern_defines_groups(tmp_path: Path) -> None:
    root = images(tmp_path / "images")
    path = tmp_path / "labels.csv"
    path.write_text("file,label,patient\n0.png,a,p1\n1.png,a,p1\n2.png,b,p2\n3.png,b,p3\n")
    by_column = scan_table(root, Table(path, group="patient"))
    assert by_column.labels == ("a", "b") and [sample.group for sample in by_column.samples] == ["p1", "p1", "p2", "p3"]
    by_pattern = scan_table(root, Table(path, columns=("label",), group=r"^([012])"))
    assert [sample.group for sample in by_pattern.samples] == ["0", "1", "2", ""] and by_pattern.grouping == "pattern ^([012])"


# --- table of a trained classifier -------------------------------------------------------------------------------------------------


def test_the_classes_of_a_trained_classifier_are_kept_in_every_form_of_table(tmp_path: Path) -> None:
    root, path = images(tmp_path / "images"), tmp_path / "labels.csv"
    for text in (
        "file,label\n0.png,dog\n1.png,cat\n",
        "file,w,cat,dog,owl\n0.png,7,0,1,0\n1.png,8,1,0,0\n",
        "file,w,y\n0.png,x,dog\n1.png,z,cat\n",
    ):
        path.write_text(text)
        found = scan_table(root, Table(path, "classification", classes=("owl", "dog", "cat")), known=True)
        assert found.labels == ("owl", "dog", "cat") and [sample.label for sample in found.samples] == [1, 2]
    path.write_text("file,label\n0.png,fox\n")
    with pytest.raises(DataError, match="classes that the model does not have: fox"):
        scan_table(root, Table(path, "classification", classes=("dog", "cat")), known=True)


def test_exclude_leaves_out_rows_and_is_reported(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for index in range(8):
        put(root / ("old" if index < 2 else "new") / f"{index}.png", index)
    put(root / "@eaDir" / "0.png", 0)
    path = tmp_path / "labels.csv"
    path.write_text("file,label\n" + "".join(f"{'old' if i < 2 else 'new'}/{i}.png,{'ab'[i % 2]}\n" for i in range(8)))
    found = scan_table(root, Table(path, selection=Selection(exclude=("old",))))
    assert len(found.samples) == 6
    assert {note.reason: note.count for note in found.notes if not note.used} == {"excluded": 2, "system": 1}
    with pytest.raises(DataError, match=r"--exclude leaves out all images of the table"):
        scan_table(root, Table(path, selection=Selection(exclude=("*.png",))))


def test_a_label_that_cannot_be_exported_is_an_error_before_images_are_decoded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the label 'a\\tb' has a tab\. Exported files cannot represent it\. Rename it"):
        read(images(tmp_path / "images"), 'file,"a\tb",c\n0.png,1,1\n1.png,0,1\n2.png,1,0\n')
