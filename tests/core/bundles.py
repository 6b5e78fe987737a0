"""Bundles whose model files are not models, because no engine opens them, and changes of their files."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetl.core.bundle import describe_file, hash_prefix, pack_prefixes
from edgetl.core.lineage import Lineage
from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME, BundleFile, Golden, Manifest, Variant
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.results import Agreement, Proportion

MODEL = "onnx-fp32/model.onnx"
DIGESTS = [hashlib.sha256(bytes([index])).hexdigest() for index in range(20)]
FILES = {
    MODEL: b"the weights of a model",
    "openvino-int8/model.xml": b"<the graph/>",
    "openvino-int8/model.bin": b"its weights.",
    "golden/0.png": b"an image!",
    "seen.bin": pack_prefixes({hash_prefix(digest) for digest in DIGESTS}),
    "README.md": b"# A card\n",
}

_SHARE = Proportion(value=0.9, n=10, low=0.6, high=1.0)
_AGREEMENT = Agreement(n=10, max_relative_error=0.0, top1_agreement=1.0, confident_n=9, confident_agreement=1.0)
_LINEAGE = Lineage(
    backbone="none",
    architecture="mlp",
    weights_sha256=None,
    license=None,
    strategy="full",
    run_sha256="0" * 64,
    data_fingerprint="1" * 64,
    train_images=10,
)


def write_files(root: Path) -> Manifest:
    """Write the files of a bundle with two variants, and return its manifest."""
    for path, data in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    variants = [
        variant_of(root, "onnx-fp32", [MODEL], ends=("x", "y")),
        variant_of(root, "openvino-int8", ["openvino-int8/model.xml", "openvino-int8/model.bin"], ends=("x", "y")),
    ]
    scores = {"onnx-fp32": (0.9, 0.1), "openvino-int8": (0.8, 0.2)}
    spec = PreprocessSpec(input_size=(32, 32))
    card = describe_file(root, root / "README.md")
    return manifest_of(root, variants, scores, name="pets", labels=("cat", "dog"), preprocess=spec, card=card)


def write_folder(root: Path) -> Path:
    """Write the bundle folder of ``write_files``."""
    manifest = write_files(root)
    (root / MANIFEST_NAME).write_text(manifest.model_dump_json() + "\n")
    return root


def variant_of(root: Path, name: str, paths: Sequence[str], *, ends: tuple[str, str]) -> Variant:
    """Return the manifest entry of a variant. ``ends`` are the names of its input and output."""
    format_, precision = name.split("-")
    files: tuple[BundleFile, ...] = tuple(describe_file(root, root / path) for path in paths)
    names = {"name": name, "format": format_, "precision": precision, "files": files, "input": ends[0], "output": ends[1]}
    figures = {"agreement": _AGREEMENT, "validation": _SHARE, "test": None, "median_ms": 1.0, "golden_tolerance": 0.001}
    return Variant.model_validate({**names, **figures})


def manifest_of(root: Path, variants: Sequence[Variant], scores: Mapping[str, tuple[float, ...]], **others: Any) -> Manifest:
    """Return the manifest of the files below ``root``.

    Args:
        root: folder with ``golden/0.png``, ``seen.bin`` and the other files.
        variants: manifest entries of the variants.
        scores: golden scores of each variant.
        others: the other fields, at least ``name``, ``labels``, ``preprocess`` and ``card``.
    """
    golden = Golden(image=describe_file(root, root / "golden/0.png"), label=others["labels"][0], scores=dict(scores))
    return Manifest(
        created="2025-01-01T00:00:00Z",
        variants=tuple(variants),
        max_drop=0.01,
        trained=_SHARE,
        golden=(golden,),
        calibration=None,
        lineage=_LINEAGE,
        seen_images=describe_file(root, root / "seen.bin"),
        versions={},
        host={},
        **others,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of all files of a folder by their relative paths."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    """Change a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(folder: Path, one: str, other: str) -> None:
    """Exchange two files of a folder."""
    (folder / one).rename(folder / "aside")
    (folder / other).rename(folder / one)
    (folder / "aside").rename(folder / other)


def socket_at(path: Path) -> None:
    """Create a socket. Its address must be short: it is created with a relative path."""
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


# Changes of a file of a bundle (A1 to A8, A11, A13): the folder, and the path of the file.
CHANGES: dict[str, Callable[[Path, str], object]] = {
    "bit flip": lambda root, name: flip(root / name),
    "truncation": lambda root, name: (root / name).write_bytes((root / name).read_bytes()[:-1]),
    "extra byte": lambda root, name: (root / name).write_bytes((root / name).read_bytes() + b"\n"),
    "zero length": lambda root, name: (root / name).write_bytes(b""),
    "swap": lambda root, name: swap(root, name, "golden/0.png" if name != "golden/0.png" else "seen.bin"),
    "rename": lambda root, name: (root / name).rename(root / f"{name}.bak"),
    "deleted file": lambda root, name: (root / name).unlink(),
    "added file": lambda root, name: (root / name).with_name("added").touch(),
    "symbolic link": lambda root, name: (root / name).symlink_to((root / name).rename(root.parent / "outside")),
    "hard link": lambda root, name: (root.parent / "outside").hardlink_to(root / name),
}
# Exit codes with a required key; all others are 9, that of a damaged bundle. Without a manifest the folder is no bundle. A change of the
# manifest is an invalid signature, because nothing else was read.
CODES = {
    MANIFEST_NAME: {**dict.fromkeys(CHANGES, 20), "rename": 8, "deleted file": 8, "added file": 9, "symbolic link": 9, "hard link": 9},
    SIGNATURE_NAME: {**dict.fromkeys(CHANGES, 20), "rename": 21, "deleted file": 21, "added file": 9, "symbolic link": 9, "hard link": 9},
}
