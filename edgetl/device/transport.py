"""Transport file of a bundle (``.edgetl``): an uncompressed zip in one canonical form.

The same bundle always has the same bytes. ``unpack`` reads the file from its beginning and accepts only this form: each header must equal
the header that ``pack`` writes for the next file of the manifest. Names, sizes, order and total size follow from the manifest, which is
the first file. There is nothing that two zip readers could understand differently.

Source of the format: APPNOTE.TXT 6.3.10 of PKWARE, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (end record).
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from edgetl.core.bundle import MAX_SIGNATURE_BYTES, TRANSPORT_SUFFIX, Bundle, parse_bundle, parse_manifest, read_manifest
from edgetl.core.config import MAX_JSON_BYTES
from edgetl.core.files.atomic import storage_error, write_chunks
from edgetl.core.files.regular import open_plain
from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME, BundleFile, Manifest
from edgetl.device.signature import Trust
from edgetl.errors import BundleError, ConfigError, IntegrityError

MAX_FILES = 64
# Offsets of the zip format without its 64-bit extension that every reader supports.
MAX_BYTES = 2**31 - 1

_BLOCK_BYTES = 1 << 20
# Paths of the manifest have at most 255 characters.
_MAX_NAME_BYTES = 1020
_LOCAL_MARK = b"PK\3\4"
_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
# Version 2.0, stored, 1980-01-01 00:00. The attributes are those of a regular file with permissions 0644 on Unix.
_VERSION, _STORED, _TIME, _DATE = 20, 0, 0, 0x21
_UNIX, _ATTRIBUTES = 3 << 8, 0o100644 << 16


@dataclass(frozen=True)
class _Member:
    """Member of the zip: name, size, CRC-32, and offset of its local header."""

    name: bytes
    size: int
    crc: int
    offset: int

    @property
    def flags(self) -> int:
        """Bit 11 marks a name in UTF-8. It is not set for ASCII names, as in files of Python's ``zipfile``."""
        return 0 if self.name.isascii() else 0x800

    def local_header(self) -> bytes:
        sizes = (self.crc, self.size, self.size, len(self.name), 0)
        return _LOCAL.pack(_LOCAL_MARK, _VERSION, self.flags, _STORED, _TIME, _DATE, *sizes) + self.name

    def central_header(self) -> bytes:
        sizes = (self.crc, self.size, self.size, len(self.name), 0, 0, 0, 0, _ATTRIBUTES, self.offset)
        return _CENTRAL.pack(b"PK\1\2", _UNIX | _VERSION, _VERSION, self.flags, _STORED, _TIME, _DATE, *sizes) + self.name

    @property
    def end(self) -> int:
        """Offset of the byte after the member."""
        return self.offset + _LOCAL.size + len(self.name) + self.size


@dataclass(frozen=True)
class TransportHead:
    """Beginning of a transport file: the manifest and its signature.

    Attributes:
        manifest: content of the manifest.
        manifest_data: bytes of ``manifest.json``.
        signature: bytes of ``manifest.sig``; none without a signature.
        size_bytes: size of the whole transport file, which follows from the manifest.
    """

    manifest: Manifest
    manifest_data: bytes
    signature: bytes | None
    size_bytes: int


def pack(bundle: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write a bundle folder as a transport file. Each file is verified while it is written.

    Args:
        bundle: folder of the bundle. A signature is included.
        out: file to write; its name ends with ``.edgetl``.
        overwrite: replace an existing file.

    Raises:
        BundleError: ``bundle`` is not a bundle, or has more than 64 files or 2 GiB.
        IntegrityError: a file differs from the manifest.
        ConfigError: ``out`` has another suffix, or exists and ``overwrite`` is false.
        StorageError: ``out`` cannot be written.
    """
    if out.suffix != TRANSPORT_SUFFIX:
        raise ConfigError(f"{out}: the name of a transport file ends with {TRANSPORT_SUFFIX}. Choose another --out.")
    if os.path.lexists(out) and not (overwrite and out.is_file() and not out.is_symlink()):
        raise ConfigError(f"{out} exists already. Choose another --out, or replace the file with --overwrite.")
    data, signature = read_manifest(bundle)
    opened = parse_bundle(bundle, data, signature)
    _total_bytes(opened.manifest, data, signature, str(bundle))
    write_chunks(out, _packed(opened, data))


def _packed(bundle: Bundle, manifest: bytes) -> Iterator[bytes]:
    head = [(MANIFEST_NAME, manifest), *([(SIGNATURE_NAME, bundle.signature)] if bundle.signature is not None else [])]
    files = ((file.path, bundle.read(file)) for file in bundle.manifest.all_files())
    members: list[_Member] = []
    for name, data in chain(head, files):
        members.append(_Member(name.encode(), len(data), zlib.crc32(data), members[-1].end if members else 0))
        yield members[-1].local_header()
        yield data
    yield _directory(members)


def _directory(members: Sequence[_Member]) -> bytes:
    """Return the end of the zip: central directory and end record."""
    headers = b"".join(member.central_header() for member in members)
    count = len(members)
    return headers + _END.pack(b"PK\5\6", 0, 0, count, count, len(headers), members[-1].end, 0)


def _total_bytes(manifest: Manifest, data: bytes, signature: bytes | None, name: str) -> int:
    """Return the size of the transport file, bytes.

    Raises:
        BundleError: the bundle has too many files, or is too large.
    """
    sizes = [(file.path, file.size_bytes) for file in manifest.all_files()]
    sizes += [(MANIFEST_NAME, len(data)), *([(SIGNATURE_NAME, len(signature))] if signature is not None else [])]
    total = _END.size + sum(_LOCAL.size + _CENTRAL.size + 2 * len(path.encode()) + size for path, size in sizes)
    if len(sizes) > MAX_FILES or total > MAX_BYTES:
        raise BundleError(
            f"{name} has {len(sizes)} files and needs {total:,} bytes. A transport file has at most {MAX_FILES} files and "
            f"{MAX_BYTES:,} bytes. Export fewer variants."
        )
    return total


def read_head(stream: BinaryIO, name: str, *, trust: Trust | None = None) -> TransportHead:
    """Read the manifest and the signature at the beginning of a transport file. The rest of the file may be missing.

    Args:
        stream: seekable file, at its beginning. Afterwards it is at the first file of the bundle.
        name: name of the file in messages.
        trust: trusted keys. The signature is checked before the manifest is parsed. None checks no signature.

    Raises:
        BundleError: the file is not a transport file, is too large, or the manifest is not valid.
        IntegrityError: the file is damaged or truncated.
        SignatureError: the signature is missing or not valid (see ``Trust.check``).
    """
    return _Reader(stream, name).head(trust)


def unpack(file: Path, folder: Path, *, trust: Trust | None = None) -> None:
    """Unpack a transport file into a new folder with permissions 0700. If that fails, the folder is removed.

    Each file is compared with its size and SHA-256 in the manifest. Nothing is written before the signature is checked.

    Args:
        file: transport file.
        folder: folder to create. Its parent exists.
        trust: trusted keys. None checks no signature: use ``verified_bundle`` afterwards.

    Raises:
        BundleError: ``file`` is not a transport file, is too large, or the manifest is not valid.
        IntegrityError: ``file`` is damaged or truncated, or differs from the form that ``pack`` writes.
        SignatureError: the signature is missing or not valid (see ``Trust.check``).
        StorageError: the folder cannot be written.
    """
    try:
        stream = open_plain(file)
    except OSError as error:
        raise BundleError(f"cannot read {file}: {error.strerror}. Give a file that `edgetl pack` wrote.") from error
    with stream:
        reader = _Reader(stream, str(file))
        head = reader.head(trust)
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise storage_error(folder, error) from error
        try:
            _write(folder / MANIFEST_NAME, [head.manifest_data])
            if head.signature is not None:
                _write(folder / SIGNATURE_NAME, [head.signature])
            for entry in head.manifest.all_files():
                _write(folder / entry.path, reader.blocks(entry))
            reader.end()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def unpacked(path: Path, *, trust: Trust | None = None) -> Iterator[Path]:
    """Yield the folder of a bundle: ``path`` itself, or a temporary folder with the content of a transport file (``unpack``)."""
    if not (path.is_file() and path.suffix == TRANSPORT_SUFFIX):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="edgetl-") as scratch:
        folder = Path(scratch, path.stem)
        unpack(path, folder, trust=trust)
        yield folder


def _write(path: Path, blocks: Iterable[bytes]) -> None:
    """Create a file with ``blocks``. Its parent folders are created."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o644)
        with open(descriptor, "wb") as file:
            for block in blocks:
                file.write(block)
    except OSError as error:
        raise storage_error(path, error) from error


class _Reader:
    """Sequential reader of a transport file. It never reads more than the manifest lists."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._members: list[_Member] = []

    def head(self, trust: Trust | None) -> TransportHead:
        """Read the manifest and the signature; see ``read_head``."""
        if self._stream.read(4) != _LOCAL_MARK:
            raise BundleError(f"{self._name} is not a transport file of a bundle. Give a file that `edgetl pack` wrote.")
        self._stream.seek(0)
        data = self._small(self._open(), MANIFEST_NAME, MAX_JSON_BYTES)
        signature = None
        following = self._open()
        if following.name == SIGNATURE_NAME.encode():
            signature = self._small(following, SIGNATURE_NAME, MAX_SIGNATURE_BYTES)
        else:
            self._stream.seek(self._members.pop().offset)
        if trust is not None:
            trust.check(data, signature, name=self._name)
        manifest = parse_manifest(data, f"{self._name}: {MANIFEST_NAME}")
        return TransportHead(manifest, data, signature, _total_bytes(manifest, data, signature, self._name))

    def blocks(self, entry: BundleFile) -> Iterator[bytes]:
        """Yield the content of the next member, which must be the file ``entry`` of the manifest."""
        member, digest = self._open(), sha256()
        if (member.name, member.size) != (entry.path.encode(), entry.size_bytes):
            found = f"{member.name.decode(errors='replace')!r} with {member.size} bytes"
            raise self._damaged(f"it has {found}, but the manifest lists {entry.path} with {entry.size_bytes} bytes")
        for block in self._content(member):
            digest.update(block)
            yield block
        if digest.hexdigest() != entry.sha256:
            raise self._damaged(f"{entry.path} differs from the manifest (SHA-256)")

    def end(self) -> None:
        """Read the rest of the file: the directory of the members, and nothing else."""
        expected = _directory(self._members)
        if self._read(len(expected) + 1, at_most=True) != expected:
            raise self._damaged("its directory does not list exactly these files, or bytes follow it")

    def _open(self) -> _Member:
        """Read the next local header. It must equal the header that ``pack`` writes for this name, size and checksum."""
        fixed = self._read(_LOCAL.size)
        *_, crc, size, _, length, _ = _LOCAL.unpack(fixed)
        name = self._read(min(length, _MAX_NAME_BYTES))
        member = _Member(name, size, crc, self._members[-1].end if self._members else 0)
        if member.local_header() != fixed + name:
            raise self._damaged(f"the header at byte {member.offset} is not as `edgetl pack` writes it")
        self._members.append(member)
        return member

    def _small(self, member: _Member, name: str, max_bytes: int) -> bytes:
        if member.name != name.encode() or member.size > max_bytes:
            raise self._damaged(f"{name} is not at the beginning, or has more than {max_bytes} bytes")
        return b"".join(self._content(member))

    def _content(self, member: _Member) -> Iterator[bytes]:
        crc = 0
        for start in range(0, member.size, _BLOCK_BYTES):
            block = self._read(min(_BLOCK_BYTES, member.size - start))
            crc = zlib.crc32(block, crc)
            yield block
        if crc != member.crc:
            raise self._damaged(f"{member.name.decode(errors='replace')} differs from its checksum")

    def _read(self, size: int, *, at_most: bool = False) -> bytes:
        try:
            data = self._stream.read(size)
        except OSError as error:
            raise BundleError(f"cannot read {self._name}: {error.strerror}.") from error
        if len(data) < size and not at_most:
            raise self._damaged("it is truncated")
        return data

    def _damaged(self, reason: str) -> IntegrityError:
        return IntegrityError(f"{self._name} is damaged: {reason}. Copy the file again.")
