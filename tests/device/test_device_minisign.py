"""minisign: its tool verifies signatures of edgetl, and edgetl verifies signatures of the tool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME
from edgetl.device.keys import PrivateKey, load_public_key
from edgetl.device.minisign import MinisignSignature, read_public_key, read_signature, write_public_key
from edgetl.device.signature import Trust, sign_bundle, trust_keys, verified_bundle
from edgetl.errors import SignatureError


def minisign(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the tool; tests are skipped without it."""
    if shutil.which("minisign") is None:
        pytest.skip("the minisign tool is not installed")
    return subprocess.run(["minisign", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_minisign_verifies_a_signature_of_edgetl(folder: Path, keys: Path, key: PrivateKey) -> None:
    sign_bundle(folder, key, format_="minisign")
    arguments = ("-V", "-H", "-p", keys / "release.pub", "-m", folder / MANIFEST_NAME, "-x", folder / SIGNATURE_NAME)
    done = minisign(*arguments)
    assert done.returncode == 0 and "Trusted comment: bundle of edgetl, release 1" in done.stdout, done.stderr
    (folder / MANIFEST_NAME).write_bytes((folder / MANIFEST_NAME).read_bytes().replace(b"cat", b"rat"))
    assert minisign(*arguments).returncode != 0


def test_minisign_shows_the_key_id_of_edgetl(folder: Path, keys: Path, key: PrivateKey) -> None:
    sign_bundle(folder, key, format_="minisign")
    done = minisign("-V", "-p", keys / "other.pub", "-m", folder / MANIFEST_NAME, "-x", folder / SIGNATURE_NAME)
    assert key.public.key_id.upper() in done.stderr


def test_a_signature_of_minisign_is_valid(folder: Path, tmp_path: Path) -> None:
    assert minisign("-G", "-W", "-p", tmp_path / "tool.pub", "-s", tmp_path / "tool.key").returncode == 0
    assert minisign("-S", "-W", "-s", tmp_path / "tool.key", "-m", folder / MANIFEST_NAME, "-x", folder / SIGNATURE_NAME).returncode == 0
    key = load_public_key(tmp_path / "tool.pub")
    assert verified_bundle(folder, trust_keys([key]))[1] == key


def test_a_legacy_signature_of_minisign_is_an_error(folder: Path, tmp_path: Path) -> None:
    assert minisign("-G", "-W", "-p", tmp_path / "tool.pub", "-s", tmp_path / "tool.key").returncode == 0
    minisign("-S", "-W", "-l", "-s", tmp_path / "tool.key", "-m", folder / MANIFEST_NAME, "-x", folder / SIGNATURE_NAME)
    with pytest.raises(SignatureError, match=r"it is a signature in minisign's legacy format\. Sign without -l") as caught:
        verified_bundle(folder, trust_keys([load_public_key(tmp_path / "tool.pub")]))
    assert caught.value.exit_code == 20


def test_a_changed_bit_of_a_minisign_signature_is_an_error(folder: Path, key: PrivateKey, trust: Trust) -> None:
    """The first line is a comment that no signature covers."""
    data = (sign_bundle(folder, key, format_="minisign").signature or b"").partition(b"\n")
    manifest = (folder / MANIFEST_NAME).read_bytes()
    for place in range(8 * len(data[2])):
        changed = bytearray(data[2])
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(SignatureError):
            trust.check(manifest, data[0] + data[1] + bytes(changed))


def test_a_changed_trusted_comment_is_an_error(folder: Path, key: PrivateKey, trust: Trust) -> None:
    path = folder / SIGNATURE_NAME
    sign_bundle(folder, key, format_="minisign")
    path.write_bytes(path.read_bytes().replace(b"release 1", b"release 2"))
    with pytest.raises(SignatureError, match="does not belong to this manifest"):
        verified_bundle(folder, trust)


def lines_of(folder: Path, key: PrivateKey) -> list[bytes]:
    return (sign_bundle(folder, key, format_="minisign", overwrite=True).signature or b"").splitlines(keepends=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("three lines", "it does not have exactly 4 lines"),
        ("two signatures", "it does not have exactly 4 lines"),
        ("no last line feed", "it does not have exactly 4 lines"),
        ("carriage returns", "it does not have exactly 4 lines"),
        ("no comment", "lines 1 and 3 must begin with"),
        ("not base64", "line 2 is not base64"),
        ("short", "line 2 does not have 74 bytes in base64"),
        ("other algorithm", "its algorithm is not prehashed Ed25519"),
        ("not UTF-8", "it is not UTF-8 text"),
    ],
)
def test_the_error_for_a_damaged_signature_shows_the_reason(folder: Path, key: PrivateKey, trust: Trust, name: str, reason: str) -> None:
    lines = lines_of(folder, key)
    damaged = {
        "three lines": lines[:3],
        "two signatures": lines * 2,
        "no last line feed": [*lines[:3], lines[3][:-1]],
        "carriage returns": [line.replace(b"\n", b"\r\n") for line in lines],
        "no comment": [lines[0], lines[1], b"comment\n", lines[3]],
        "not base64": [lines[0], b"*" + lines[1][1:], *lines[2:]],
        "short": [lines[0], lines[1][4:], *lines[2:]],
        "other algorithm": [lines[0], b"S" + lines[1][1:], *lines[2:]],
        "not UTF-8": [lines[0], lines[1], b"trusted comment: \xff\n", lines[3]],
    }
    with pytest.raises(SignatureError, match=rf"manifest\.sig is not a valid signature file: {reason}"):
        trust.check((folder / MANIFEST_NAME).read_bytes(), b"".join(damaged[name]))


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1))
def test_a_written_public_key_is_read_again(raw: bytes, number: int) -> None:
    assert read_public_key(write_public_key(f"{number:016x}", raw, "a comment")) == (f"{number:016x}", raw)


@given(
    st.integers(0, 2**64 - 1),
    st.binary(min_size=64, max_size=64),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=40),
    st.binary(min_size=64, max_size=64),
)
def test_a_written_signature_is_read_again(number: int, signature: bytes, comment: str, comment_signature: bytes) -> None:
    written = MinisignSignature(f"{number:016x}", signature, comment, comment_signature)
    assert read_signature(written.encode()) == written


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_parsers_report_any_other_bytes_as_an_error(data: bytes) -> None:
    for parse in (read_signature, read_public_key):
        with pytest.raises(ValueError, match=r"."):
            parse(b"untrusted comment: " + data)
