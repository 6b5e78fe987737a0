"""Signatures of bundles: tampering, trusted and revoked keys, rotation of keys, and changes between check and use."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.bundle import open_bundle
from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME
from edgetl.device.keys import PrivateKey, generate_key, read_private_key
from edgetl.device.minisign import write_public_key
from edgetl.device.signature import (
    SignatureFile,
    Trust,
    describe_signature,
    open_trust,
    sign_bundle,
    trust_keys,
    verified_bundle,
)
from edgetl.errors import BundleError, ConfigError, IntegrityError, RevokedKeyError, SignatureError, UnknownKeyError, UnsignedError
from tests.core.bundles import CHANGES, CODES, FILES, flip, socket_at
from tests.device.bundles import trust_folder


def accept(folder: Path, trust: Trust) -> None:
    """Open a bundle with a required key and read every file, as a device does."""
    bundle, key = verified_bundle(folder, trust)
    assert key is not None
    for file in bundle.manifest.all_files():
        bundle.read(file)


def code_of(folder: Path, trust: Trust) -> int:
    """Return the exit code of ``accept``."""
    try:
        accept(folder, trust)
    except BundleError as error:
        return error.exit_code
    return 0


# --- valid signatures ------------------------------------------------------------------------------------------------------------


def test_a_signed_bundle_is_accepted_with_its_key(signed: Path, trust: Trust, key: PrivateKey) -> None:
    accept(signed, trust)
    bundle, used = verified_bundle(signed, trust)
    assert used == key.public
    assert bundle == open_bundle(signed)
    state = describe_signature(bundle, used)
    assert (state.state, state.key, state.key_id, state.fingerprint) == ("valid", "release", key.public.key_id, key.public.fingerprint)


def test_a_signed_bundle_opens_without_a_key(signed: Path, key: PrivateKey) -> None:
    bundle, used = verified_bundle(signed, None)
    assert used is None
    assert describe_signature(bundle, None).model_dump(exclude_none=True) == {
        "state": "unchecked",
        "format": "edgetl",
        "key_id": key.public.key_id,
    }


def test_an_unsigned_bundle_is_described_as_unsigned(folder: Path) -> None:
    assert describe_signature(open_bundle(folder), None).model_dump(exclude_none=True) == {"state": "unsigned"}


def test_the_signature_file_has_one_line_of_json(signed: Path, key: PrivateKey) -> None:
    text = (signed / SIGNATURE_NAME).read_text()
    signature = key.sign((signed / MANIFEST_NAME).read_bytes()).hex()
    assert text == f'{{"schema_version":1,"algorithm":"ed25519","key_id":"{key.public.key_id}","signature":"{signature}"}}\n'


def test_signing_again_needs_overwrite(signed: Path, keys: Path) -> None:
    other = read_private_key(keys / "other.key")
    with pytest.raises(ConfigError, match=r"bundle/manifest\.sig exists already\. Replace it with --overwrite\."):
        sign_bundle(signed, other)
    sign_bundle(signed, other, overwrite=True)
    accept(signed, trust_keys([other.public]))


def test_a_damaged_bundle_is_not_signed(folder: Path, key: PrivateKey) -> None:
    flip(folder / "openvino-int8/model.bin")
    with pytest.raises(IntegrityError, match=r"model\.bin differs from the manifest"):
        sign_bundle(folder, key)
    assert not (folder / SIGNATURE_NAME).exists()


# --- tampering (A1 to A8): every file, the manifest and the signature included -----------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [MANIFEST_NAME, SIGNATURE_NAME, *FILES])
def test_a_changed_file_is_an_error_with_its_exit_code(signed: Path, trust: Trust, name: str, change: str) -> None:
    CHANGES[change](signed, name)
    assert code_of(signed, trust) == CODES.get(name, {}).get(change, 9)


def test_random_bit_flips_of_the_manifest_are_never_accepted(signed: Path, trust: Trust) -> None:
    whole, rng = (signed / MANIFEST_NAME).read_bytes(), random.Random(0)
    codes = []
    for _ in range(2000):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (signed / MANIFEST_NAME).unlink()  # a new file is written faster than an old one is replaced
        (signed / MANIFEST_NAME).write_bytes(changed)
        codes.append(code_of(signed, trust))
    assert codes == [20] * 2000


def test_a_changed_bit_of_the_signature_is_never_accepted(signed: Path, trust: Trust) -> None:
    whole, manifest = (signed / SIGNATURE_NAME).read_bytes(), (signed / MANIFEST_NAME).read_bytes()
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(SignatureError) as caught:
            trust.check(manifest, bytes(changed))
        assert caught.value.exit_code in (20, 22)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), socket_at], ids=["folder", "socket"])
def test_a_signature_that_is_not_a_file_is_an_error(folder: Path, trust: Trust, make: Callable[[Path], object]) -> None:
    make(folder / SIGNATURE_NAME)
    for call in (lambda: accept(folder, trust), lambda: open_bundle(folder)):
        with pytest.raises(BundleError, match=r"manifest\.sig"):
            call()


def test_a_manifest_cannot_list_its_signature(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"README.md"', '"manifest.sig"'))
    with pytest.raises(BundleError, match="two paths are equal"):
        open_bundle(folder)


# --- signatures that are not valid (A18) -------------------------------------------------------------------------------------------


def test_a_bundle_without_a_signature_is_unsigned(folder: Path, trust: Trust) -> None:
    with pytest.raises(UnsignedError, match=r"/bundle has no signature \(manifest\.sig\), but a key is required\. Sign it: edgetl sign"):
        accept(folder, trust)


def test_the_error_for_an_unknown_key_lists_the_trusted_keys(folder: Path, keys: Path, trust: Trust, key: PrivateKey) -> None:
    other = read_private_key(keys / "other.key")
    sign_bundle(folder, other)
    expected = rf"signed by the key {other.public.key_id}, which is not trusted\. Trusted keys: {key.public.key_id} \(release\)\."
    with pytest.raises(UnknownKeyError, match=expected):
        accept(folder, trust)


def signature_file(**changes: object) -> bytes:
    valid = {"schema_version": 1, "algorithm": "ed25519", "key_id": "0" * 16, "signature": "0" * 128}
    return (json.dumps({**valid, **changes}, separators=(",", ":")) + "\n").encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not valid JSON"),
        (b"\0" * 64, "is not valid JSON"),
        (b"[]\n", "does not fit its schema"),
        (signature_file(algorithm="rsa"), r"algorithm: Input should be 'ed25519'"),
        (signature_file(algorithm="none"), r"algorithm: Input should be 'ed25519'"),
        (signature_file(signature=""), "signature: String should match"),
        (signature_file(signature="0" * 126), "signature: String should match"),
        (signature_file(signature="AB" * 64), "signature: String should match"),
        (signature_file(signature=["0" * 128] * 2), "signature: Input should be a valid string"),
        (signature_file(signatures=[]), "signatures is not known"),
        (signature_file() * 2, "is not valid JSON"),
        (signature_file(key_id="0" * 15), "key_id: String should match"),
        (signature_file(key_id=1), "key_id: Input should be a valid string"),
        (signature_file(schema_version=2), "Upgrade edgetl"),
        (signature_file().replace(b":1,", b": 1,"), "is not written as edgetl writes it"),
        (signature_file().rstrip(), "is not written as edgetl writes it"),
    ],
)
def test_the_error_for_a_damaged_signature_shows_the_reason(trust: Trust, data: bytes, reason: str) -> None:
    with pytest.raises(SignatureError, match=rf"the bundle: manifest\.sig .*{reason}") as caught:
        trust.check(b"{}\n", data)
    assert caught.value.exit_code == 20


def test_a_signature_of_zeros_is_not_valid(signed: Path, trust: Trust, key: PrivateKey) -> None:
    (signed / SIGNATURE_NAME).write_bytes(signature_file(key_id=key.public.key_id))
    with pytest.raises(SignatureError, match=rf"signature of the key {key.public.key_id} \(release\) does not belong to this manifest"):
        accept(signed, trust)


def test_the_signature_of_another_bundle_is_not_valid(folder: Path, trust: Trust, key: PrivateKey) -> None:
    data = (folder / MANIFEST_NAME).read_bytes()
    (folder / MANIFEST_NAME).write_bytes(data.replace(b'"pets"', b'"cars"'))
    other = sign_bundle(folder, key).signature or b""
    with pytest.raises(SignatureError, match="does not belong to this manifest"):
        trust.check(data, other)


def test_a_signature_with_the_id_of_a_trusted_key_is_not_valid(signed: Path, trust: Trust, keys: Path, key: PrivateKey) -> None:
    forged = read_private_key(keys / "other.key").sign((signed / MANIFEST_NAME).read_bytes()).hex()
    (signed / SIGNATURE_NAME).write_bytes(SignatureFile(key_id=key.public.key_id, signature=forged).encode())
    assert code_of(signed, trust) == 20


@given(st.binary(max_size=400))
def test_other_bytes_are_never_a_signature(data: bytes) -> None:
    with pytest.raises(SignatureError):
        trust_keys([]).check(b"{}\n", data)


@given(st.integers(0, 2**64 - 1), st.binary(min_size=64, max_size=64))
def test_a_written_signature_file_is_read_again(number: int, signature: bytes) -> None:
    written = SignatureFile(key_id=f"{number:016x}", signature=signature.hex())
    assert SignatureFile.model_validate_json(written.encode(), strict=True) == written


# --- trust folders and revoked keys ------------------------------------------------------------------------------------------------


def test_a_trust_folder_accepts_the_signatures_of_all_its_keys(folder: Path, keys: Path, tmp_path: Path) -> None:
    trust = open_trust(trust_folder(tmp_path / "trust", *keys.glob("*.pub")))
    assert [item.name for item in trust.keys] == ["other", "release"]
    for name in ("other", "release"):
        sign_bundle(folder, read_private_key(keys / f"{name}.key"), overwrite=True)
        accept(folder, trust)


@pytest.mark.parametrize("present", [True, False])
def test_a_bundle_of_a_revoked_key_is_an_error(signed: Path, keys: Path, key: PrivateKey, tmp_path: Path, present: bool) -> None:
    """The public key file may still be in the folder, or may have been deleted."""
    files = [keys / "other.pub", *([keys / "release.pub"] if present else [])]
    trust = open_trust(trust_folder(tmp_path / "trust", *files, revoked=f"# list\n\n{key.public.fingerprint.upper()}  # stolen\n"))
    with pytest.raises(RevokedKeyError, match=rf"signed by the key {key.public.key_id}, which is revoked"):
        accept(signed, trust)


def test_a_key_is_revoked_under_every_id(signed: Path, key: PrivateKey, tmp_path: Path) -> None:
    """A public key file of minisign may have any ID."""
    folder = trust_folder(tmp_path / "trust", revoked=key.public.fingerprint)
    (folder / "copy.pub").write_bytes(write_public_key("0" * 16, key.public.raw, ""))
    signature = key.sign((signed / MANIFEST_NAME).read_bytes()).hex()
    (signed / SIGNATURE_NAME).write_bytes(SignatureFile(key_id="0" * 16, signature=signature).encode())
    assert code_of(signed, open_trust(folder)) == 23


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"trust has no public key \(\*\.pub\)"),
        ({"a.pub": b"x"}, r"a\.pub is not a public key: it does not have exactly 2 lines"),
        ({"a.pub": b"a\nb\n"}, r"a\.pub is not a public key: line 1 does not begin with"),
        ({"a.pub": b"untrusted comment: \nRWQ=\n"}, r"a\.pub is not a public key: line 2 does not have 42 bytes"),
        ({"a.pub": b"untrusted comment: \n" + b"A" * 56 + b"\n"}, r"a\.pub is not a public key: its algorithm is not Ed25519"),
        ({"revoked.txt": b"abc"}, r"revoked\.txt, line 1: this is not a fingerprint of 64 hexadecimal digits"),
        ({"revoked.txt": b"\xff"}, r"revoked\.txt is not UTF-8 text"),
    ],
)
def test_a_damaged_trust_folder_is_an_error(tmp_path: Path, keys: Path, files: dict[str, bytes], message: str) -> None:
    folder = trust_folder(tmp_path / "trust", *([keys / "release.pub"] if files else []))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        open_trust(folder)


def test_a_missing_trust_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trust is not a folder\. Give a folder with public keys"):
        open_trust(tmp_path / "trust")


def test_two_keys_with_the_same_id_are_an_error(tmp_path: Path, keys: Path) -> None:
    folder = trust_folder(tmp_path / "trust", keys / "release.pub")
    shutil.copy(keys / "release.pub", folder / "copy.pub")
    with pytest.raises(ConfigError, match="the public keys copy and release have the same ID"):
        open_trust(folder)


def test_keys_are_rotated_without_a_moment_in_which_no_bundle_is_accepted(folder: Path, tmp_path: Path) -> None:  # D12
    old = generate_key(tmp_path / "old.key")
    generate_key(tmp_path / "new.key")
    by_old, by_new = (shutil.copytree(folder, tmp_path / name) for name in ("by-old", "by-new"))
    for path, name in ((by_old, "old"), (by_new, "new")):
        sign_bundle(path, read_private_key(tmp_path / f"{name}.key"))
    device, offline = (trust_folder(tmp_path / name, tmp_path / "old.pub") for name in ("device", "offline"))

    # 1. Each device gets the new public key. Both keys are trusted; releases are still signed by the old one.
    trust_folder(device, tmp_path / "new.pub")
    assert [code_of(path, open_trust(device)) for path in (by_old, by_new)] == [0, 0]
    # A device that was offline does not accept the new key yet, and keeps its release.
    assert [code_of(path, open_trust(offline)) for path in (by_old, by_new)] == [0, 22]
    # 2. Releases are signed by the new key, and the old one is revoked.
    trust_folder(device, revoked=f"{old.fingerprint}  # replaced\n")
    assert [code_of(path, open_trust(device)) for path in (by_old, by_new)] == [23, 0]
    # 3. The old public key may be deleted. The device that was offline gets the same folder.
    (device / "old.pub").unlink()
    shutil.rmtree(offline)
    shutil.copytree(device, offline)
    assert [code_of(path, open_trust(offline)) for path in (by_old, by_new)] == [23, 0]


# --- changes between check and use (A16) -------------------------------------------------------------------------------------------


def test_a_bundle_that_is_replaced_repeatedly_is_never_accepted_with_other_files(
    signed: Path, keys: Path, trust: Trust, tmp_path: Path
) -> None:
    """A thread exchanges the whole folder with another complete bundle, with the signature of a key that is not trusted."""
    wanted = {path.relative_to(signed).as_posix(): path.read_bytes() for path in signed.rglob("*") if path.is_file()}
    evil = shutil.copytree(signed, tmp_path / "evil")
    for name in FILES:
        (evil / name).write_bytes(FILES[name][::-1])
    text = (evil / MANIFEST_NAME).read_text()
    for file in open_bundle(signed).manifest.all_files():
        text = text.replace(file.sha256, sha256(FILES[file.path][::-1]).hexdigest())
    (evil / MANIFEST_NAME).write_text(text)
    sign_bundle(evil, read_private_key(keys / "other.key"), overwrite=True)
    others = {name: (evil / name).read_bytes() for name in wanted}
    done = threading.Event()

    def exchange() -> None:
        contents = [others, wanted]
        while not done.is_set():
            contents.reverse()
            for name, data in contents[0].items():
                (tmp_path / "next").write_bytes(data)
                (tmp_path / "next").replace(signed / name)

    thread = threading.Thread(target=exchange)
    thread.start()
    read, refused = 0, 0
    try:
        while refused < 200 or (read < 20 and refused < 3000):
            try:
                bundle, _ = verified_bundle(signed, trust)
                for file in bundle.manifest.all_files():
                    assert bundle.read(file) == FILES[file.path]
                    read += 1
            except BundleError:
                refused += 1
    finally:
        done.set()
        thread.join()


def test_the_digest_of_a_bundle_is_that_of_the_manifest(signed: Path) -> None:
    data = (signed / MANIFEST_NAME).read_bytes()
    assert open_bundle(signed).manifest_sha256 == sha256(data).hexdigest()
