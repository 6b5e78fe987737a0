"""Attributes: values of images in the columns of a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.data.folder import Sample
from edgetl.data.table.attributes import read_attributes
from edgetl.errors import ConfigError, DataError
from tests.data.conftest import fill


def _samples(root: Path) -> list[Sample]:
    return [Sample(path, 0, "") for path in sorted(root.rglob("*.png"))]


def _read(root: Path, lines: list[str], by: str) -> dict[str, tuple[str, ...]]:
    table = root.parent / "people.csv"
    table.write_text("\n".join(lines) + "\n")
    return read_attributes(table, by, root, _samples(root))


def test_columns_and_their_combinations_are_read_for_each_image(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", "cat", count=2)
    names = [sample.path.relative_to(root).as_posix() for sample in _samples(root)]
    lines = ["file,age,sex", f"{names[1]},old,f", f"pets/{names[0]},young,m", "pets/elsewhere.png,old,m"]
    assert _read(root, lines, "age, age:sex") == {"age": ("young", "old"), "age:sex": ("young, m", "old, f")}


def test_images_without_a_row_or_a_cell_have_an_empty_value(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", "cat", count=3)
    names = [sample.path.name for sample in _samples(root)]
    lines = ["file,age,sex", f"{names[0]},,m", f"{names[2]},old,f"]
    assert _read(root, lines, "age,age:sex") == {"age": ("", "", "old"), "age:sex": ("", "", "old, f")}


def test_an_image_outside_the_folder_is_ignored(tmp_path: Path) -> None:
    root, other = fill(tmp_path / "pets", "cat", count=1), fill(tmp_path / "more", "cat", count=1)
    lines = ["file,age", *(f"{sample.path},old" for folder in (root, other) for sample in _samples(folder))]
    assert _read(root, lines, "age") == {"age": ("old",)}


def test_a_column_with_a_colon_is_not_divided(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", "cat", count=1)
    assert _read(root, ["file,a:b,a,b", f"{_samples(root)[0].path.name},x,y,z"], "a:b") == {"a:b": ("x",)}


@pytest.mark.parametrize(
    ("lines", "by", "error", "message"),
    [
        (["file,age", "0.png,1"], "height", ConfigError, r"no column 'height'\. Its columns: age"),
        (["file,age", "0.png,1"], " , ", ConfigError, "names no column"),
        (["file,age", "other.png,1"], "age", DataError, r"--groups .*people.csv has none of the 120 images, such as cat/"),
        (["file,age", "IMAGE,1", "IMAGE,2"], "age", DataError, "line 3: .* two different rows"),
        (["file,age", "IMAGE,"], "age", ConfigError, "none of the 120 images has a value"),
        (["file,age", "EACH"], "age", ConfigError, r"--by age: 120 different values\. At most 100 groups"),
    ],
)
def test_an_unusable_table_is_an_error(tmp_path: Path, lines: list[str], by: str, error: type[Exception], message: str) -> None:
    root = fill(tmp_path / "pets", "cat", count=120)
    names = [sample.path.name for sample in _samples(root)]
    each = [f"{name},{index}" for index, name in enumerate(names)]
    written = [row for line in lines for row in (each if line == "EACH" else [line.replace("IMAGE", names[0])])]
    with pytest.raises(error, match=message):
        _read(root, written, by)
