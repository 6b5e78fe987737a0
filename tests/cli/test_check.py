"""Command ``edgetl check``: table, JSON, page and cleaned list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetl.errors import ConfigError
from tests.command import edgetl
from tests.data.test_data_audit import photo, save


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with planted faults: a copy with another label, a broken file, an odd size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed in range(12):
        save(photo(seed), tmp_path / "photos" / ("cat" if seed < 6 else "dog") / f"{seed}.png")
    save(photo(3), tmp_path / "photos" / "dog" / "copy.jpg", quality=70)
    save(photo(30, (1200, 960)), tmp_path / "photos" / "dog" / "large.png")
    (tmp_path / "photos" / "cat" / "broken.jpg").write_bytes(b"no image")
    return tmp_path / "photos"


def test_check_reports_planted_faults_and_writes_a_page_and_a_list(folder: Path) -> None:
    page, keep = folder.parent / "check.html", folder.parent / "keep.csv"
    report = json.loads(edgetl("check", folder, "--json", "--no-features", "--html", page, "--keep", keep).stdout)
    assert [item["files"] for item in report["copies"] if item["conflict"]] == [["cat/3.png", "dog/copy.jpg"]]
    assert [item["file"] for item in report["broken"]] == ["cat/broken.jpg"]
    assert ("dog/large.png", "odd-size") in [(item["file"], item["flaw"]) for item in report["flaws"]]
    assert report["left_out"] == [{"check": "near-duplicates and label errors", "reason": "--no-features was given"}]
    html = page.read_text("utf-8")
    assert "cat = dog" in html and "cat/broken.jpg" in html and html.count("data:image/jpeg") == 4
    assert keep.read_text("utf-8").splitlines()[0] == "file,group,label" and "copy.jpg" not in keep.read_text("utf-8")
    again = edgetl("check", folder, "--no-features", "--html", page, "--keep", keep)  # own files are replaced
    assert again.returncode == 0 and "label conflicts, sets" in " ".join(again.stdout.split())


def test_dropped_kinds_need_a_cleaned_list_and_a_known_name(folder: Path) -> None:
    assert "Add --keep FILE" in " ".join(edgetl("check", folder, "--drop", "dark").stderr.split())
    refused = edgetl("check", folder, "--drop", "dark,noisy", "--keep", folder.parent / "keep.csv")
    assert refused.returncode == ConfigError.exit_code and "'noisy' is no kind of finding" in " ".join(refused.stderr.split())


def test_check_replaces_no_file_of_the_user(folder: Path) -> None:
    table = folder.parent / "labels.csv"
    table.write_text("file,label\ncat/1.png,cat\n", "utf-8")
    refused = edgetl("check", folder, "--keep", table)
    assert refused.returncode == ConfigError.exit_code
    assert "edgetl did not write it" in " ".join(refused.stderr.split()) and table.read_text("utf-8").startswith("file,label")
