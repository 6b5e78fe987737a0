"""Layout of a data folder: class folders, or the folders of ready-made splits with class folders in them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from edgetl.core.files.names import printable
from edgetl.data.listing import Folder
from edgetl.data.scan_notes import Notes
from edgetl.errors import DataError

Part: TypeAlias = Literal["train", "val", "test"]

PARTS: tuple[Part, ...] = ("train", "val", "test")
# Names in data sets on Kaggle, Zenodo and Hugging Face, and those of scikit-learn, Keras and torchvision.
_WORDS: dict[Part, str] = {
    "train": "train(?:ing)?|trn",
    "val": "val(?:id(?:ation)?)?|dev|eval(?:uation)?",
    "test": "test(?:ing)?|tst|holdout",
}
_FILLERS = "set|data(?:set)?|images?|imgs?|samples|files|split|folder|(?:19|20)[0-9]{2}"
_ALONE = {part: re.compile(f"(?:{_FILLERS})*(?:{words})(?:{_FILLERS})*") for part, words in _WORDS.items()}
_ANY_WORD = "|".join(_WORDS.values())
_FIRST = re.compile(f"(?P<word>{_ANY_WORD})[-_ .](?P<rest>.+)")
_LAST = re.compile(f"(?P<rest>.+)[-_ .](?P<word>{_ANY_WORD})")
_FOLD = re.compile(r"(?:fold|split|cv)[-_ ]?[0-9]+")


@dataclass(frozen=True)
class ClassFolder:
    """Folder of the images of one class. ``part`` is its split, or none without ready-made splits."""

    label: str
    part: Part | None
    folder: Folder


def part_of(name: str) -> Part | None:
    """Return the split of a folder name such as ``Training``, ``valid_set`` or ``test-images``; none for other names."""
    squeezed = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())
    return next((part for part, pattern in _ALONE.items() if pattern.fullmatch(squeezed)), None)


def parts_of(names: Iterable[str]) -> dict[str, Part]:
    """Map folder names to splits: by ``part_of``, and by a common stem, such as ``seg_train`` and ``seg_test``."""
    names = list(names)
    found = {name: part for name in names if (part := part_of(name))}
    related: dict[tuple[str, str], dict[str, Part]] = defaultdict(dict)
    for name in names:
        for side, pattern in (("first", _FIRST), ("last", _LAST)):
            if (match := pattern.fullmatch(name.casefold())) and (part := part_of(match["word"])):
                related[side, match["rest"]][name] = part
    for group in related.values():
        if "train" in group.values() and len(set(group.values())) > 1:
            found |= group
    return found


def find_classes(root: Folder, notes: Notes, *, known_labels: Collection[str] | None = None) -> list[ClassFolder]:
    """Find the class folders below ``root``, and their splits where ready-made splits exist.

    Args:
        root: tree of the data folder.
        notes: receives the folders and images that belong to no class.
        known_labels: labels of a trained model. Folders with these names are classes, and a training split is not needed.

    Raises:
        DataError: the layout is ambiguous, or a class or split folder cannot be read.
    """
    refuse_unreadable(root.folders)
    names = {folder.path.name for folder in root.folders}
    if known_labels is not None and names and {folder.name for folder in root.folders} <= set(known_labels):
        return _classes(root, None, notes)
    splits = _splits(root, notes, training=known_labels is None)
    if not splits:
        _refuse_splits_in_classes(root)
        return _classes(root, None, notes)
    # Training comes first: its classes define the labels of the other splits.
    found: list[ClassFolder] = []
    for part in PARTS:
        if part in splits:
            known = {item.label for item in found} if known_labels is None else set(known_labels)
            found += _classes_of_split(root, splits[part], part, known, notes)
    _note_splits(splits, notes, training=known_labels is None)
    return found


def _splits(root: Folder, notes: Notes, *, training: bool) -> dict[Part, Folder]:
    """Return the split folders; empty if ``root`` has class folders."""
    parts = parts_of(folder.path.name for folder in root.folders)
    named = [folder for folder in root.folders if folder.path.name in parts]
    others = [folder for folder in root.folders if folder.path.name not in parts and folder.count]
    if not named:
        _refuse_folds(root)
        return {}
    if len(named) == 1 and _is_class_called_train(named[0], parts[named[0].path.name], others):
        notes.add("class-train", named[0].path.name)
        return {}
    found: dict[Part, Folder] = {}
    for folder in named:
        part = parts[folder.path.name]
        if part in found:
            one, other = (printable(item.path.name) for item in (found[part], folder))
            raise DataError(
                f"{printable(root.path)}: {one}/ and {other}/ both look like the {part} split. Rename one of them "
                f"(train, val or test), or leave one out with --exclude {_quoted(other)}."
            )
        found[part] = folder
    _refuse_mixed(root, found, others, training=training)
    for folder in others:
        notes.add("sibling", folder.path.name, count=folder.count, by=f"{folder.path.name}/")
    if loose := len(root.images):
        notes.add("loose", root.images[0].name, count=loose)
    return found


def _is_class_called_train(folder: Folder, part: Part, others: Sequence[Folder]) -> bool:
    """Return true if ``train/`` is a class (railway): it has images, no class folders, and siblings with images."""
    return part == "train" and bool(folder.images) and not any(item.count for item in folder.folders) and bool(others)


def _refuse_mixed(root: Folder, splits: dict[Part, Folder], others: Sequence[Folder], *, training: bool) -> None:
    where = printable(root.path)
    shown = ", ".join(f"{printable(folder.path.name)}/" for folder in others[:3])
    if "train" not in splits and (training or others):
        names = " and ".join(f"{printable(folder.path.name)}/" for folder in splits.values())
        if others:
            remedy = " ".join(f"--exclude {_quoted(folder.path.name)}" for folder in splits.values())
            raise DataError(
                f"{where}: {names} looks like a split, and {shown} like classes. Leave the split out with {remedy}, or move "
                f"the class folders into {where}/train/."
            )
        raise DataError(
            f"{where} has {names} and no training split. Add a folder train/, or use a folder of class folders, such as "
            f"{where}/{printable(next(iter(splits.values())).path.name)}."
        )
    if not training or "train" not in splits:
        return
    trained = {item.name for item in splits["train"].folders}
    same = [folder for folder in others if folder.name in trained]
    if same or (len(splits) == 1 and others):
        remedy = " ".join(f"--exclude {_quoted(folder.path.name)}" for folder in (same or others)[:3])
        raise DataError(
            f"{where}: {printable(splits['train'].path.name)}/ looks like a split, and {shown} like classes. Leave them out "
            f"with {remedy}, or move them into the split."
        )


def _classes_of_split(root: Folder, split: Folder, part: Part, known: Collection[str], notes: Notes) -> list[ClassFolder]:
    group = _innermost(split, notes, root)
    where = f"{printable(split.path.relative_to(root.path))}/"
    found = _classes(group, part, notes, root=root)
    labels = {item.label for item in found if item.folder.count}
    if part != "train" and known and labels and not labels & set(known):
        found, loose = [], group.count
    else:
        loose = len(group.images)
    if part == "train" and not labels:
        raise DataError(
            f"{printable(root.path)}: {where} has {group.count} images and no class folders. Put the images into one folder for each "
            f"class ({where}cat, {where}dog), or give a table of labels with --labels FILE.csv."
        )
    if loose and part == "val" and not found:
        raise DataError(
            f"{printable(root.path)}: the {loose} images in {where} are in no class folder of the training split. They cannot be used for "
            f"validation. Sort them into class folders, or use a part of the training images with --exclude {_quoted(split.path.name)}."
        )
    if loose:
        notes.add("unlabeled" if part == "test" and not found else "loose", where, count=loose, by=where)
    return found


def _innermost(split: Folder, notes: Notes, root: Folder) -> Folder:
    """Return the folder that contains the class folders. ``train/train/cat`` often results from unpacking archives."""
    while len(split.folders) == 1 and not split.images and part_of(split.folders[0].path.name) == part_of(split.path.name):
        if part_of(split.path.name) is None and split.folders[0].path.name != split.path.name:
            break
        split = split.folders[0]
        notes.add("nested", split.path.relative_to(root.path))
    return split


def _classes(group: Folder, part: Part | None, notes: Notes, *, root: Folder | None = None) -> list[ClassFolder]:
    """Return the folders of ``group`` that have images (also in unsupported formats) or are empty."""
    top = (root or group).path
    if part is not None:
        refuse_unreadable(group.folders)
        inner = parts_of(folder.path.name for folder in group.folders)
        if len(inner) > 1 or (inner and "train" not in inner.values()):
            raise DataError(
                f"{printable(group.path)} is a split and has folders that look like splits ({', '.join(map(printable, inner))}). Use "
                f"that folder as data folder, or rename its folders if they are classes."
            )
    elif group.images:
        notes.add("loose", group.images[0].name, count=len(group.images))
    found = []
    for folder in group.folders:
        if folder.count or folder.all_unread() or folder.is_empty:
            found.append(ClassFolder(folder.name, part, folder))
        else:
            notes.add("no-images", folder.path.relative_to(top))
    return found


def _note_splits(splits: dict[Part, Folder], notes: Notes, *, training: bool) -> None:
    for part, folder in splits.items():
        if folder.path.name.lower() != part:
            notes.add("splits", f"{folder.path.name}/ as {part}")
    if training:
        for part in ("val", "test"):
            if part not in splits:
                notes.add("no-val" if part == "val" else "no-test", count=0)


def _refuse_splits_in_classes(root: Folder) -> None:
    """Refuse ``cat/train``, ``cat/test``, ``dog/train`` …, because test images would be used for training."""
    holding = [(folder, parts) for folder in root.folders if (parts := parts_of(item.path.name for item in folder.folders if item.count))]
    if len({part for _, parts in holding for part in parts.values()}) < 2:
        return
    folder, parts = holding[0]
    name, split = printable(folder.path.name), printable(next(iter(parts)))
    if len(root.folders) == 1:
        raise DataError(f"{printable(root.path)} has the splits one level deeper. Use {printable(folder.path)}.")
    raise DataError(
        f"{printable(root.path)}: the folder {name}/ has splits ({', '.join(f'{printable(item)}/' for item in parts)}). Put the splits "
        f"above the classes: {split}/{name} instead of {name}/{split}. Or leave one out with --exclude {_quoted(f'*/{split}')}."
    )


def _refuse_folds(root: Folder) -> None:
    names = [folder.path.name for folder in root.folders]
    if len(names) > 1 and all(_FOLD.fullmatch(name.casefold()) for name in names):
        raise DataError(
            f"{printable(root.path)} has folds for cross-validation ({', '.join(map(printable, names[:5]))}), not classes. "
            f"Merge them into train/, val/ and test/, or list the images in a table (--labels FILE.csv)."
        )


def refuse_unreadable(folders: Sequence[Folder]) -> None:
    """Refuse folders that cannot be listed, because their images would be missing.

    Raises:
        DataError: one of ``folders`` cannot be listed.
    """
    if unreadable := [folder for folder in folders if folder.problem]:
        folder = unreadable[0]
        raise DataError(
            f"{printable(folder.path)} cannot be listed: {folder.problem}. Its images would be missing. Check its permissions, or leave "
            f"it out with --exclude {_quoted(folder.path.name)}."
        )


def _quoted(name: str | Path) -> str:
    text = printable(name)
    return text if re.fullmatch(r"[\w./-]+", text) else "'" + text.replace("'", "'\\''") + "'"
