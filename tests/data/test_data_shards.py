"""Shards of labeled images: names, members, scan, packing and byte ranges."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetl.core.files.byte_ranges import find_range, size_and_time
from edgetl.core.images.decode import load_image, read_image_file
from edgetl.data.folder import scan
from edgetl.data.groups import group_by_path
from edgetl.data.packing.labels import read_labels
from edgetl.data.packing.shards import pack_shards
from edgetl.data.shards import scan as shard_scan
from edgetl.data.shards.index import SplitRule
from edgetl.data.shards.members import Annotation, read_members
from edgetl.data.shards.names import find_shards, is_shards
from edgetl.data.shards.scan import scan_shards
from edgetl.errors import ConfigError, DataError, ImageError
from tests.command import edgetl
from tests.data.conftest import fill, noise_image
from tests.data.test_data_audit import photo

RULE = SplitRule(seed=0, val=0.25, test=0.25)


def _png(seed: int) -> bytes:
    data = io.BytesIO()
    noise_image(seed).save(data, "PNG")
    return data.getvalue()


def _write(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _images(count: int, *, first: int = 0, classes: tuple[str, ...] = ("cat", "dog")) -> list[tuple[str, bytes]]:
    return [
        member
        for number in range(first, first + count)
        for member in ((f"{number:04d}.png", _png(number)), (f"{number:04d}.cls", classes[number % len(classes)].encode()))
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of eight images, made by another tool: class names, no index."""
    for number in range(2):
        _write(tmp_path / f"s/{number:02d}.tar", *_images(8, first=8 * number))
    return tmp_path / "s/{00..01}.tar"


def test_a_brace_range_is_expanded_and_missing_shards_are_named(shards: Path) -> None:
    assert is_shards(shards) and [path.name for path in find_shards(shards)] == ["00.tar", "01.tar"]
    assert not is_shards(shards.parent)
    with pytest.raises(DataError, match=r"8 of 10 shards do not exist \(02.tar, 03.tar, 04.tar, …\). Copy them, or change the range"):
        find_shards(shards.parent / "{00..09}.tar")
    with pytest.raises(DataError, match="the archives are compressed"):
        find_shards(shards.parent / "a.tar.gz")


def test_numbers_without_leading_zeros_are_not_padded(tmp_path: Path) -> None:
    for number in (9, 10):
        _write(tmp_path / f"{number}.tar")
    assert [path.name for path in find_shards(tmp_path / "{9..10}.tar")] == ["9.tar", "10.tar"]


def test_a_wildcard_selects_shards_by_name(shards: Path) -> None:
    assert [path.name for path in find_shards(shards.parent / "*.tar")] == ["00.tar", "01.tar"]
    with pytest.raises(DataError, match=r"1 of 1 shards do not exist"):
        find_shards(shards.parent / "a*.tar")


def test_files_that_are_no_images_are_reported(tmp_path: Path) -> None:
    more = [("a.npy", b"x"), ("0000.more.png", b"x"), ("README", b"x"), ("__meta__/x", b"x")]
    folder, _ = scan_shards(_write(tmp_path / "a.tar", *_images(16), *more), RULE)
    note = folder.notes[0].describe()
    assert note.startswith("3 files of the shards left out: not KEY.SUFFIX of an image") and note.endswith("a.npy, 0000.more.png, README.")
    with pytest.raises(DataError, match=r"a.tar has no images. Each image is a file such as 0001.jpg.* 3 files of the shards left out"):
        scan_shards(_write(tmp_path / "a.tar", *more), RULE)
    with pytest.raises(DataError, match=r"a.tar has images of one class only \(cat\)"):
        scan_shards(_write(tmp_path / "a.tar", *_images(4, classes=("cat",))), RULE)


def test_a_folder_must_have_the_shards_of_its_index(tmp_path: Path) -> None:
    out = tmp_path / "a"
    pack_shards(scan(fill(tmp_path / "pets", "dog", "cat", count=8)), out, images_per_shard=4, inputs={})
    (out / "00001.tar").rename(tmp_path / "kept.tar")
    with pytest.raises(DataError, match=r"1 of 4 shards of shards.json do not exist \(00001.tar\). Copy them, or give a pattern"):
        find_shards(out)
    assert len(find_shards(out / "*.tar")) == 3
    (tmp_path / "kept.tar").rename(out / "00001.tar")
    _write(out / "more.tar", *_images(4))
    with pytest.raises(DataError, match=r"has 1 shards that shards.json does not list \(more.tar\). Move them"):
        find_shards(out)


def test_a_scan_counts_all_images_and_lists_them_as_paths_of_byte_ranges(shards: Path) -> None:
    folder, found = scan_shards(shards, RULE)
    assert folder.labels == ("cat", "dog") and sum(found.counts.values()) == 16 == len(folder.samples)
    assert sum(found.train_counts) == found.counts["train"] == sum(found.class_counts)
    sample = folder.samples[3]
    archive = find_range(sample.path)
    assert archive is not None and archive.archive.parent == shards.parent
    assert read_image_file(sample.path) == _png(int(sample.path.stem)) and size_and_time(sample.path)[0] == archive.size
    assert load_image(sample.path).size == (8, 8)
    assert folder.notes[0].describe().startswith(f"2 shards: {found.counts['train']} training images are streamed.")


def test_a_split_depends_on_the_key_or_the_group_and_not_on_the_shards(shards: Path, tmp_path: Path) -> None:
    one = _write(tmp_path / "one.tar", *reversed_pairs(_images(16)))
    parts = [{sample.path.name: sample.part for sample in scan_shards(path, RULE)[0].samples} for path in (shards, one)]
    assert parts[0] == parts[1] and set(parts[0].values()) == {"train", "val", "test"}
    assert RULE.part_of("a", Annotation("cat", group="g")) == RULE.part_of("b", Annotation("cat", group="g"))
    assert RULE.part_of("a", Annotation("cat", part="val")) == "val"


def reversed_pairs(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return the images in the opposite order."""
    pairs = [members[place : place + 2] for place in range(0, len(members), 2)]
    return [member for pair in reversed(pairs) for member in pair]


@given(st.integers(0, 2**31), st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=30, unique=True))
def test_each_key_has_one_split_that_only_the_seed_changes(seed: int, keys: list[str]) -> None:
    rule = SplitRule(seed=seed, val=0.5, test=0.5)
    assert {rule.part_of(key, Annotation("a")) for key in keys} <= {"val", "test"}
    assert [rule.part_of(key, Annotation("a")) for key in keys] == [rule.part_of(key, Annotation("b")) for key in keys]


def test_the_number_of_listed_images_is_limited_and_does_not_depend_on_the_order(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_scan, "MOST_LISTED", 2)
    monkeypatch.setattr(shard_scan, "LEAST_OF_CLASS", 1)
    one = _write(tmp_path / "one.tar", *reversed_pairs(_images(16)))
    listed = [{sample.path.name for sample in scan_shards(path, RULE)[0].samples} for path in (shards, one)]
    assert listed[0] == listed[1]
    counts = Counter(sample.part for sample in scan_shards(shards, RULE)[0].samples)
    assert counts["val"] == 2 and counts["train"] <= 4


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0001.png", b"x"), ("0002.png", b"x"), ("0002.cls", b"0")], "0001 has no label. Add 0001.cls after its image"),
        ([("0001.png", b"x"), ("0001.cls", b"")], "the label of 0001 is empty"),
        ([("0001.png", b"x"), ("0001.cls", b"\xff")], "the label or the JSON of 0001 cannot be read"),
        ([("0001.png", b"x"), ("0001.jpg", b"x"), ("0001.cls", b"0")], "0001 has two images"),
        ([("0001.png", b"x"), ("0001.cls", b"0"), ("0001.cls", b"1")], "0001 has two files .cls"),
        ([("../0001.png", b"x"), ("../0001.cls", b"0")], "has an unsafe name"),
        ([("00\n01.png", b"x"), ("00\n01.cls", b"0")], "has an unsafe name"),
        ([("0001.png", b"x"), ("0001.cls", b"0" * 2000)], "0001.cls has 2000 bytes. The limit is 1000"),
    ],
)
def test_members_that_are_not_valid_are_errors_with_the_key(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    shard = _write(tmp_path / "a.tar", *members)
    with pytest.raises(DataError, match=message):
        list(read_members(shard))


def test_a_label_table_replaces_the_labels_of_the_shards(shards: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    lines = ["file,label", *(f"{number:04d}{'.png' if number % 2 else ''},{'old' if number < 8 else 'new'}" for number in range(16))]
    table.write_text("\n".join(lines))
    folder, found = scan_shards(shards, RULE, labels=read_labels(table))
    assert folder.labels == ("new", "old") and found.table is not None
    assert all(folder.truth(sample) == ("old" if int(sample.path.stem) < 8 else "new") for sample in folder.samples)
    table.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"01.tar: 0015 is not in the table of --labels. Add a line with its class"):
        scan_shards(shards, RULE, labels=read_labels(table))
    table.write_text("\n".join([*lines, "0003,old"]))
    with pytest.raises(DataError, match=r"line 18: 0003 is named twice"):
        scan_shards(shards, RULE, labels=read_labels(table))
    table.write_text("file,label,mm\n0001,a,1\n")
    with pytest.raises(DataError, match=r"has the columns file, label, mm. For shards, give a table"):
        scan_shards(shards, RULE, labels=read_labels(table))


def test_links_in_a_shard_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("0001.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"the member 0001.png is a link or a special file"):
        list(read_members(tmp_path / "a.tar"))


@pytest.mark.parametrize("bytes_left", [700, 1500, 2048, 3000])
def test_a_truncated_shard_is_an_error(tmp_path: Path, bytes_left: int) -> None:
    shard = _write(tmp_path / "a.tar", *_images(2))
    shard.write_bytes(shard.read_bytes()[:bytes_left])
    with pytest.raises(DataError, match=r"a.tar is truncated or damaged.*Copy this shard again"):
        list(read_members(shard))


def test_unreadable_images_are_left_out_up_to_the_limit(tmp_path: Path) -> None:
    broken = ("9999.png", b"no image"), ("9999.cls", b"cat")
    shard = _write(tmp_path / "a.tar", *_images(24), *broken)
    folder, found = scan_shards(shard, RULE)
    assert [item.path.name for item in folder.broken] == ["9999.png"] and sum(found.counts.values()) == 25
    shard = _write(tmp_path / "b.tar", *_images(4), *broken)
    with pytest.raises(DataError, match=r"1 of 5 images cannot be decoded"):
        scan_shards(shard, SplitRule(seed=1, val=0.5, test=0.0))


def test_packed_shards_have_the_bytes_of_the_files_and_always_the_same_order(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", "dog", "cat", count=8)
    copy = root / "cat" / "copy.png"
    copy.write_bytes(min((root / "cat").iterdir()).read_bytes())
    index = pack_shards(scan(root), tmp_path / "a", images_per_shard=5, inputs={})
    again = pack_shards(scan(root), tmp_path / "b", images_per_shard=5, inputs={})
    assert index == again and [shard.images for shard in index.shards] == [5, 5, 5, 2] and index.counts == {"cat": 9, "dog": 8}
    assert is_shards(tmp_path / "a") and index.labels == ("cat", "dog")
    folder, found = scan_shards(tmp_path / "a", RULE)
    assert len(folder.samples) == 17 and len(set(found.train_counts)) > 0
    assert sorted(read_image_file(sample.path) for sample in folder.samples) == sorted(path.read_bytes() for path in root.rglob("*.png"))
    copies = [sample for sample in folder.samples if sample.group]
    assert len(copies) == 2 and len({sample.part for sample in copies}) == 1 and folder.grouping.startswith("field group of the shards")
    with tarfile.open(tmp_path / "a/00000.tar") as archive:
        facts = archive.extractfile(archive.getnames()[2])
        assert facts is not None and json.loads(facts.read())["file"].startswith(("cat/", "dog/"))
    with pytest.raises(ConfigError, match="exists"):
        pack_shards(scan(root), tmp_path / "a", inputs={})
    pack_shards(scan(root), tmp_path / "a", inputs={}, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["00000.tar", "shards.json"]


def test_images_that_belong_together_have_one_group_and_one_split(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", "dog", "cat", count=2)
    for number, name in enumerate(("a-1", "a-2", "b-1", "c-1", "c-2", "d-1")):
        photo(number).save(root / "cat" / f"{name}.png")
    photo(0).transpose(Image.Transpose.ROTATE_180).save(root / "cat" / "b-2.png")  # a copy joins the groups a and b
    (root / "dog" / "c-3.png").write_bytes((root / "cat" / "c-1.png").read_bytes())  # an image with two labels
    pack_shards(group_by_path(scan(root), "/([a-d])-"), tmp_path / "shards", images_per_shard=3, inputs={})
    members = [member for shard in find_shards(tmp_path / "shards") for member in read_members(shard)]
    groups = Counter(member.annotation.group for member in members)
    assert groups == {"": 4, "a": 4, "c": 3, "d": 1}
    for seed in range(30):
        rule = SplitRule(seed=seed, val=0.25, test=0.25)
        parts = {(member.annotation.group, rule.part_of(member.key, member.annotation)) for member in members if member.annotation.group}
        assert len(parts) == 3 and ("c", "train") in parts


def test_copies_that_cross_ready_made_splits_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, part in enumerate(("train", "val", "test")):
        fill(tmp_path / "pets" / part, "dog", "cat", count=2, seed=10 * number)
    photo(0).save(tmp_path / "pets/train/cat/a.png")
    photo(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "pets/test/cat/copy.png")
    with caplog.at_level(logging.WARNING, "edgetl"):
        pack_shards(scan(tmp_path / "pets"), tmp_path / "a", inputs={})
    assert "1 of 5 test images are copies of training images, such as test/cat/copy.png" in caplog.text


def test_class_names_that_are_numbers_are_not_taken_for_indices(tmp_path: Path) -> None:
    root = fill(tmp_path / "digits", "1", "10", "2", count=4)
    pack_shards(scan(root), tmp_path / "a", inputs={})
    folder, _ = scan_shards(tmp_path / "a", RULE)
    known = {sample.content: scan(root).truth(sample) for sample in scan(root).samples}
    assert {sample.content: folder.truth(sample) for sample in folder.samples} == known


def test_ready_made_splits_are_kept(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "val", "test")):
        fill(tmp_path / "pets" / part, "dog", "cat", count=3, seed=10 * number)
    pack_shards(scan(tmp_path / "pets"), tmp_path / "a", inputs={})
    found = scan_shards(tmp_path / "a", RULE)[1]
    assert found.counts == {"train": 6, "val": 6, "test": 6}


def test_shards_that_do_not_fit_their_index_are_errors(tmp_path: Path) -> None:
    pack_shards(scan(fill(tmp_path / "pets", "dog", "cat", count=8)), tmp_path / "a", inputs={})
    _write(tmp_path / "a/00000.tar", *_images(15))
    with pytest.raises(DataError, match=r"00000.tar has 15 images, but shards.json lists 16"):
        scan_shards(tmp_path / "a", RULE)
    _write(tmp_path / "a/00000.tar", *_images(16, classes=("cat", "bird")))
    with pytest.raises(DataError, match=r"has labels that shards.json does not have: bird. It has 2 classes: cat, dog"):
        scan_shards(tmp_path / "a", RULE)


def test_a_range_of_a_missing_archive_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.png"):
        read_image_file(tmp_path / "a.tar" / "512+20" / "a.png")


def test_options_of_shards_are_refused_for_a_transport_file(tmp_path: Path) -> None:
    done = edgetl("pack", fill(tmp_path / "pets", "dog", "cat"), "--out", tmp_path / "a.edgetl", "--images-per-shard", 5)
    assert done.returncode == ConfigError.exit_code and "--images-per-shard: only for a folder of images" in " ".join(done.stderr.split())
