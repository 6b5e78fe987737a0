"""File formats of minisign (https://jedisct1.github.io/minisign/): public keys, and signatures of prehashed files.

This module reads and writes the formats. It does no cryptography except BLAKE2b, the hash of the signed file.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from hashlib import blake2b

_COMMENT, _TRUSTED = "untrusted comment: ", "trusted comment: "
# Algorithm of a public key, of a signature of the BLAKE2b-512 hash of the file, and of a signature of the file itself.
_KEY, _PREHASHED, _LEGACY = b"Ed", b"ED", b"Ed"


@dataclass(frozen=True)
class MinisignSignature:
    """Signature in minisign's format.

    Attributes:
        key_id: key ID, 16 hexadecimal digits as minisign shows them, but in lower case.
        signature: Ed25519 signature of the hash (``prehash``), 64 bytes.
        trusted_comment: comment that ``comment_signature`` covers.
        comment_signature: Ed25519 signature of ``signature`` and the trusted comment, 64 bytes.
    """

    key_id: str
    signature: bytes
    trusted_comment: str
    comment_signature: bytes

    def encode(self) -> bytes:
        """Return the bytes of the signature file."""
        lines = (
            f"{_COMMENT}signature of a bundle of edgetl",
            _encode(_PREHASHED + _id_bytes(self.key_id) + self.signature),
            f"{_TRUSTED}{self.trusted_comment}",
            _encode(self.comment_signature),
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def comment_data(self) -> bytes:
        """Bytes that ``comment_signature`` signs."""
        return self.signature + self.trusted_comment.encode()


def prehash(data: bytes) -> bytes:
    """Return the BLAKE2b-512 hash of a file, 64 bytes. Ed25519 signs this hash."""
    return blake2b(data).digest()


def is_minisign(data: bytes) -> bool:
    """Return true if ``data`` begins like a file of minisign."""
    return data.startswith(_COMMENT.encode())


def write_public_key(key_id: str, raw: bytes, comment: str) -> bytes:
    """Return the bytes of a public key file. ``raw`` is the Ed25519 public key, 32 bytes."""
    return f"{_COMMENT}{comment}\n{_encode(_KEY + _id_bytes(key_id) + raw)}\n".encode()


def read_public_key(data: bytes) -> tuple[str, bytes]:
    """Return the key ID and the Ed25519 public key (32 bytes) of a public key file.

    Raises:
        ValueError: the file is not a public key. The message has the reason, without a full stop.
    """
    comment, key = _lines(data, 2)
    if not comment.startswith(_COMMENT):
        raise ValueError(f"line 1 does not begin with {_COMMENT.strip()!r}")
    decoded = _decode(key, 42, "line 2")
    if decoded[:2] != _KEY:
        raise ValueError("its algorithm is not Ed25519")
    return _id_text(decoded[2:10]), decoded[10:]


def read_signature(data: bytes) -> MinisignSignature:
    """Return the signature of a signature file.

    Raises:
        ValueError: the file is not one prehashed signature. The message has the reason, without a full stop.
    """
    comment, signature, trusted, comment_signature = _lines(data, 4)
    if not comment.startswith(_COMMENT) or not trusted.startswith(_TRUSTED):
        raise ValueError(f"lines 1 and 3 must begin with {_COMMENT.strip()!r} and {_TRUSTED.strip()!r}")
    decoded = _decode(signature, 74, "line 2")
    if decoded[:2] == _LEGACY:
        raise ValueError("it is a signature in minisign's legacy format. Sign without -l, by minisign 0.10 or later")
    if decoded[:2] != _PREHASHED:
        raise ValueError("its algorithm is not prehashed Ed25519")
    return MinisignSignature(
        key_id=_id_text(decoded[2:10]),
        signature=decoded[10:],
        trusted_comment=trusted.removeprefix(_TRUSTED),
        comment_signature=_decode(comment_signature, 64, "line 4"),
    )


def _lines(data: bytes, count: int) -> list[str]:
    """Split a file with exactly ``count`` lines. Each line ends with a line feed."""
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    if len(lines) != count + 1 or lines[-1] or "\r" in data.decode("utf-8"):
        raise ValueError(f"it does not have exactly {count} lines that end with a line feed")
    return lines[:-1]


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(text: str, size: int, place: str) -> bytes:
    """Decode base64 of ``size`` bytes. Other spellings of the same bytes are errors, so that no bit of the text is free."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{place} is not base64") from error
    if len(data) != size or _encode(data) != text:
        raise ValueError(f"{place} does not have {size} bytes in base64")
    return data


def _id_bytes(key_id: str) -> bytes:
    # minisign shows the ID as a little-endian 64-bit number.
    return bytes.fromhex(key_id)[::-1]


def _id_text(data: bytes) -> str:
    return data[::-1].hex()
