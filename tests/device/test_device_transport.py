"""Transport files: one canonical zip per bundle, which other tools read; every other zip is an error (A17)."""

from __future__ import annotations

import io
import random
import shutil
import stat
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.bundle import open_bundle
from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME
from edgetl.device import transport
from edgetl.device.keys import PrivateKey
from edgetl.device.signature import Trust, sign_bundle, trust_keys, verified_bundle
from edgetl.device.transport import MAX_BYTES, pack, read_head, unpack, unpacked
from edgetl.errors import BundleError, ConfigError, IntegrityError, SignatureError, StorageError, UnknownKeyError, UnsignedError
from tests.core.bundles import CHANGES, CODES, FILES, files_of, flip
from tests.core.deadline import within

# Bytes of the members as the system's zip readers see them: name and content.
Members = list[tuple[str, bytes]]


@pytest.fixture
def packed(signed: Path, tmp_path: Path) -> Path:
    """Transport file of the signed bundle."""
    pack(signed, tmp_path / "pets.edgetl")
    return tmp_path / "pets.edgetl"


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return [(item.filename, archive.read(item)) for item in archive.infolist()]


# --- valid files -----------------------------------------------------------------------------------------------------------------


def test_an_unpacked_file_is_the_bundle(packed: Path, signed: Path, tmp_path: Path, trust: Trust) -> None:
    unpack(packed, tmp_path / "out", trust=trust)
    assert files_of(tmp_path / "out") == files_of(signed)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert verified_bundle(tmp_path / "out", trust)[0].manifest == open_bundle(signed).manifest


def test_an_unsigned_bundle_is_packed_too(folder: Path, tmp_path: Path, trust: Trust) -> None:
    pack(folder, tmp_path / "a.edgetl")
    unpack(tmp_path / "a.edgetl", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(folder)
    with pytest.raises(UnsignedError):
        unpack(tmp_path / "a.edgetl", tmp_path / "other", trust=trust)
    assert not (tmp_path / "other").exists()


def test_a_copied_bundle_has_the_same_bytes(packed: Path, signed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    for path in copy.rglob("*"):
        path.chmod(0o777)
    pack(copy, tmp_path / "copy.edgetl")
    assert (tmp_path / "copy.edgetl").read_bytes() == packed.read_bytes()


def test_the_bytes_of_the_format_do_not_change(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "a.edgetl")
    data = (tmp_path / "a.edgetl").read_bytes()
    manifest = (folder / MANIFEST_NAME).read_bytes()
    crc, size = struct.pack("<L", zlib.crc32(manifest)), struct.pack("<L", len(manifest))
    first = b"PK\3\4\x14\0\0\0\0\0\0\0\x21\0" + crc + size + size + b"\x0d\0\0\0manifest.json" + manifest
    assert data.startswith(first + b"PK\3\4")
    end = data.index(b"PK\1\2")
    first_entry = b"PK\1\2\x14\3\x14\0\0\0\0\0\0\0\x21\0" + crc + size + size + b"\x0d\0" + bytes(10) + b"\xa4\x81\0\0\0\0"
    assert data[end:].startswith(first_entry + b"manifest.json")
    count = struct.pack("<H", 1 + len(FILES))
    directory = data[end : data.index(b"PK\5\6")]
    assert data[data.index(b"PK\5\6") :] == b"PK\5\6\0\0\0\0" + count + count + struct.pack("<LLH", len(directory), end, 0)


def test_other_zip_readers_read_the_file(packed: Path, signed: Path, tmp_path: Path) -> None:
    names = [MANIFEST_NAME, SIGNATURE_NAME, *(file.path for file in open_bundle(signed).manifest.all_files())]
    members = members_of(packed)
    assert [name for name, _ in members] == names and dict(members) == files_of(signed)
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-q", packed, "-d", tmp_path / "out"], check=True)
        assert files_of(tmp_path / "out") == files_of(signed)


def test_names_with_other_letters_survive(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").rename(folder / "卡片 é.md")
    text = (folder / MANIFEST_NAME).read_text().replace("README.md", "卡片 é.md")
    (folder / MANIFEST_NAME).write_text(text)
    pack(folder, tmp_path / "a.edgetl")
    assert dict(members_of(tmp_path / "a.edgetl")) == files_of(folder)
    unpack(tmp_path / "a.edgetl", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(folder)


def test_read_head_returns_the_size_of_the_file_from_its_beginning(packed: Path, signed: Path, trust: Trust) -> None:
    whole = packed.read_bytes()
    beginning = whole[: whole.index(FILES["onnx-fp32/model.onnx"])]
    head = read_head(io.BytesIO(beginning), "download", trust=trust)
    assert (head.size_bytes, head.manifest.name) == (len(whole), "pets")
    assert (head.manifest_data, head.signature) == ((signed / MANIFEST_NAME).read_bytes(), (signed / SIGNATURE_NAME).read_bytes())


def test_unpacked_yields_the_folder_of_a_bundle_or_of_a_transport_file(packed: Path, signed: Path) -> None:
    with unpacked(signed) as folder:
        assert folder == signed
    with unpacked(packed) as folder:
        assert files_of(folder) == files_of(signed)
    assert not folder.exists()


# --- pack --------------------------------------------------------------------------------------------------------------------------


def test_a_damaged_bundle_is_not_packed(signed: Path, tmp_path: Path) -> None:
    flip(signed / "golden/0.png")
    with pytest.raises(IntegrityError, match=r"0\.png differs from the manifest"):
        pack(signed, tmp_path / "a.edgetl")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_pack_replaces_a_file_only_with_overwrite(packed: Path, folder: Path, tmp_path: Path) -> None:
    before = packed.read_bytes()
    (folder / SIGNATURE_NAME).unlink()
    with pytest.raises(ConfigError, match=r"pets\.edgetl exists already\. Choose another --out, or replace the file with --overwrite\."):
        pack(folder, packed)
    assert packed.read_bytes() == before
    pack(folder, packed, overwrite=True)
    assert packed.read_bytes() != before
    with pytest.raises(ConfigError, match="exists already"):
        pack(folder, folder.rename(tmp_path / "b.edgetl"), overwrite=True)


def test_pack_needs_the_suffix(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.zip: the name of a transport file ends with \.edgetl\. Choose another --out\."):
        pack(folder, tmp_path / "a.zip")


def test_pack_rejects_more_files_than_a_transport_file_has(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_FILES", 6)
    with pytest.raises(BundleError, match=r"bundle has 7 files and needs .* bytes\. A transport file has at most 6 files"):
        pack(folder, tmp_path / "a.edgetl")


# --- changed files (A1 to A3, A17) -------------------------------------------------------------------------------------------------


def check_rejected(path: Path, tmp_path: Path, trust: Trust | None = None) -> BundleError:
    """Check that a file is rejected, that nothing is left, and that the disk was not filled."""
    with within(60), pytest.raises(BundleError) as caught:
        unpack(path, tmp_path / "out", trust=trust)
    assert not (tmp_path / "out").exists()
    return caught.value


def test_a_changed_bit_of_a_transport_file_is_never_accepted(packed: Path, tmp_path: Path, trust: Trust) -> None:
    whole, rng = packed.read_bytes(), random.Random(0)
    for place in rng.sample(range(len(whole)), 300):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        packed.unlink()
        packed.write_bytes(changed)
        assert check_rejected(packed, tmp_path, trust).exit_code in (8, 9, 20, 21, 22)


def test_a_truncated_transport_file_is_an_error(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    for size in [*range(4, len(whole), 97), len(whole) - 1]:
        packed.unlink()
        packed.write_bytes(whole[:size])
        error = check_rejected(packed, tmp_path)
        assert isinstance(error, IntegrityError), error
        assert "pets.edgetl is damaged: " in str(error) and "Copy the file again." in str(error)


@pytest.mark.parametrize("data", [b"", b"PK", b"\x80\4", b"<html>", b"PK\5\6" + bytes(18), b"\x1f\x8b" + bytes(100)])
def test_a_file_of_another_kind_is_not_a_transport_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.edgetl").write_bytes(data)
    assert "is not a transport file of a bundle" in str(check_rejected(tmp_path / "a.edgetl", tmp_path))


def test_a_byte_after_the_end_is_an_error(packed: Path, tmp_path: Path) -> None:
    with packed.open("ab") as file:
        file.write(b"\0")
    assert "or bytes follow it" in str(check_rejected(packed, tmp_path))


def write_zip(
    path: Path, members: Members, *, change: Callable[[zipfile.ZipInfo], object] = lambda _: None, compression: int = zipfile.ZIP_STORED
) -> Path:
    """Write a zip with the library of Python, in the form of a transport file. ``change`` and ``compression`` alter it."""
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.create_system = 0o100644 << 16, 3
            info.compress_type = archive.compression
            change(info)
            archive.writestr(info, data)
    return path


HUGE = bytes(50_000_000)
HOSTILE: dict[str, Callable[[Path, Members], object]] = {
    "slip": lambda path, members: write_zip(path, [*members[:2], ("../evil", b"x"), *members[2:]]),
    "absolute name": lambda path, members: write_zip(path, [*members[:2], ("/tmp/evil", b"x"), *members[2:]]),
    "unlisted file": lambda path, members: write_zip(path, [*members, ("evil", b"x")]),
    "missing file": lambda path, members: write_zip(path, members[:-1]),
    "other order": lambda path, members: write_zip(path, [*members[:2], *reversed(members[2:])]),
    "duplicate name": lambda path, members: write_zip(path, [*members, members[-1]]),
    "duplicate name with other content": lambda path, members: write_zip(path, [*members, (members[-1][0], b"evil")]),
    "case twin": lambda path, members: write_zip(path, [*members, (members[-1][0].lower(), b"evil")]),
    "second manifest": lambda path, members: write_zip(path, [*members, (MANIFEST_NAME, b"{}\n")]),
    "folder entry": lambda path, members: write_zip(path, [*members[:2], ("golden/", b""), *members[2:]]),
    "compressed": lambda path, members: write_zip(path, members, compression=zipfile.ZIP_DEFLATED),
    "bomb": lambda path, members: write_zip(path, [members[0], (SIGNATURE_NAME, HUGE)], compression=zipfile.ZIP_DEFLATED),
    "large manifest": lambda path, members: write_zip(path, [(MANIFEST_NAME, HUGE)]),
    "large signature": lambda path, members: write_zip(path, [members[0], (SIGNATURE_NAME, bytes(10_001)), *members[2:]]),
    "symbolic link": lambda path, members: write_zip(path, members, change=lambda info: setattr(info, "external_attr", 0o120777 << 16)),
    "20,000 entries": lambda path, members: write_zip(path, [*members, *((f"{index}", b"") for index in range(20_000))]),
    "comment": lambda path, members: write_zip(path, members, change=lambda info: setattr(info, "comment", b"x")),
    "extra field": lambda path, members: write_zip(path, members, change=lambda info: setattr(info, "extra", b"\1\0\0\0")),
    "other date": lambda path, members: write_zip(path, members, change=lambda info: setattr(info, "date_time", (2000, 1, 1, 0, 0, 0))),
    "other system": lambda path, members: write_zip(path, members, change=lambda info: setattr(info, "create_system", 0)),
    "data before": lambda path, members: path.write_bytes(b"#!/bin/sh\n" + path.read_bytes()),
    "no manifest": lambda path, members: write_zip(path, members[1:]),
    "empty zip": lambda path, members: write_zip(path, []),
}


def test_a_zip_of_the_same_form_is_the_same_file(packed: Path, tmp_path: Path) -> None:
    """The hostile files below differ from the valid one only in what their name states."""
    assert write_zip(tmp_path / "a.edgetl", members_of(packed)).read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_zip_is_an_error(packed: Path, tmp_path: Path, name: str) -> None:  # A17
    HOSTILE[name](packed, members_of(packed))
    error = check_rejected(packed, tmp_path)
    assert error.exit_code in (8, 9)
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize(("offset", "name"), [(6, "encrypted"), (8, "method"), (18, "compressed size"), (22, "size"), (14, "checksum")])
@pytest.mark.parametrize("central", [False, True], ids=["local header", "directory"])
def test_a_header_with_a_lie_is_an_error(packed: Path, tmp_path: Path, offset: int, name: str, central: bool) -> None:  # A17
    """The offsets of the directory are those of the local header plus 2."""
    data = bytearray(packed.read_bytes())
    place = data.rindex(b"PK\1\2") + offset + 2 if central else data.index(b"PK\3\4onnx"[:4], 200) + offset
    data[place] ^= 1
    packed.write_bytes(data)
    assert isinstance(check_rejected(packed, tmp_path), IntegrityError)


def test_a_declared_size_beyond_the_limit_is_an_error_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text()
    manifest = text.replace('"size_bytes":22', f'"size_bytes":{MAX_BYTES}').encode()
    write_zip(tmp_path / "a.edgetl", [(MANIFEST_NAME, manifest), ("onnx-fp32/model.onnx", b"")])
    assert "A transport file has at most 64 files and 2,147,483,647 bytes" in str(check_rejected(tmp_path / "a.edgetl", tmp_path))


def test_a_file_that_differs_from_the_manifest_is_an_error(packed: Path, tmp_path: Path) -> None:
    members = [(name, data[::-1] if name == "seen.bin" else data) for name, data in members_of(packed)]
    write_zip(packed, members)
    assert "seen.bin differs from the manifest (SHA-256)" in str(check_rejected(packed, tmp_path))


# A transport file without a manifest is damaged: it has other members of a transport file.
CODES_PACKED = {**CODES, MANIFEST_NAME: {**CODES[MANIFEST_NAME], "rename": 9, "deleted file": 9}}


@pytest.mark.parametrize("change", [change for change in CHANGES if not change.endswith("link")])
@pytest.mark.parametrize("name", [MANIFEST_NAME, SIGNATURE_NAME, *FILES])
def test_a_changed_file_in_a_valid_zip_is_an_error_with_its_exit_code(
    packed: Path, signed: Path, tmp_path: Path, trust: Trust, name: str, change: str
) -> None:  # A1 to A8
    order = [member for member, _ in members_of(packed)]
    CHANGES[change](signed, name)
    files = files_of(signed)
    names = [*(member for member in order if member in files), *sorted(files.keys() - set(order))]
    write_zip(packed, [(member, files[member]) for member in names])
    assert check_rejected(packed, tmp_path, trust).exit_code == CODES_PACKED.get(name, {}).get(change, 9)


def test_nothing_is_written_if_the_signature_is_not_valid(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownKeyError, match=r"pets\.edgetl is signed by the key"):
        unpack(packed, tmp_path / "out", trust=trust_keys([]))
    assert not (tmp_path / "out").exists()


def test_a_changed_manifest_is_rejected_before_it_is_parsed(packed: Path, tmp_path: Path, trust: Trust) -> None:
    members = [(name, b"[" * 100_000 if name == MANIFEST_NAME else data) for name, data in members_of(packed)]
    assert type(check_rejected(write_zip(packed, members), tmp_path, trust)) is SignatureError


def test_an_existing_folder_is_never_changed(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*/out: File exists"):
        unpack(packed, tmp_path / "out")
    (tmp_path / "out").rmdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"cannot write .*/out: File exists"):
        unpack(packed, tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_transport_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read .*a\.edgetl: No such file or directory\. Give a file that `edgetl pack` wrote\."):
        unpack(tmp_path / "a.edgetl", tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system")
def test_a_full_disk_is_an_error_that_leaves_nothing(folder: Path, key: PrivateKey, small_disk: Path, tmp_path: Path) -> None:
    large = b"x" * 3_000_000
    (folder / "golden/0.png").write_bytes(large)
    old, new = (f'"size_bytes":{len(data)},"sha256":"{sha256(data).hexdigest()}"' for data in (FILES["golden/0.png"], large))
    text = (folder / MANIFEST_NAME).read_text().replace(old, new)
    (folder / MANIFEST_NAME).write_text(text)
    sign_bundle(folder, key)
    pack(folder, tmp_path / "a.edgetl")
    with pytest.raises(StorageError, match="No space left on device"):
        unpack(tmp_path / "a.edgetl", small_disk / "out")
    with pytest.raises(StorageError, match="No space left on device"):
        pack(folder, small_disk / "a.edgetl")
    assert list(small_disk.iterdir()) == []


def test_a_transport_file_that_is_replaced_repeatedly_gives_the_signed_bundle_or_an_error(
    packed: Path, signed: Path, tmp_path: Path, trust: Trust
) -> None:  # A16
    """A thread writes other bytes into the file while it is read."""
    wanted, files = packed.read_bytes(), files_of(signed)
    other, done = wanted.replace(FILES["golden/0.png"], FILES["golden/0.png"][::-1]), threading.Event()

    def exchange() -> None:
        contents = [other, wanted]
        with packed.open("r+b", buffering=0) as file:
            while not done.is_set():
                contents.reverse()
                file.seek(0)
                file.write(contents[0])

    thread = threading.Thread(target=exchange)
    thread.start()
    read, refused = 0, 0
    try:
        while refused < 20 or (read < 5 and refused < 2000):
            try:
                unpack(packed, tmp_path / "out", trust=trust)
                assert files_of(tmp_path / "out") == files
                shutil.rmtree(tmp_path / "out")
                read += 1
            except IntegrityError:
                refused += 1
    finally:
        done.set()
        thread.join()


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_other_bytes_are_never_the_beginning_of_a_transport_file(data: bytes) -> None:
    for beginning in (b"", b"PK\3\4\x14\0\0\0\0\0\0\0\x21\0"):
        with pytest.raises(BundleError):
            read_head(io.BytesIO(beginning + data), "file")
