"""Inputs with many images: lists of files, brace patterns, tar shards, Parquet files, and their division into blocks."""

from __future__ import annotations

import io
import tarfile
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.data.inputs import tar_shards
from edgetl.data.inputs.blocks import BLOCK, Place, Shard, ShardInput, parse_shard, units
from edgetl.data.inputs.item import Item
from edgetl.data.inputs.parquet_files import read_parquet
from edgetl.data.inputs.sources import Source, expand_braces, expand_wildcards, find_sources, input_digest
from edgetl.data.inputs.tar_shards import read_tar
from edgetl.errors import ConfigError, DataError, StorageError
from tests.data.shards import add_file, colored, write_shard, write_shards


def every(_: int) -> bool:
    return True


def shown(items: list[Item]) -> list[tuple[int, str | None, str]]:
    return [(item.number, item.key, item.error) for item in items if not item.left_out]


@pytest.mark.parametrize(
    ("pattern", "values"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{3..3}", ["3"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{name}.jpg", ["{name}.jpg"]),
        ("{x}-{0..1}", ["{x}-0", "{x}-1"]),
    ],
)
def test_brace_patterns_are_expanded_as_in_a_shell(pattern: str, values: list[str]) -> None:
    assert expand_braces(pattern) == values


def test_a_file_with_braces_in_its_name_is_not_expanded(tmp_path: Path) -> None:
    (tmp_path / "{1,2}.png").write_bytes(colored(1))
    assert [source.path.name for source in find_sources([str(tmp_path / "{1,2}.png")])] == ["{1,2}.png"]


def test_wildcards_stand_for_the_files_that_match(tmp_path: Path) -> None:
    for name in ("b[1].tar", "b[2].tar", "c.tar"):
        (tmp_path / name).touch()
    assert expand_wildcards(f"{tmp_path}/b[?].tar") == [f"{tmp_path}/b[1].tar", f"{tmp_path}/b[2].tar"]
    assert expand_wildcards(f"{tmp_path}/*.tar")[-1] == f"{tmp_path}/c.tar"
    assert expand_wildcards(f"{tmp_path}/*.parquet") == [f"{tmp_path}/*.parquet"]
    (tmp_path / "odd*name.tar").touch()
    assert expand_wildcards(f"{tmp_path}/odd*name.tar") == [f"{tmp_path}/odd*name.tar"]


def test_a_pattern_with_too_many_files_is_an_error() -> None:
    with pytest.raises(DataError, match="more than 1,000,000 files"):
        expand_braces("{0..1000000}.tar")
    with pytest.raises(DataError, match="more than 1,000,000 files"):
        expand_braces("{0..9999}/{0..999}.tar")


def test_sources_are_sorted_and_listed_once(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path, shards=2, images=1)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/b.png").write_bytes(colored(1))
    listing = tmp_path / "list.txt"
    listing.write_text(f"{second}\n\n{tmp_path}/gone.jpg\n")
    names = [str(tmp_path / "images"), str(listing), str(second), str(first)]
    found = find_sources(names)
    assert [source.path.name for source in found] == ["00.tar", "01.tar", "gone.jpg", "b.png"]
    assert [source.kind for source in found] == ["tar", "tar", "image", "image"]
    assert found == find_sources(names[::-1]) and input_digest(found) != input_digest(found[1:])


def test_missing_shards_and_folders_without_images_are_errors(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=2, images=1)
    with pytest.raises(DataError, match=r"02\.tar: No such file or directory. Check the path, or the range of the pattern"):
        find_sources([str(tmp_path / "{00..02}.tar")])
    with pytest.raises(DataError, match=r"Its shards are not read: give them as '.*/\*\.tar'"):
        find_sources([str(tmp_path)])
    (tmp_path / "list.txt").write_text("other.txt\n")
    with pytest.raises(DataError, match="which is a list, too"):
        find_sources([str(tmp_path / "list.txt")])
    with pytest.raises(DataError, match=r"gone\.txt: No such file"):
        find_sources([str(tmp_path / "gone.txt")])
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(DataError, match="there are no images"):
        find_sources([str(tmp_path / "list.txt")])


def test_a_list_of_windows_is_read_and_one_in_utf_16_is_refused(tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbfa.png\r\n\r\n b\x0bc.png \r\n")
    assert [str(source.path) for source in find_sources([str(listing)])] == ["a.png", "b\x0bc.png"]
    listing.write_bytes("a.png\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"has null bytes, as in UTF-16\. Save the list as UTF-8"):
        find_sources([str(listing)])


def test_names_and_patterns_may_be_longer_than_a_path(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=2, images=1)
    pattern = f"{tmp_path}/{{{','.join(['00.tar', '01.tar'] * 1000)}}}"
    assert len(find_sources([pattern, "x" * 5000 + ".png"])) == 3


def test_two_names_that_are_equal_without_control_characters_are_refused(tmp_path: Path) -> None:
    for name in ("a\n.png", "a\\n.png"):
        (tmp_path / name).write_bytes(colored(1))
    with pytest.raises(DataError, match=r"two inputs have the name .*\. Rename one of them"):
        find_sources([str(tmp_path)])


def test_a_tar_shard_yields_its_images_and_counts_the_other_files(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, shards=1, images=3)
    found = list(read_tar(path, lambda number: number != 1))
    assert shown(found) == [(0, "00/0000", ""), (1, "00/0001", ""), (2, "00/0002", "")]
    assert [item.content for item in found if not item.left_out] == [colored(0), None, colored(2)]
    assert [item.left_out for item in found if item.left_out] == [".cls"] * 3
    assert found[-1].read == pytest.approx(6 * 1024 / path.stat().st_size)


def test_links_absolute_names_and_empty_or_huge_files_of_a_shard_are_errors_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_shards, "MAX_FILE_BYTES", 1000)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in {"/abs.png": b"x", "../up.png": b"x", "empty.png": b"", "huge.png": bytes(1001), "ok.PNG": colored(0)}.items():
            add_file(archive, name, data)
    found = list(read_tar(path, every))
    errors = [item.error for item in found]
    assert all("link or a special file" in text for text in errors[:4])
    assert "absolute" in errors[4] and "absolute" in errors[5] and "is empty" in errors[6] and "1001 bytes" in errors[7]
    assert found[8].key == "ok" and found[8].content == colored(0) and len(found) == 9


@pytest.mark.parametrize("cut", [100, 512, 520, 1024, 1500, 2048, 2600])
def test_a_truncated_shard_yields_the_images_before_the_damage_and_an_error(tmp_path: Path, cut: int) -> None:
    path = write_shard(tmp_path / "a.tar", {f"{index}.png": colored(index) for index in range(3)})
    path.write_bytes(path.read_bytes()[:cut])
    *before, last = list(read_tar(path, every))
    assert [item.key for item in before] == ["0", "1", "2"][: cut // 1024]
    assert last.number == len(before) and last.error.startswith("the shard is damaged or truncated: ")


@pytest.mark.parametrize("offset", [0, 1024, 2048])
def test_a_damaged_header_ends_a_shard_with_an_error(tmp_path: Path, offset: int) -> None:
    path = write_shard(tmp_path / "a.tar", {f"{index}.png": colored(index) for index in range(3)})
    data = bytearray(path.read_bytes())
    data[offset + 20] ^= 1
    path.write_bytes(data)
    *before, last = list(read_tar(path, every))
    assert len(before) == offset // 1024 and "damaged or truncated" in last.error


def test_a_second_archive_behind_the_first_is_reported(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", {"0.png": colored(0)})
    path.write_bytes(path.read_bytes() * 2)
    first, last = read_tar(path, every)
    assert first.key == "0" and "there is no valid header at byte 1024" in last.error


def test_empty_files_and_other_files_are_no_shards(tmp_path: Path) -> None:
    for data in (b"", b"text", bytes(range(256)) * 8):
        (tmp_path / "a.tar").write_bytes(data)
        (only,) = read_tar(tmp_path / "a.tar", every)
        assert "damaged or truncated" in only.error
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    assert list(read_tar(tmp_path / "a.tar", every)) == []


def test_huge_headers_chains_of_headers_and_sparse_files_are_not_read_into_memory(tmp_path: Path) -> None:
    path, pax = tmp_path / "a.tar", tarfile.TarInfo("x")
    pax.type, pax.size = tarfile.XHDTYPE, 2_000_000
    path.write_bytes(pax.tobuf(tarfile.USTAR_FORMAT) + bytes(4096))
    assert "has 2000000 bytes" in next(read_tar(path, every)).error
    pax.size = 0
    path.write_bytes(pax.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(1024))
    assert "more than 16 headers" in next(read_tar(path, every)).error
    sparse = tarfile.TarInfo("s.png")
    sparse.type = tarfile.GNUTYPE_SPARSE
    path.write_bytes(sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "sparse" in next(read_tar(path, every)).error


def test_a_sparse_file_with_pax_headers_is_an_error_of_the_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("sparse.png")
        member.pax_headers = {"GNU.sparse.size": "4000", "GNU.sparse.map": "0,10"}
        member.size = 10
        archive.addfile(member, io.BytesIO(bytes(10)))
        add_file(archive, "ok.png", colored(0))
    sparse, ok = read_tar(tmp_path / "sparse.tar", every)
    assert "stored as sparse" in sparse.error and ok.content == colored(0)


def _header(**changes: object) -> bytes:
    member = tarfile.TarInfo("0.png")
    for name, value in changes.items():
        setattr(member, name, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def _with_record(size: int) -> bytes:
    """Return an extended header with the record ``size``, and the header of a file."""
    record = f"{len(str(size)) + 9} size={size}\n".encode()
    return _header(type=tarfile.XHDTYPE, size=len(record)) + record.ljust(512, b"\0") + _header()


@pytest.mark.parametrize("first", [_header(size=-1536), _header(size=2**62), _header(size=2**80), _with_record(-2560)])
@pytest.mark.parametrize("content", [True, False])
def test_an_impossible_size_ends_a_shard_with_an_error(tmp_path: Path, first: bytes, content: bool) -> None:
    before = 2 * (_header(size=512) + colored(0).ljust(512, b"\0"))
    (tmp_path / "a.tar").write_bytes(before + first + bytes(2048))
    *_, last = found = list(islice(read_tar(tmp_path / "a.tar", lambda _: content), 10))
    assert len(found) <= 4 and "damaged or truncated" in last.error


def test_a_file_that_the_storage_does_not_deliver_is_an_error_and_no_damage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*a\.tar: No such file or directory\. Repeat the command"):
        next(read_tar(tmp_path / "a.tar", every))
    pytest.importorskip("pyarrow")
    with pytest.raises(StorageError, match=r"cannot read .*a\.parquet: .*No such file or directory.*\. Repeat the command"):
        next(read_parquet(tmp_path / "a.parquet", every))


def test_long_and_undecodable_names_are_keys(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", {"d" * 150 + "/" + "n" * 150 + ".png": colored(0), "caf\udce9.png": colored(1)})
    assert [item.key for item in read_tar(path, every)] == ["d" * 150 + "/" + "n" * 150, "caf\\xe9"]
    (long,) = read_tar(write_shard(path, {"n" * 5000 + ".png": colored(0)}), every)
    assert long.error == "its name has 5004 characters. The limit is 4096."


def _sources(kinds: list[str]) -> tuple[Source, ...]:
    return tuple(Source(f"{index:04d}", Path(f"{index}"), "image" if kind == "image" else "tar", 1) for index, kind in enumerate(kinds))


@given(st.lists(st.sampled_from(["image", "tar"]), max_size=80), st.integers(1, 9), st.integers(0, 50))
def test_every_block_belongs_to_exactly_one_shard(kinds: list[str], count: int, images: int) -> None:
    found = list(units(_sources(kinds)))
    assert [source for unit in found for source in unit] == list(_sources(kinds))
    assert all(len(unit) <= BLOCK and len({source.kind for source in unit}) == 1 for unit in found)
    owners: dict[Place, int] = {}
    blocks = [
        Place(number, block) for number, unit in enumerate(found) for block in range(1 if unit[0].kind == "image" else -(-images // BLOCK))
    ]
    for index in range(count):
        source = ShardInput(_sources(kinds), Shard(index, count))
        for place in blocks:
            if source._owns(place):
                assert place not in owners and source._reads(place.unit)
                owners[place] = index
    assert owners.keys() == set(blocks)


@pytest.mark.parametrize("shards", [2, 3, 4, 7])
def test_the_blocks_of_all_shards_are_the_blocks_of_one(tmp_path: Path, shards: int) -> None:
    write_shards(tmp_path, shards=3, images=35)
    sources = find_sources([str(tmp_path / "{00..02}.tar")])
    whole = list(ShardInput(sources, Shard(0, 1)).blocks())
    parts = [list(ShardInput(sources, Shard(index, shards)).blocks()) for index in range(shards)]
    for part in parts:
        assert [block.place for block in part] == sorted(block.place for block in part)
    joined = sorted((block for part in parts for block in part), key=lambda block: block.place)
    assert [(block.place, block.left_out) for block in joined] == [(block.place, block.left_out) for block in whole]
    images = [[(source.name, item.number, item.content) for source, item in block.images] for block in joined]
    assert images == [[(source.name, item.number, item.content) for source, item in block.images] for block in whole]
    assert sum(map(len, images)) == 3 * 35


def test_reading_starts_at_a_place(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=2, images=40)
    source = ShardInput(find_sources([str(tmp_path / "{00..01}.tar")]), Shard(0, 1))
    whole = list(source.blocks())
    assert [block.place for block in whole] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert whole[-1].read_bytes < source.total_bytes and source.total_images is None
    for number, block in enumerate(whole):
        rest = list(source.blocks(block.place))
        assert [(item.place, item.images, item.read_bytes) for item in rest] == [
            (item.place, item.images, item.read_bytes) for item in whole[number:]
        ]


@pytest.mark.parametrize("text", ["", "1", "1/1", "-1/2", "0/0", "a/b", "2/1"])
def test_a_shard_is_a_number_below_the_count(text: str) -> None:
    assert parse_shard("3/64") == Shard(3, 64)
    with pytest.raises(ConfigError, match="is not I/N"):
        parse_shard(text)


def _table(path: Path, **columns: object) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def test_parquet_files_of_hugging_face_and_binary_columns_are_read(tmp_path: Path) -> None:
    images = [{"bytes": colored(index), "path": f"dir/{index}.png"} for index in range(20)]
    path = _table(tmp_path / "a.parquet", image=[*images, {"bytes": None, "path": None}], label=[1] * 21)
    found = list(read_parquet(path, lambda number: number != 3))
    assert [item.key for item in found[:3]] == ["dir/0", "dir/1", "dir/2"] and found[3].content is None
    assert found[19].content == colored(19) and found[20].error == "row 20 has no image." and found[20].read == 1.0
    binary = _table(tmp_path / "b.parquet", photo=[colored(1)], thumb=[colored(2)])
    with pytest.raises(DataError, match=r"several columns that can have images: photo, thumb\. Choose one with --image-column"):
        list(read_parquet(binary, every))
    (item,) = read_parquet(binary, every, "thumb")
    assert item.content == colored(2) and item.key is None
    with pytest.raises(DataError, match="no image column 'x'"):
        list(read_parquet(binary, every, "x"))
    with pytest.raises(DataError, match="no column with images"):
        list(read_parquet(_table(tmp_path / "c.parquet", n=[1]), every))


def test_a_damaged_parquet_file_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = _table(tmp_path / "a.parquet", image=[colored(index) for index in range(50)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (item,) = read_parquet(path, every)
    assert item.error.startswith("the Parquet file is damaged or truncated: ")


def test_the_number_of_shards_may_exceed_the_number_of_images() -> None:
    kinds = ["image"] * 20
    sizes = [sum(1 for _ in ShardInput(_sources(kinds), Shard(index, 5)).blocks()) for index in range(5)]
    assert sizes == [1, 1, 0, 0, 0]
