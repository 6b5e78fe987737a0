"""Signatures of bundles: Ed25519 signatures over the bytes of the manifest, trusted public keys, revoked keys.

The manifest lists the size and SHA-256 of every file. A signature of the manifest therefore covers the whole bundle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from edgetl.core.bundle import Bundle, parse_bundle, read_manifest
from edgetl.core.config import StrictModel, parse_json, read_bytes
from edgetl.core.files.atomic import write_bytes
from edgetl.core.manifest import SIGNATURE_NAME
from edgetl.device.config import TrustConfig
from edgetl.device.keys import PUBLIC_SUFFIX, PrivateKey, PublicKey, load_public_key
from edgetl.device.minisign import MinisignSignature, is_minisign, prehash, read_signature
from edgetl.errors import ConfigError, RevokedKeyError, SignatureError, UnknownKeyError, UnsignedError
from edgetl.runtime.gallery.file import OpenedGallery

REVOKED_NAME = "revoked.txt"

SignatureFormat: TypeAlias = Literal["edgetl", "minisign"]
# Files with a signature: the manifest of a bundle, and a gallery.
Signed: TypeAlias = Literal["bundle", "gallery"]
_PLACES: dict[Signed, str] = {"bundle": f" ({SIGNATURE_NAME})", "gallery": ""}
_REMEDIES: dict[Signed, str] = {
    "bundle": "edgetl sign BUNDLE --key KEY",
    "gallery": "edgetl gallery add BUNDLE IMAGE --label NAME --sign-key KEY",
}


class SignatureFile(StrictModel):
    """Content of ``manifest.sig`` in edgetl's format.

    Attributes:
        schema_version: version of this format.
        algorithm: signature algorithm: Ed25519 (RFC 8032) over the exact bytes of ``manifest.json``.
        key_id: ID of the key, the first 16 digits of the SHA-256 of the public key (32 bytes).
        signature: signature, 128 hexadecimal digits.
    """

    schema_version: Literal[1] = 1
    algorithm: Literal["ed25519"] = "ed25519"
    key_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    def encode(self) -> bytes:
        """Return the bytes of the file. No other bytes are valid for the same values."""
        return f"{self.model_dump_json()}\n".encode()


class SignatureState(StrictModel):
    """Signature of a bundle, for reports.

    Attributes:
        state: ``valid``: a trusted key made it. ``unchecked``: no key was given. ``unsigned``: there is no signature.
        format: format of the signature file; none if unsigned.
        key_id: key ID in the signature; none if unsigned.
        key: name of the trusted key; none unless ``valid``.
        fingerprint: SHA-256 of the trusted key, 64 hexadecimal digits; none unless ``valid``.
    """

    state: Literal["valid", "unchecked", "unsigned"]
    format: SignatureFormat | None = None
    key_id: str | None = None
    key: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Trust:
    """Trusted public keys and revoked keys.

    Attributes:
        keys: trusted keys. Their key IDs differ.
        revoked: fingerprints of revoked keys.
    """

    keys: tuple[PublicKey, ...]
    revoked: frozenset[str] = frozenset()

    def check(self, data: bytes, signature: bytes | None, *, name: str = "the bundle", kind: Signed = "bundle") -> PublicKey:
        """Check the signature of a manifest or of a gallery.

        Args:
            data: exact bytes of ``manifest.json`` or of the gallery.
            signature: bytes of ``manifest.sig`` or of the signature in the gallery file; none if there is no signature.
            name: name of the bundle or of the gallery in messages.
            kind: ``bundle`` or ``gallery``.

        Returns:
            the trusted key that made the signature.

        Raises:
            UnsignedError: there is no signature.
            RevokedKeyError: the key is revoked.
            UnknownKeyError: the key is not trusted.
            SignatureError: the signature is damaged, has another algorithm, or does not belong to this manifest.
        """
        if signature is None:
            raise UnsignedError(f"{name} has no signature{_PLACES[kind]}, but a key is required. Sign it: {_REMEDIES[kind]}")
        found = _parse(signature, name, kind)
        key = next((key for key in self.keys if key.key_id == found.key_id), None)
        # The key ID of a key of edgetl is the beginning of its fingerprint: the key file may be deleted after the revocation.
        if any(item.startswith(found.key_id) for item in self.revoked) or (key is not None and key.fingerprint in self.revoked):
            raise RevokedKeyError(
                f"{name} is signed by the key {found.key_id}, which is revoked. Get a {kind} with a signature of another key."
            )
        if key is None:
            known = ", ".join(f"{item.key_id} ({item.name})" for item in self.keys)
            raise UnknownKeyError(
                f"{name} is signed by the key {found.key_id}, which is not trusted. Trusted keys: {known}. If you know the key, add its "
                f"public key to the trusted keys."
            )
        if not _is_valid(found, key, data):
            content = "manifest" if kind == "bundle" else kind
            raise SignatureError(
                f"{name}: the signature of the key {key.key_id} ({key.name}) does not belong to this {content}. The {content} or the "
                f"signature was changed. Copy the {kind} again, or get it from another source."
            )
        return key


def configured_trust(config: TrustConfig) -> Trust | None:
    """Return the trusted keys of the options; none if no key is given.

    Raises:
        ConfigError: a signature is required, but no key is given; or a key or folder is not valid.
    """
    if config.key is not None:
        return trust_keys([load_public_key(config.key)])
    if config.trust is not None:
        return open_trust(config.trust)
    if config.require_signature:
        raise ConfigError("--require-signature needs trusted keys. Add --key KEY.pub or --trust FOLDER, or set EDGETL_TRUST.")
    return None


def open_trust(folder: Path) -> Trust:
    """Read a trust folder: public keys (``*.pub``), and optionally the fingerprints of revoked keys in ``revoked.txt``.

    Raises:
        ConfigError: the folder is missing or has no public key, a file is not valid, or two keys have the same ID.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder. Give a folder with public keys (*{PUBLIC_SUFFIX}).")
    keys = tuple(load_public_key(path) for path in sorted(folder.glob(f"*{PUBLIC_SUFFIX}")))
    if not keys:
        raise ConfigError(f"{folder} has no public key (*{PUBLIC_SUFFIX}). Copy the public keys that you trust into it.")
    return trust_keys(keys, _read_revoked(folder / REVOKED_NAME))


def trust_keys(keys: Iterable[PublicKey], revoked: Iterable[str] = ()) -> Trust:
    """Return a ``Trust`` of public keys and of the fingerprints of revoked keys.

    Raises:
        ConfigError: two keys have the same ID.
    """
    names: dict[str, str] = {}
    trust = Trust(tuple(keys), frozenset(revoked))
    for key in trust.keys:
        if key.key_id in names:
            raise ConfigError(f"the public keys {names[key.key_id]} and {key.name} have the same ID {key.key_id}. Remove one of them.")
        names[key.key_id] = key.name
    return trust


def _read_revoked(path: Path) -> frozenset[str]:
    """Read the revocation list: a fingerprint in each line, and optionally a comment after ``#``."""
    if not path.exists():
        return frozenset()
    found = set()
    try:
        lines = read_bytes(path, ConfigError).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text. Write one fingerprint in each line.") from error
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip().lower()
        if text and not re.fullmatch("[0-9a-f]{64}", text):
            raise ConfigError(f"{path}, line {number}: this is not a fingerprint of 64 hexadecimal digits. Correct the line.")
        found.add(text)
    return frozenset(found - {""})


def verified_bundle(path: Path, trust: Trust | None) -> tuple[Bundle, PublicKey | None]:
    """Open a bundle folder after a check of its signature. The manifest is parsed from the bytes that were checked.

    Files are read and compared with this manifest on demand (``Bundle.read``).

    Args:
        path: folder of the bundle.
        trust: trusted keys. None opens the bundle without a check of its signature.

    Returns:
        the bundle and the key that signed it; no key without ``trust``.

    Raises:
        BundleError: the folder is not a bundle.
        SignatureError: the signature is missing or not valid (see ``Trust.check``).
        IntegrityError: files are missing or unlisted.
    """
    data, signature = read_manifest(path)
    key = trust.check(data, signature, name=str(path)) if trust is not None else None
    return parse_bundle(path, data, signature), key


def check_gallery(gallery: OpenedGallery, trust: Trust | None) -> PublicKey | None:
    """Check the signature of a gallery, and return its key; None without trusted keys.

    Raises:
        SignatureError: the signature is missing or not valid (see ``Trust.check``).
    """
    return None if trust is None else trust.check(gallery.text, gallery.signature, name=str(gallery.path), kind="gallery")


def sign_bundle(path: Path, key: PrivateKey, *, format_: SignatureFormat = "edgetl", overwrite: bool = False) -> Bundle:
    """Sign a bundle folder: write ``manifest.sig``. All files are verified first.

    Args:
        path: folder of the bundle.
        key: private key.
        format_: ``edgetl``, or ``minisign`` for a signature that the minisign tool verifies.
        overwrite: replace an existing signature.

    Raises:
        BundleError: the folder is not a bundle.
        IntegrityError: a file differs from the manifest.
        ConfigError: the bundle has a signature, and ``overwrite`` is false.
        StorageError: the signature cannot be written.
    """
    data, existing = read_manifest(path)
    if existing is not None and not overwrite:
        raise ConfigError(f"{path / SIGNATURE_NAME} exists already. Replace it with --overwrite.")
    bundle = parse_bundle(path, data, existing)
    for file in bundle.manifest.all_files():
        bundle.read(file)
    signature = sign(data, key, f"bundle of edgetl, release {bundle.manifest.release}", format_)
    write_bytes(path / SIGNATURE_NAME, signature)
    return parse_bundle(path, data, signature)


def describe_signature(bundle: Bundle, key: PublicKey | None) -> SignatureState:
    """Return the state of a bundle's signature. ``key`` is the key that ``verified_bundle`` returned.

    Raises:
        SignatureError: there is a signature, but its file is damaged or has another algorithm.
    """
    return signature_state(bundle.signature, key, name=str(bundle.path))


def signature_state(signature: bytes | None, key: PublicKey | None, *, name: str, kind: Signed = "bundle") -> SignatureState:
    """Return the state of a signature. ``key`` is the trusted key that made it, if it was checked.

    Raises:
        SignatureError: there is a signature, but it is damaged or has another algorithm.
    """
    if signature is None:
        return SignatureState(state="unsigned")
    found = _parse(signature, name, kind)
    format_: SignatureFormat = "minisign" if isinstance(found, MinisignSignature) else "edgetl"
    if key is None:
        return SignatureState(state="unchecked", format=format_, key_id=found.key_id)
    return SignatureState(state="valid", format=format_, key_id=key.key_id, key=key.name, fingerprint=key.fingerprint)


def sign(data: bytes, key: PrivateKey, comment: str, format_: SignatureFormat = "edgetl") -> bytes:
    """Return the bytes of a signature of ``data``. ``comment`` is part of a minisign signature."""
    key_id = key.public.key_id
    if format_ == "edgetl":
        return SignatureFile(key_id=key_id, signature=key.sign(data).hex()).encode()
    unsigned = MinisignSignature(key_id, key.sign(prehash(data)), comment, b"")
    return MinisignSignature(key_id, unsigned.signature, comment, key.sign(unsigned.comment_data)).encode()


def _parse(data: bytes, name: str, kind: Signed = "bundle") -> SignatureFile | MinisignSignature:
    where = f"{name}: {SIGNATURE_NAME if kind == 'bundle' else 'the signature'}"
    if is_minisign(data):
        try:
            return read_signature(data)
        except ValueError as error:
            raise SignatureError(f"{where} is not a valid signature file: {error}. Sign the {kind} again.") from error
    found = parse_json(data, SignatureFile, SignatureError, name=where)
    if found.encode() != data:
        raise SignatureError(f"{where} was changed: it is not written as edgetl writes it. Copy the {kind} again.")
    return found


def _is_valid(found: SignatureFile | MinisignSignature, key: PublicKey, manifest: bytes) -> bool:
    if isinstance(found, SignatureFile):
        return key.accepts(bytes.fromhex(found.signature), manifest)
    return key.accepts(found.signature, prehash(manifest)) and key.accepts(found.comment_signature, found.comment_data)
