"""Key files: Ed25519 key pairs, permissions, passphrases, and files that are not keys."""

from __future__ import annotations

import logging
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edgetl.device.keys import PrivateKey, generate_key, load_public_key, public_path, read_private_key
from edgetl.device.minisign import write_public_key
from edgetl.errors import ConfigError, StorageError

# RFC 8032, section 7.1, test 1.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)
FINGERPRINT = "21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"


def test_keys_and_signatures_are_those_of_rfc_8032() -> None:
    key = PrivateKey("test", Ed25519PrivateKey.from_private_bytes(SECRET))
    assert (key.public.raw, key.sign(b"")) == (PUBLIC, SIGNATURE)
    assert (key.public.fingerprint, key.public.key_id) == (FINGERPRINT, FINGERPRINT[:16])
    assert key.public.accepts(SIGNATURE, b"") and not key.public.accepts(SIGNATURE, b"x")


def test_generated_keys_are_read_again(tmp_path: Path) -> None:
    made = generate_key(tmp_path / "release.key")
    assert made == load_public_key(tmp_path / "release.pub") == read_private_key(tmp_path / "release.key").public
    assert made.name == "release"


def test_a_private_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    generate_key(tmp_path / "release.key")
    assert stat.S_IMODE((tmp_path / "release.key").stat().st_mode) == 0o600


@pytest.mark.parametrize(("name", "public"), [("a.key", "a.pub"), ("a.pem", "a.pub"), ("a", "a.pub"), ("a.v2", "a.v2.pub")])
def test_public_path_replaces_the_suffix_of_a_key(name: str, public: str) -> None:
    assert public_path(Path("x", name)) == Path("x", public)


def test_a_public_key_file_has_the_format_of_minisign() -> None:
    data = write_public_key("0123456789abcdef", PUBLIC, "a comment")
    assert data == b"untrusted comment: a comment\nRWTvzauJZ0UjAddamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea\n"


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path) -> None:
    made = generate_key(tmp_path / "a.key", passphrase="käse".encode())
    assert b"ENCRYPTED" in (tmp_path / "a.key").read_bytes()
    assert read_private_key(tmp_path / "a.key", passphrase="käse".encode()).public == made
    with pytest.raises(ConfigError, match=r"a\.key is encrypted\. Give its passphrase\."):
        read_private_key(tmp_path / "a.key")
    with pytest.raises(ConfigError, match=r"a\.key cannot be decrypted\. Check the passphrase\."):
        read_private_key(tmp_path / "a.key", passphrase=b"other")


def test_an_unencrypted_key_ignores_a_passphrase(keys: Path, key: PrivateKey) -> None:
    assert read_private_key(keys / "release.key", passphrase=b"x").public == key.public


@pytest.mark.parametrize("existing", ["a.key", "a.pub"])
def test_keys_are_never_replaced(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(ConfigError, match=rf"{existing} exists already\. Keys are never replaced\. Choose another name\."):
        generate_key(tmp_path / "a.key")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(existing, "mine")]


@pytest.mark.parametrize("name", ["a.pub", "..", ""])
def test_names_that_are_not_for_a_private_key_are_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is not a name for a private key"):
        generate_key(Path(name) if not name else tmp_path / name)


def test_an_empty_passphrase_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the passphrase is empty"):
        generate_key(tmp_path / "a.key", passphrase=b"")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*a\.key: No such file"):
        generate_key(tmp_path / "no" / "a.key")


def test_a_key_that_others_can_read_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generate_key(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o640)
    with caplog.at_level(logging.WARNING):
        read_private_key(tmp_path / "a.key")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/a.key can be read by other users. Correct it: chmod 600 {tmp_path}/a.key"
    ]


def test_a_key_of_openssl_is_read(tmp_path: Path) -> None:
    try:
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "a.pem"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the openssl tool is missing")
    key = read_private_key(tmp_path / "a.pem")
    assert key.public.accepts(key.sign(b"x"), b"x")


@pytest.mark.parametrize("data", [b"", b"text", b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", bytes(9000)])
def test_the_error_for_a_file_that_is_no_private_key_shows_its_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.key").write_bytes(data)
    with pytest.raises(ConfigError, match=r"a\.key is not a private key \(PKCS#8 PEM\)\. Give a file that `edgetl keygen` wrote\."):
        read_private_key(tmp_path / "a.key")


def test_private_keys_of_other_algorithms_are_errors(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1())
    (tmp_path / "a.key").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match=r"a\.key is a private key of another algorithm\. Give an Ed25519 key"):
        read_private_key(tmp_path / "a.key")


def test_missing_and_large_key_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*a\.key: No such file"):
        read_private_key(tmp_path / "a.key")
    (tmp_path / "a.pub").write_bytes(bytes(10_001))
    with pytest.raises(ConfigError, match=r"a\.pub has more than 10000 bytes"):
        load_public_key(tmp_path / "a.pub")


def test_a_private_key_is_not_accepted_as_a_public_key(keys: Path) -> None:
    with pytest.raises(ConfigError, match=r"release\.key is a private key\. Keep it secret, and give the public key \(release\.pub\)\."):
        load_public_key(keys / "release.key")


@pytest.mark.parametrize(
    "raw",
    [
        bytes(32),
        bytes(31) + b"\x80",
        b"\1" + bytes(31),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
        b"\xed" + b"\xff" * 30 + b"\x7f",
    ],
)
def test_a_weak_public_key_is_an_error(tmp_path: Path, raw: bytes) -> None:
    """A key of small order accepts signatures that nobody made."""
    (tmp_path / "a.pub").write_bytes(write_public_key("0" * 16, raw, ""))
    with pytest.raises(ConfigError, match=r"a\.pub is a weak public key: it accepts forged signatures"):
        load_public_key(tmp_path / "a.pub")
