"""Key files: Ed25519 private keys (PKCS#8 PEM) and public keys (format of minisign)."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from edgetl.core.config import read_bytes
from edgetl.core.files.atomic import write_bytes
from edgetl.device.minisign import read_public_key, write_public_key
from edgetl.errors import ConfigError

PUBLIC_SUFFIX = ".pub"
MAX_KEY_BYTES = 10_000

_log = logging.getLogger(__name__)

# Encodings of points of small order, without the sign bit. Such a key accepts signatures that nobody made. Source: the list of libsodium
# (``ge25519_has_small_order``).
_WEAK_KEYS = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


@dataclass(frozen=True)
class PublicKey:
    """Ed25519 public key.

    Attributes:
        name: name of the key: the name of its file, without the suffix.
        key_id: key ID, 16 hexadecimal digits. Signatures contain it.
        raw: public key, 32 bytes.
    """

    name: str
    key_id: str
    raw: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of ``raw``, 64 hexadecimal digits. The key ID of keys of edgetl is its beginning."""
        return sha256(self.raw).hexdigest()

    def accepts(self, signature: bytes, data: bytes) -> bool:
        """Return true if ``signature`` (64 bytes) is the key's signature of ``data``."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """Ed25519 private key.

    Attributes:
        name: name of the key: the name of its file, without the suffix.
    """

    name: str
    _key: Ed25519PrivateKey = field(repr=False)

    @cached_property
    def public(self) -> PublicKey:
        """Public key of this private key."""
        raw = self._key.public_key().public_bytes_raw()
        return PublicKey(self.name, sha256(raw).hexdigest()[:16], raw)

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature of ``data``, 64 bytes. It is always the same for the same data."""
        return self._key.sign(data)


def public_path(path: Path) -> Path:
    """Return the path of the public key file beside the private key file ``path``: ``release.pub`` for ``release.key``."""
    return path.with_name(f"{_name(path)}{PUBLIC_SUFFIX}")


def generate_key(path: Path, *, passphrase: bytes | None = None) -> PublicKey:
    """Generate a key pair: a private key file that only its owner can read, and a public key file beside it (``public_path``).

    Args:
        path: private key file to write, PKCS#8 PEM.
        passphrase: passphrase that encrypts the private key. None writes it unencrypted.

    Raises:
        ConfigError: one of the files exists, or the passphrase is empty.
        StorageError: a file cannot be written.
    """
    if path.name in ("", "..") or path.suffix == PUBLIC_SUFFIX:
        raise ConfigError(f"{path} is not a name for a private key. Choose another one, such as release.key.")
    if passphrase == b"":
        raise ConfigError("the passphrase is empty. Choose a passphrase, or generate the key without one.")
    for existing in (path, public_path(path)):
        if os.path.lexists(existing):
            raise ConfigError(f"{existing} exists already. Keys are never replaced. Choose another name.")
    key = PrivateKey(_name(path), Ed25519PrivateKey.generate())
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    write_bytes(path, key._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), mode=0o600)
    comment = f"edgetl public key {key.public.key_id.upper()}"
    write_bytes(public_path(path), write_public_key(key.public.key_id, key.public.raw, comment))
    return key.public


def is_encrypted(path: Path) -> bool:
    """Return true if a private key file needs a passphrase.

    Raises:
        ConfigError: the file cannot be read.
    """
    return b"BEGIN ENCRYPTED PRIVATE KEY" in read_bytes(path, ConfigError, max_bytes=MAX_KEY_BYTES)


def read_private_key(path: Path, *, passphrase: bytes | None = None) -> PrivateKey:
    """Read a private key file. A warning is logged if other users can read it.

    Args:
        path: Ed25519 private key, PKCS#8 PEM, as ``generate_key`` or ``openssl genpkey -algorithm ed25519`` writes it.
        passphrase: passphrase of an encrypted file. It is not used for other files.

    Raises:
        ConfigError: the file cannot be read, is not an Ed25519 private key, or the passphrase is missing or wrong.
    """
    encrypted, data = is_encrypted(path), read_bytes(path, ConfigError, max_bytes=MAX_KEY_BYTES)
    if encrypted and not passphrase:
        raise ConfigError(f"{path} is encrypted. Give its passphrase.")
    try:
        key = load_pem_private_key(data, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise ConfigError(f"{path} cannot be decrypted. Check the passphrase.") from error
        raise ConfigError(f"{path} is not a private key (PKCS#8 PEM). Give a file that `edgetl keygen` wrote.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is a private key of another algorithm. Give an Ed25519 key, as `edgetl keygen` writes it.")
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        _log.warning("%s can be read by other users. Correct it: chmod 600 %s", path, path)
    return PrivateKey(_name(path), key)


def load_public_key(path: Path) -> PublicKey:
    """Read a public key file.

    Args:
        path: file in the format of minisign, as ``generate_key`` or ``minisign -G`` writes it.

    Raises:
        ConfigError: the file cannot be read, or is not a public key.
    """
    data = read_bytes(path, ConfigError, max_bytes=MAX_KEY_BYTES)
    if b"PRIVATE KEY" in data:
        raise ConfigError(f"{path} is a private key. Keep it secret, and give the public key ({public_path(path).name}).")
    try:
        key_id, raw = read_public_key(data)
    except ValueError as error:
        raise ConfigError(f"{path} is not a public key: {error}. Give a .pub file of `edgetl keygen` or minisign.") from error
    if raw[:31] + bytes([raw[31] & 0x7F]) in _WEAK_KEYS:
        raise ConfigError(f"{path} is a weak public key: it accepts forged signatures. Remove it, and get another key from its owner.")
    return PublicKey(_name(path), key_id, raw)


def _name(path: Path) -> str:
    return path.stem if path.suffix in (".key", ".pem", PUBLIC_SUFFIX) else path.name
