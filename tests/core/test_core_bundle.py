"""Bundle on disk: files that differ from the manifest, and missing or unlisted files, are errors."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.bundle import check_run_folder, describe_file, hash_prefix, open_bundle, pack_prefixes, unpack_hashes
from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME, BundleFile
from edgetl.errors import BundleError, IntegrityError, RunError
from tests.core.bundles import DIGESTS, FILES, MODEL, flip, socket_at, swap, write_files, write_folder
from tests.core.deadline import within


def pack_hashes(digests: list[str]) -> bytes:
    return pack_prefixes({hash_prefix(digest) for digest in digests})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bundle with two variants. Its model files are not models, because no engine opens them."""
    return write_folder(tmp_path / "bundle")


def read_all(folder: Path) -> dict[str, bytes]:
    """Open a bundle and read every file, as a device does."""
    opened = open_bundle(folder)
    return {file.path: opened.read(file) for file in opened.manifest.all_files()}


def replace(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def move_away(path: Path) -> Path:
    """Move a file or folder out of the bundle, as the target of a link."""
    return path.rename(path.parents[1] / "outside" if path.parent.name == "bundle" else path.parents[2] / "outside")


# --- valid bundles ---------------------------------------------------------------------------------------------------------------


def test_a_valid_bundle_returns_the_bytes_of_every_file(folder: Path) -> None:
    assert read_all(folder) == FILES


def test_open_bundle_accepts_str_and_path(folder: Path) -> None:
    assert open_bundle(str(folder)) == open_bundle(folder)


def test_a_bundle_folder_may_have_an_odd_name(folder: Path) -> None:
    odd = folder.rename(folder.with_name(" a b\n[é]*漢 "))
    assert read_all(odd) == FILES


def test_a_read_only_bundle_is_read(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert read_all(folder) == FILES
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        path.chmod(0o755)


def test_variant_returns_the_variant_of_a_name(folder: Path) -> None:
    assert open_bundle(folder).variant("openvino-int8").files[0].path == "openvino-int8/model.xml"


def test_the_error_for_an_unknown_variant_lists_the_variants(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"/bundle has no variant 'onnx-int8'\. Its variants: onnx-fp32, openvino-int8\."):
        open_bundle(folder).variant("onnx-int8")


def test_a_bundle_has_the_hash_of_its_manifest_and_its_signature(folder: Path) -> None:
    opened = open_bundle(folder)
    assert opened.manifest_sha256 == hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest() and opened.signature is None
    (folder / SIGNATURE_NAME).write_bytes(b"s" * 10_000)
    assert open_bundle(folder).signature == b"s" * 10_000


def test_a_signature_that_is_too_large_or_a_link_is_an_error(folder: Path) -> None:
    signature = folder / SIGNATURE_NAME
    signature.write_bytes(b"s" * 10_001)
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert str(caught.value) == f"{signature} has more than 10000 bytes. It is not a file that edgetl wrote."
    signature.unlink()
    for make, kind in ((signature.symlink_to, "symbolic"), (signature.hardlink_to, "hard")):
        make(folder / "README.md")
        with pytest.raises(IntegrityError) as refused:
            open_bundle(folder)
        assert str(refused.value) == f"{signature} is a {kind} link. A bundle has only regular files. Copy it again."
        signature.unlink()
    signature.symlink_to(folder / "nowhere")
    with pytest.raises(IntegrityError, match="is a symbolic link"):
        open_bundle(folder)


def test_seen_images_returns_the_packed_hashes(folder: Path) -> None:
    seen = open_bundle(folder).seen_images()
    assert seen == {int(digest[:16], 16) for digest in DIGESTS}
    assert hash_prefix("f" * 64) not in seen


# --- damaged files (A1 to A8, A11 to A15): damage, path in the message, text of the message

DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "flipped byte": (lambda root: flip(root / MODEL), MODEL, "differs from the manifest"),
    "truncated by a byte": (lambda root: (root / MODEL).write_bytes(FILES[MODEL][:-1]), MODEL, "has 21 bytes, but the manifest lists 22"),
    "appended byte": (lambda root: (root / MODEL).write_bytes(FILES[MODEL] + b"\0"), MODEL, "has 23 bytes, but the manifest lists 22"),
    "zero length": (lambda root: (root / MODEL).write_bytes(b""), MODEL, "has 0 bytes, but the manifest lists 22"),
    "swapped with a file of the same size": (
        lambda root: swap(root, "openvino-int8/model.xml", "openvino-int8/model.bin"),
        "openvino-int8/model.xml",
        "differs from the manifest",
    ),
    "swapped with a file of another size": (
        lambda root: swap(root, MODEL, "golden/0.png"),
        MODEL,
        "has 9 bytes, but the manifest lists 22",
    ),
    "deleted": (lambda root: (root / MODEL).unlink(), MODEL, "1 missing file"),
    "renamed": (lambda root: (root / MODEL).rename(root / "model.onnx"), "model.onnx", "1 unlisted file"),
    "extra file": (lambda root: (root / "extra.so").touch(), "extra.so", "1 unlisted file"),
    "extra hidden file in a folder": (lambda root: (root / "golden" / ".x").touch(), "golden/.x", "1 unlisted file"),
    "extra link to a folder": (lambda root: (root / "link").symlink_to(root.parent), "link", "1 unlisted file"),
    "symbolic link": (lambda root: (root / MODEL).symlink_to(move_away(root / MODEL)), MODEL, "but the manifest lists it"),
    "broken symbolic link": (lambda root: replace(root / MODEL, lambda path: path.symlink_to("x")), MODEL, "but the manifest lists it"),
    "symbolic link as parent": (
        lambda root: (root / "golden").symlink_to(move_away(root / "golden"), target_is_directory=True),
        "golden",
        "1 unlisted file",
    ),
    "hard link": (lambda root: (root.parent / "outside").hardlink_to(root / MODEL), MODEL, "is a hard link"),
    "socket": (lambda root: replace(root / MODEL, socket_at), MODEL, "but the manifest lists it"),
    "hard link to the manifest": (
        lambda root: (root.parent / "outside").hardlink_to(root / MANIFEST_NAME),
        MANIFEST_NAME,
        "is a hard link",
    ),
    "symbolic link as manifest": (
        lambda root: (root / MANIFEST_NAME).symlink_to(move_away(root / MANIFEST_NAME)),
        MANIFEST_NAME,
        "is a symbolic link",
    ),
    "FIFO": (lambda root: replace(root / MODEL, os.mkfifo), MODEL, "not a regular file"),
    "empty folder instead of a file": (lambda root: replace(root / MODEL, Path.mkdir), MODEL, "1 missing file"),
    "empty folder": (lambda root: (root / "golden/more").mkdir(), "golden/more/", "1 unlisted file"),
    "link to an empty folder": (lambda root: (root / "more").symlink_to(root / "golden"), "more", "1 unlisted file"),
    "manifest without its last newline": (
        lambda root: (root / MANIFEST_NAME).write_bytes((root / MANIFEST_NAME).read_bytes()[:-1]),
        MANIFEST_NAME,
        "was changed: it must start",
    ),
    "manifest with another newline": (
        lambda root: (root / MANIFEST_NAME).write_bytes((root / MANIFEST_NAME).read_bytes() + b"\n"),
        MANIFEST_NAME,
        "was changed: it must start",
    ),
    "manifest after a space": (
        lambda root: (root / MANIFEST_NAME).write_bytes(b" " + (root / MANIFEST_NAME).read_bytes()),
        MANIFEST_NAME,
        "was changed: it must start",
    ),
    "flipped byte in the card": (lambda root: flip(root / "README.md"), "README.md", "differs from the manifest"),
    "flipped byte in the seen images": (lambda root: flip(root / "seen.bin"), "seen.bin", "differs from the manifest"),
}


# A1 to A8, A11 to A15
@pytest.mark.parametrize(("damage", "path", "text"), DAMAGE.values(), ids=DAMAGE.keys())
def test_the_error_for_a_damaged_bundle_shows_the_file(folder: Path, damage: Callable[[Path], object], path: str, text: str) -> None:
    damage(folder)
    with within(60), pytest.raises(IntegrityError, match=rf"(?s)^(?=.*{re.escape(path)})(?=.*{re.escape(text)}).*Copy ") as caught:
        read_all(folder)
    assert caught.value.exit_code == 9


def test_a_folder_replaced_by_a_link_after_opening_is_an_error(folder: Path) -> None:
    opened = open_bundle(folder)
    (folder / "golden").symlink_to(move_away(folder / "golden"), target_is_directory=True)
    with pytest.raises(IntegrityError, match=r"bundle/golden is a symbolic link\. A bundle has only regular files"):
        opened.read(opened.manifest.golden[0].image)


def test_a_bundle_behind_a_link_is_read(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder, target_is_directory=True)
    assert read_all(link) == FILES


def test_a_file_below_a_linked_folder_is_an_error_at_any_depth(folder: Path) -> None:
    opened = open_bundle(folder)
    (folder.parent / "outside" / "inner").mkdir(parents=True)
    (folder.parent / "outside" / "inner" / "model.bin").write_bytes(b"abc")
    (folder / "outer").symlink_to(folder.parent / "outside", target_is_directory=True)
    with pytest.raises(IntegrityError, match=r"bundle/outer is a symbolic link\. A bundle has only regular files"):
        opened.read(describe_file(folder, folder / "outer" / "inner" / "model.bin"))


def test_a_folder_that_cannot_be_listed_is_an_error(folder: Path) -> None:
    """A deleted folder cannot be listed. Permissions do not stop root, who may run the tests."""
    opened = open_bundle(folder)
    folder.rename(folder.parent / "moved")
    with pytest.raises(IntegrityError) as caught:
        opened.check_closed()
    assert str(caught.value) == f"{folder}: No such file or directory. All folders of a bundle must be readable. Copy the bundle again."


def test_a_file_deleted_after_opening_is_an_error(folder: Path) -> None:
    opened = open_bundle(folder)
    (folder / MODEL).unlink()
    with pytest.raises(IntegrityError, match=r"model\.onnx: No such file or directory, but the manifest lists it"):
        opened.read(opened.variant("onnx-fp32").files[0])


def test_a_file_replaced_after_opening_is_an_error(folder: Path) -> None:
    opened = open_bundle(folder)
    (folder / MODEL).write_bytes(b"x" * len(FILES[MODEL]))
    with pytest.raises(IntegrityError, match=r"model\.onnx differs from the manifest"):
        opened.read(opened.variant("onnx-fp32").files[0])


def test_a_device_instead_of_a_file_is_an_error(folder: Path) -> None:  # A15
    (folder / MODEL).unlink()
    try:
        os.mknod(folder / MODEL, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device file needs root")
    with (
        within(60),
        pytest.raises(IntegrityError, match=r"model\.onnx: (not a regular file|Permission denied), but the manifest lists it"),
    ):
        read_all(folder)


def test_a_manifest_that_is_a_fifo_does_not_hang(folder: Path) -> None:  # A14
    replace(folder / MANIFEST_NAME, os.mkfifo)
    with within(60), pytest.raises(BundleError, match=r"cannot read .*manifest\.json: not a regular file"):
        open_bundle(folder)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_that_changes_repeatedly_is_read_verified_or_is_an_error(folder: Path, in_place: bool) -> None:  # A16
    opened, path, other = open_bundle(folder), folder / MODEL, folder.parent / "other"
    done = threading.Event()

    def swap() -> None:
        contents = [b"x" * len(FILES[MODEL]), FILES[MODEL]]
        while not done.is_set():
            contents.reverse()
            if in_place:
                path.write_bytes(contents[0])
            else:
                other.write_bytes(contents[0])
                other.replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    read, refused = 0, 0
    try:
        while refused < 20 or (read < 5 and refused < 2000):
            try:
                assert opened.read(opened.variant("onnx-fp32").files[0]) == FILES[MODEL]
                read += 1
            except IntegrityError:
                refused += 1
    finally:
        done.set()
        thread.join()


@given(st.integers(0, 2**31), st.integers(0, 7))
@settings(deadline=None, max_examples=100)
def test_a_flipped_bit_in_the_manifest_is_an_error_or_gives_another_manifest(place: int, bit: int) -> None:  # A1
    """A flipped bit in a label or a number can give another valid manifest. Only a signature detects it."""
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        whole = write_files(root)
        changed = bytearray(whole.model_dump_json().encode())
        changed[place % len(changed)] ^= 1 << bit
        (root / MANIFEST_NAME).write_bytes(changed)
        try:
            read_all(root)
        except BundleError:
            return
        read = open_bundle(root).manifest
        assert read.all_files() == whole.all_files()
        assert read != whole


def test_the_error_for_unlisted_files_shows_the_first_five(folder: Path) -> None:
    for index in range(7):
        (folder / f"extra-{index}").touch()
    with pytest.raises(IntegrityError, match=r"7 unlisted file\(s\): extra-0, extra-1, extra-2, extra-3, extra-4\. "):
        open_bundle(folder)


# --- folders that are not bundles (A9, A10, A19; A20 is in test_core_manifest.py) -------------------


def test_the_error_for_a_missing_folder_shows_its_path(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"/nowhere does not exist\. Give the folder that `edgetl export` wrote"):
        open_bundle(tmp_path / "nowhere")


def test_a_file_is_not_a_bundle(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx is a file\. Give the folder that `edgetl export` wrote"):
        open_bundle(folder / MODEL)


def test_a_transport_file_is_an_error_with_the_command_that_unpacks_it(tmp_path: Path) -> None:
    packed = tmp_path / "pets.edgetl"
    packed.write_bytes(b"PK")
    with pytest.raises(BundleError, match=r"pets\.edgetl is a transport file, not a bundle folder\. Unpack it: unzip"):
        open_bundle(packed)


def test_the_error_for_a_run_shows_the_export_command(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BundleError, match=rf"is a run, not a bundle\. Export it: edgetl export {re.escape(str(tmp_path))} --out"):
        open_bundle(tmp_path)


def test_a_folder_without_a_manifest_is_not_a_bundle(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(BundleError, match=r"/bundle is not a bundle: it has no manifest\.json"):
        open_bundle(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe{\0}\0", b'{"name": "a", "name": "b"}'], ids=["empty", "cut", "UTF-16", "twice"])
def test_the_error_for_a_damaged_manifest_shows_its_path(folder: Path, data: bytes) -> None:
    (folder / MANIFEST_NAME).write_bytes(data)
    with pytest.raises(BundleError, match=r"/bundle/manifest\.json is not valid JSON"):
        open_bundle(folder)


def test_a_manifest_of_more_than_a_megabyte_is_an_error(folder: Path) -> None:
    with open(folder / MANIFEST_NAME, "ab") as file:
        file.write(b" " * 1_000_001)
    with pytest.raises(BundleError, match=r"manifest\.json has more than 1000000 bytes"):
        open_bundle(folder)


def test_the_error_for_a_newer_manifest_is_to_upgrade(folder: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text()
    (folder / MANIFEST_NAME).write_text(text.replace('"schema_version":1', '"schema_version":7'))
    with pytest.raises(BundleError, match=r"manifest\.json has schema version 7\. .*Upgrade edgetl"):
        open_bundle(folder)


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/hostname", "../bundle_evil/x", "a/../../b", "C:\\\\x", "", "."])
def test_a_manifest_with_a_path_outside_the_bundle_is_an_error(folder: Path, path: str) -> None:
    (folder.parent / "outside.onnx").write_bytes(FILES[MODEL])
    text = (folder / MANIFEST_NAME).read_text()
    (folder / MANIFEST_NAME).write_text(text.replace(f'"{MODEL}"', f'"{path}"'))
    with pytest.raises(BundleError, match=r"manifest\.json does not fit its schema: variants\.0\.files\.0\.path"):
        open_bundle(folder)


def test_check_run_folder_returns_a_run_and_reports_what_else_the_folder_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert check_run_folder(str(tmp_path / "run")) == tmp_path / "run"
    advice = "Give the folder that `edgetl train` wrote."
    messages = {
        folder: f"{folder} is a bundle, not a run. This command needs the folder that `edgetl train` wrote.",
        tmp_path / "empty": f"{tmp_path / 'empty'} is not a run: it has no run.json. {advice}",
        tmp_path / "nowhere": f"{tmp_path / 'nowhere'} is not a run: it does not exist. {advice}",
    }
    for path, message in messages.items():
        with pytest.raises(RunError) as caught:
            check_run_folder(path)
        assert str(caught.value) == message


# --- hashes of seen images -------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=30))
@settings(deadline=None, max_examples=60)
def test_unpacked_hashes_are_sorted_and_distinct(digests: list[bytes]) -> None:
    expected = sorted({int.from_bytes(digest[:8], "big") for digest in digests})
    assert unpack_hashes(pack_hashes([digest.hex() for digest in digests])).tolist() == expected


@given(st.permutations(DIGESTS))
@settings(deadline=None, max_examples=30)
def test_packed_hashes_do_not_depend_on_order_and_copies(digests: list[str]) -> None:
    assert pack_hashes([*digests, *digests[:5]]) == pack_hashes(DIGESTS)


def test_packed_hashes_are_little_endian_64_bit_integers() -> None:
    digests = ["00000000000000ff" + "0" * 48, "0102030405060708" + "f" * 48]
    assert pack_hashes(digests) == struct.pack("<QQ", 0xFF, 0x0102030405060708)


def test_an_empty_list_of_hashes_has_no_bytes() -> None:
    assert pack_hashes([]) == b"" and unpack_hashes(b"").tolist() == []


@pytest.mark.parametrize("length", [1, 7, 9, 15])
def test_a_damaged_list_of_hashes_is_an_error(length: int) -> None:
    with pytest.raises(IntegrityError) as caught:
        unpack_hashes(b"\0" * length)
    assert str(caught.value) == "the list of seen images is damaged: its length is not a multiple of 8 bytes."


def test_describe_file_returns_relative_path_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.bin").write_bytes(b"abc")
    expected = BundleFile(path="a/b.bin", size_bytes=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert describe_file(tmp_path, tmp_path / "a" / "b.bin") == expected
