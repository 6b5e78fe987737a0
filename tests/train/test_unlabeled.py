"""Commands for unlabeled images: choice of images to label, and clusters."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.core.output_decoding import softmax
from edgetl.data.table.to_fill import table_to_fill
from edgetl.errors import ConfigError, DataError
from edgetl.train.workflows.unlabeled.clustering import divide
from edgetl.train.workflows.unlabeled.images import components
from edgetl.train.workflows.unlabeled.labeling import choose, margin
from tests.command import edgetl
from tests.data.test_data_audit import photo, save


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve different images, a copy of one, and a file that is no image."""
    root = tmp_path_factory.mktemp("unlabeled") / "photos"
    for seed in range(12):
        image = photo(seed)
        save(Image.fromarray(255 - np.asarray(image)) if seed % 2 else image, root / f"day-{seed % 3}" / f"{seed:02d}.png")
    save(photo(0), root / "copy of 00.png")
    (root / "day-0" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    return root


def read(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_label_writes_a_table_to_fill_in_and_continues_with_its_labels(photos: Path, tmp_path: Path) -> None:
    first = tmp_path / "labels.csv"
    done = edgetl("label", photos, "--count", 4, "--out", first)
    assert "4 chosen by diversity" in done.stdout and "1 of 14 images cannot be decoded" in done.stderr
    header, *rows = read(first)
    assert header == ["file", "label"] and len(rows) == 4 and {label for _, label in rows} == {""}
    first.write_text(
        "file,label\n" + "".join(f"{name},{('dark', 'light')[i % 2]}\n" for i, (name, _) in enumerate(rows[:3])) + rows[3][0] + ",\n"
    )
    report = json.loads(edgetl("label", photos, "--labels", first, "--count", 5, "--out", tmp_path / "more.csv", "--json").stdout)
    assert (report["labeled"], report["rule"], report["images"]) == (3, "uncertainty and diversity", 12)
    assert {item["suggested"] for item in report["chosen"]} <= {"dark", "light"}
    assert all(0 <= item["margin"] <= 1 for item in report["chosen"])
    table = read(tmp_path / "more.csv")[1:]
    assert table[:3] == read(first)[1:4] and [name for name, _ in table[3:]] == [item["file"] for item in report["chosen"]]
    assert not {name for name, label in table if label} & {name for name, label in table if not label}


def test_label_never_replaces_a_table(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n")
    done = edgetl("label", photos, "--out", tmp_path / "labels.csv")
    assert (
        done.returncode == ConfigError.exit_code
        and "exists already" in done.stderr
        and (tmp_path / "labels.csv").read_text() == "file,label\n"
    )


def test_label_without_unlabeled_images_is_an_error(photos: Path, tmp_path: Path) -> None:
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.png"))]
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names)))
    done = edgetl("label", photos, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "more.csv")
    assert done.returncode == DataError.exit_code and "all 12 images" in done.stderr and not (tmp_path / "more.csv").exists()


def test_cluster_writes_every_image_once_and_a_page(photos: Path, tmp_path: Path) -> None:
    done = edgetl("cluster", photos, "--clusters", 3, "--out", tmp_path / "groups.csv", "--html", tmp_path / "groups.html", "--json")
    report = json.loads(done.stdout)
    header, *rows = read(tmp_path / "groups.csv")
    assert header == ["file", "label"] and len({name for name, _ in rows}) == len(rows) == report["images"] == 12
    assert [label for _, label in rows] == [item["name"] for item in report["clusters"] for _ in item["files"]]
    page = (tmp_path / "groups.html").read_text()
    assert page.count("<section") == 3 and page.count("data:image/jpeg") == 12


def test_more_clusters_than_images_are_an_error(photos: Path, tmp_path: Path) -> None:
    done = edgetl("cluster", photos, "--out", tmp_path / "groups.csv")
    assert done.returncode == DataError.exit_code and "12 different images, fewer than --clusters 20" in done.stderr


def test_choice_by_uncertainty_takes_small_margins_from_different_places() -> None:
    random = np.random.default_rng(0)
    points = np.concatenate([place + random.normal(scale=0.01, size=(20, 2)) for place in ([0, 0], [5, 0], [0, 5])]).astype(np.float32)
    # The first two places are uncertain, the third is certain.
    scores = softmax(np.concatenate([random.normal(scale=0.1, size=(40, 2)), np.tile([40.0, 0.0], (20, 1))])).astype(np.float64)
    found = choose(points, scores, 6, seed=0)
    assert len(set(found)) == 6 and {index // 20 for index in found} == {0, 1}
    assert list(margin(scores)[found]) == sorted(margin(scores)[found])


def test_choice_by_diversity_takes_every_place_and_the_largest_first() -> None:
    random = np.random.default_rng(0)
    sizes = (30, 10, 5)
    points = np.concatenate([9 * place + random.normal(scale=0.1, size=(size, 3)) for place, size in zip(np.eye(3), sizes, strict=True)])
    places = np.repeat([0, 1, 2], sizes)
    assert places[choose(points.astype(np.float32), None, 3, seed=0)].tolist() == [0, 1, 2]
    assert sorted(choose(points[:4].astype(np.float32), None, 9, seed=0)) == [0, 1, 2, 3]


def test_separate_groups_become_clusters_and_images_beyond_the_sample_join_them(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    sizes = (40, 25, 15)
    points = np.concatenate([9 * place + random.normal(scale=0.1, size=(size, 3)) for place, size in zip(np.eye(3), sizes, strict=True)])
    expected = [set(range(40)), set(range(40, 65)), set(range(65, 80))]
    assert [set(rows) for rows in divide(points.astype(np.float32), 3, seed=0)] == expected
    monkeypatch.setattr("edgetl.train.workflows.unlabeled.clustering.MOST_FOR_WARD", 30)
    assert [set(rows) for rows in divide(points.astype(np.float32), 3, seed=0)] == expected


def test_components_do_not_depend_on_the_length_of_features() -> None:
    features = np.random.default_rng(0).normal(size=(30, 10)).astype(np.float32)
    scaled = features * np.linspace(1, 9, 30)[:, None].astype(np.float32)
    np.testing.assert_allclose(np.abs(components(features, seed=0)), np.abs(components(scaled, seed=0)), atol=1e-4)


def test_table_to_fill_keeps_labeled_rows_and_further_columns(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("label;file;group\ncat;a.jpg;1\n;b.jpg;2\n")
    assert table_to_fill(["c.jpg"], tmp_path / "labels.csv") == "label,file,group\ncat,a.jpg,1\n,c.jpg,\n"
