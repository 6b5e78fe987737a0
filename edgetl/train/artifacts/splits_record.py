"""``splits.json``: the images of a run, and the split of each."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pydantic import Field, model_validator

from edgetl.core.config import StrictModel
from edgetl.core.files.names import printable
from edgetl.core.manifest import Sha256
from edgetl.core.tasks import Task
from edgetl.data.folder import Part
from edgetl.data.split import Splits

# Of a path, and of one name in it, on the usual file systems.
MOST_BYTES, MOST_BYTES_OF_A_NAME = 4096, 255


class SplitEntry(StrictModel):
    """Image of a run: its path below the root, label (or stratum) index, content hash, split, targets from a table, and group.

    ``raw`` holds the bytes of a path that is not UTF-8, percent-encoded; ``path`` has escapes such as ``\\xe9`` in their place then.
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
            raise ValueError(f"the bytes of {self.path[:80]!r} are those of another path")
        long = len(self.file) > MOST_BYTES or any(len(os.fsencode(part)) > MOST_BYTES_OF_A_NAME for part in found.parts)
        if not self.file or long or "\0" in self.file or found.is_absolute() or found.drive or ".." in found.parts:
            raise ValueError(f"{self.path[:80]!r} is not a path below the images' folder")
        return self

    @property
    def file(self) -> str:
        """The path as this system's functions take it."""
        return os.fsdecode(unquote_to_bytes(self.raw)) if self.raw else self.path


def path_fields(path: PurePath) -> dict[str, str]:
    """The fields ``path`` and ``raw`` of an image at the relative ``path``."""
    text = path.as_posix()
    try:
        text.encode()
    except UnicodeEncodeError:
        return {"path": printable(text), "raw": quote_from_bytes(os.fsencode(text))}
    return {"path": text}


class SplitsRecord(StrictModel):
    """``splits.json``; ``excluded`` images are in no split, because a run that the weights come from has seen them."""

    schema_version: Literal[1] = 1
    root: str
    fingerprint: str
    entries: tuple[SplitEntry, ...]
    broken: tuple[str, ...]
    conflicts: tuple[tuple[str, ...], ...]
    excluded: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_each_image_once(self) -> SplitsRecord:
        if len({entry.file for entry in self.entries}) != len(self.entries):
            raise ValueError("an image is there twice")
        return self

    def problem(self, task: Task, labels: int) -> str | None:
        """Reason why these are not the images of a run for ``task`` with ``labels`` labels; none if they are."""
        for entry in self.entries:
            if task == "classification" and entry.label >= labels:
                return f"{entry.path} has label {entry.label}, and the run has {labels} labels"
            if len(entry.targets) != (0 if task == "classification" else labels):
                return f"{entry.path} has {len(entry.targets)} targets, and the run is for {task} with {labels} labels"
        return None


def record_splits(splits: Splits) -> SplitsRecord:
    """Convert ``splits`` to the record that ``splits.json`` holds."""
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
        fingerprint=splits.folder.fingerprint(),
        entries=entries,
        broken=broken,
        conflicts=conflicts,
        excluded=tuple(map(printable, splits.excluded)),
    )
