"""Splits record: ``splits.json``, with the images of a run and the split of each."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pydantic import Field, model_validator

from edgetl.core.config import StrictModel
from edgetl.core.files.names import printable
from edgetl.core.lineage import Sha256
from edgetl.core.tasks import CLASS_TASKS, Task
from edgetl.data.folder import Part
from edgetl.data.shards.index import ShardsRecord
from edgetl.data.split import Splits

# Limits of common file systems, in bytes: for a path, and for one name in it.
MAX_PATH_BYTES, MAX_NAME_BYTES = 4096, 255


class SplitEntry(StrictModel):
    """Image of a run.

    Attributes:
        path: path relative to the root. Bytes that are not UTF-8 appear as escapes such as ``\\xe9``.
        label: index of the label. For tasks other than classification, index of the stratum.
        content: SHA-256 of the content.
        part: split of the image.
        targets: targets from a label table. Empty for tasks with one class per image.
        group: group of the image. Empty without groups.
        raw: percent-encoded bytes of a path that is not UTF-8. Empty for other paths.
    """

    path: str
    label: int = Field(ge=0)
    content: Sha256
    part: Literal["train", "val", "test"]
    targets: tuple[float, ...] = ()
    group: str = ""
    raw: str = ""

    @model_validator(mode="after")
    def _is_below_the_root(self) -> SplitEntry:
        found = Path(self.file)
        if self.raw and printable(self.file) != self.path:
            raise ValueError(f"path {self.path[:80]!r} and its bytes in 'raw' differ")
        long = len(self.file) > MAX_PATH_BYTES or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in found.parts)
        if not self.file or long or "\0" in self.file or found.is_absolute() or found.drive or ".." in found.parts:
            raise ValueError(f"{self.path[:80]!r} is not a relative path inside the image folder")
        return self

    @property
    def file(self) -> str:
        """Path relative to the root, as the functions of the operating system accept it."""
        return os.fsdecode(unquote_to_bytes(self.raw)) if self.raw else self.path


def path_fields(path: PurePath) -> dict[str, str]:
    """Return the fields ``path`` and ``raw`` of a ``SplitEntry`` for the relative ``path``."""
    text = path.as_posix()
    try:
        text.encode()
    except UnicodeEncodeError:
        return {"path": printable(text), "raw": quote_from_bytes(os.fsencode(text))}
    return {"path": text}


class SplitsRecord(StrictModel):
    """Splits record: the content of ``splits.json``.

    Attributes:
        root: folder of the images. A relative path is relative to the run folder.
        fingerprint: SHA-256 over the content and labels of all images.
        entries: images of the run.
        broken: images that cannot be decoded.
        conflicts: paths of equal images with different labels.
        excluded: images left out of every split, because an ancestor run was trained or selected on them.
        shards: shards of a sharded training, of which ``entries`` are a sample. ``None`` for a folder of images.
    """

    schema_version: Literal[1] = 1
    root: str
    fingerprint: str
    entries: tuple[SplitEntry, ...]
    broken: tuple[str, ...]
    conflicts: tuple[tuple[str, ...], ...]
    excluded: tuple[str, ...] = ()
    shards: ShardsRecord | None = None

    @model_validator(mode="after")
    def _names_each_image_once(self) -> SplitsRecord:
        if len({entry.file for entry in self.entries}) != len(self.entries):
            raise ValueError("entries: an image is listed twice")
        return self

    def problem(self, task: Task, labels: int) -> str | None:
        """Return the reason why the entries do not fit a run for ``task`` with ``labels`` labels, or ``None`` if they fit."""
        for entry in self.entries:
            if task in CLASS_TASKS and entry.label >= labels:
                return f"{entry.path} has label index {entry.label}, but the run has {labels} labels"
            if len(entry.targets) != (0 if task in CLASS_TASKS else labels):
                return f"{entry.path} has {len(entry.targets)} targets, but the run is for {task} with {labels} labels"
        return None


def record_splits(splits: Splits, unreadable: tuple[str, ...] = ()) -> SplitsRecord:
    """Convert ``splits`` to the content of ``splits.json``. ``unreadable`` are keys of streamed images that cannot be decoded."""
    root = splits.folder.root.resolve()
    parts: tuple[Part, ...] = ("train", "val", "test")
    entries = tuple(
        SplitEntry(
            **path_fields(sample.path.relative_to(splits.folder.root)),
            label=sample.label,
            content=sample.content,
            part=part,
            targets=sample.targets,
            group=sample.group,
        )
        for part in parts
        for sample in splits.part(part)
    )
    broken = tuple(printable(item.path.relative_to(splits.folder.root)) for item in splits.folder.broken)
    conflicts = tuple(tuple(map(printable, conflict.paths)) for conflict in splits.conflicts)
    return SplitsRecord(
        root=printable(root),
        fingerprint=splits.fingerprint,
        entries=entries,
        broken=broken,
        conflicts=conflicts,
        excluded=tuple(map(printable, splits.excluded)),
        shards=splits.shards.record({part: len(splits.part(part)) for part in parts}, unreadable) if splits.shards else None,
    )
