"""Members of a shard: images with their labels, groups and splits, read from the headers of a tar archive.

The layout is that of WebDataset: ``KEY.jpg`` and ``KEY.cls`` follow each other, with ``KEY.json`` if there is one. The key ends at the
first dot of the file name. ``KEY.cls`` has the class, as its name or its index. ``KEY.json`` may have the fields ``group`` and ``split``.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edgetl.core.files.byte_ranges import ByteRange
from edgetl.core.files.names import label_problem, printable
from edgetl.core.files.regular import open_plain
from edgetl.core.images.decode import EXTENSIONS
from edgetl.data.inputs.tar_shards import DamageError, check_end, check_headers
from edgetl.data.layout import Part
from edgetl.data.scan_notes import Notes
from edgetl.errors import DataError

LABEL_SUFFIX, FACTS_SUFFIX = "cls", "json"
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_LIMITS = {LABEL_SUFFIX: 1_000, FACTS_SUFFIX: 100_000}
# Characters of a suffix in notes.
_SUFFIX_LENGTH = 20
_META = re.compile(r"__[^/]*__($|/)")
_PARTS: dict[Any, Part] = {"train": "train", "val": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Annotation:
    """Annotation of an image: its class, its group and its split.

    Attributes:
        label: class, as its name or its index.
        group: group of the image; empty without one. Images of a group are in one split.
        part: split of a ready-made split; none without one.
    """

    label: str
    group: str = ""
    part: Part | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """Image in a shard.

    Attributes:
        key: key of the image.
        name: name of the image in the archive.
        part: bytes of the image.
        annotation: class, group and split.
    """

    key: str
    name: str
    part: ByteRange
    annotation: Annotation


@dataclass
class _Pending:
    """Members of a key that are read so far."""

    key: str
    image: tuple[str, ByteRange] | None = None
    texts: dict[str, bytes] = field(default_factory=dict)


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the suffix (lower case) of a member; both empty for a member that is not part of an image."""
    match = None if _META.match(name) else _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else ("", "")


def is_image(suffix: str) -> bool:
    """Return true for the suffix of an image format."""
    return f".{suffix}" in EXTENSIONS


def annotate(key: str, members: Mapping[str, Any], where: str, labels: Mapping[str, str] | None = None) -> Annotation:
    """Return the annotation of an image from its members by suffix, and from its class in ``labels`` if there is a label table.

    Raises:
        DataError: there is no label, or a member is not valid.
    """
    label = members.get(LABEL_SUFFIX) if labels is None else labels.get(key, "").encode()
    if labels is not None and not label:
        raise DataError(f"{where}: {printable(key)} is not in the table of --labels. Add a line with its class.")
    if label is None:
        raise DataError(f"{where}: {printable(key)} has no label. Add {printable(key)}.{LABEL_SUFFIX} after its image, with the class.")
    try:
        text = label.decode().strip()
        facts = json.loads(members.get(FACTS_SUFFIX, b"{}"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: the label or the JSON of {printable(key)} cannot be read: {error}. Write UTF-8 text.") from error
    if problem := label_problem(text):
        raise DataError(f"{where}: the label of {printable(key)} {problem}. Write a class name or an index.")
    facts = facts if isinstance(facts, dict) else {}
    group = facts.get("group")
    return Annotation(text, "" if group is None else printable(str(group)), _PARTS.get(facts.get("split")))


def read_members(shard: Path, labels: Mapping[str, str] | None = None, *, notes: Notes | None = None) -> Iterator[Member]:
    """Yield the images of a shard in their order. Only headers and annotations are read. A label table replaces the ``.cls`` members.

    Other files are left out, and are added to ``notes``. Metadata of WebDataset (``__NAME__``) is no such file.

    Raises:
        DataError: the archive is truncated or damaged, an image has no label, a key has two images, labels or JSON files, or a member is a
            link or has an unsafe name.
    """
    where, last = printable(shard), ""
    try:
        with open_plain(shard) as file:
            pending: _Pending | None = None
            for archive, info in _headers(file):
                key, suffix = _checked(info, where)
                if notes is not None and _is_left_out(info, suffix):
                    notes.add("member", info.name, by=PurePosixPath(info.name).suffix[:_SUFFIX_LENGTH] or "without suffix")
                if not key:
                    continue
                if pending is None or pending.key != key:
                    if pending and (found := _finish(pending, where, labels)):
                        yield found
                    pending = _Pending(key)
                last = info.name
                _add(pending, suffix, info, archive, shard)
            if pending and (found := _finish(pending, where, labels)):
                yield found
    except (OSError, ValueError, EOFError, RecursionError, tarfile.TarError, DamageError) as error:
        raise damaged(shard, last, error) from error


def _headers(file: io.BufferedReader) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the headers of the members, within limits, up to the end mark."""
    check_headers(file, 0)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # the list would grow with the archive
            yield archive, info
            check_headers(file, archive.offset)
        check_end(file, archive.offset)


def damaged(shard: Path, last: str, error: Exception | str) -> DataError:
    """Make the error for a shard that cannot be read to its end. ``last`` is the last member that was read."""
    after = f" after {printable(last)}" if last else ""
    return DataError(f"{printable(shard)} is truncated or damaged{after}: {error}. Copy this shard again.")


def _checked(info: tarfile.TarInfo, where: str) -> tuple[str, str]:
    """Return key and suffix of a member; both empty if it is not part of an image.

    Raises:
        DataError: the member is a link or a device, or its name could lead out of a folder.
    """
    if info.isdir():
        return "", ""
    path = PurePosixPath(info.name)
    if not info.isreg() or path.is_absolute() or ".." in path.parts or {"\\", "\0", "\n"} & set(info.name):
        raise DataError(
            f"{where}: the member {printable(info.name)} is a link or a special file, or has an unsafe name. Pack the images again."
        )
    return split_name(info.name)


def _is_left_out(info: tarfile.TarInfo, suffix: str) -> bool:
    """Return true for a file that is neither an image, nor an annotation, nor metadata."""
    return not (info.isdir() or is_image(suffix) or suffix in _LIMITS or _META.match(info.name))


def _add(pending: _Pending, suffix: str, info: tarfile.TarInfo, archive: tarfile.TarFile, shard: Path) -> None:
    if is_image(suffix):
        if pending.image:
            raise DataError(f"{printable(shard)}: {printable(pending.key)} has two images. Give each image its own key.")
        pending.image = info.name, ByteRange(shard, info.offset_data, info.size)
    elif suffix in _LIMITS:
        if suffix in pending.texts:
            raise DataError(f"{printable(shard)}: {printable(pending.key)} has two files .{suffix}. Give each image its own key.")
        if info.size > _LIMITS[suffix]:
            raise DataError(f"{printable(shard)}: {printable(info.name)} has {info.size} bytes. The limit is {_LIMITS[suffix]}.")
        content = archive.extractfile(info)
        assert content is not None
        pending.texts[suffix] = content.read()


def _finish(pending: _Pending, where: str, labels: Mapping[str, str] | None) -> Member | None:
    """Return the member of a complete key; none without an image."""
    if pending.image is None:
        return None
    name, part = pending.image
    return Member(pending.key, name, part, annotate(pending.key, pending.texts, where, labels))
