"""Small bundles with real networks, built in milliseconds, stores with them, and trust folders."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from edgetl.core.bundle import Bundle, describe_file, open_bundle, pack_prefixes
from edgetl.core.manifest import MANIFEST_NAME, Manifest
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.store.releases import is_store
from edgetl.core.store.state import Probation, ReleaseRecord, StoreState, activated, utc_now
from edgetl.core.store.writing import write_state
from edgetl.core.tasks import LEAST_WEIGHT, KnnHead
from edgetl.device.signature import REVOKED_NAME
from edgetl.device.store.selftest import SelfTest, SelfTestLimits
from edgetl.runtime.predictor import load
from tests.core.bundles import manifest_of, variant_of
from tests.runtime.hostile import end, onnx_bytes

LABELS = ("red", "green", "blue")
SIDE = 8
# Parameters of the k-NN head of ``knn_network``.
KNN: dict[str, Any] = {"neighbors": 3, "temperature": 0.3, "scale": 8.0}


def network(scale: float) -> bytes:
    """Return an ONNX file whose logits are the channel means of the image, times ``scale``."""
    ends = [end("input", ["n", 3, SIDE, SIDE]), end("logits", ["n", 3])]
    nodes = [
        helper.make_node("ReduceMean", ["input", "sides"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["logits"]),
    ]
    return onnx_bytes(nodes, {"sides": np.array([2, 3]), "weights": scale * np.eye(3, dtype=np.float32)}, ends=ends)


def knn_network(bank: NDArray[np.float32], votes: NDArray[np.float32], *, classes: int | None = None) -> bytes:
    """Return an ONNX file with a k-NN head on the channel means, as ``edgetl.train.heads.modules.KnnOutputs`` computes it.

    Args:
        bank: float32 ``[images, 3]``, stored features of length 1.
        votes: float32 ``[images, classes]``, votes of the stored images.
        classes: number of classes. Default: that of ``votes``.
    """
    count, k = classes or votes.shape[1], KNN["neighbors"]
    make = helper.make_node
    nodes = [
        make("ReduceMean", ["input", "sides"], ["means"], keepdims=0),
        make("Sub", ["means", "center"], ["centered"]),
        make("ReduceL2", ["centered", "one"], ["length"]),
        make("Div", ["centered", "length"], ["features"]),
        make("MatMul", ["features", "bank"], ["all"]),
        make("TopK", ["all", "nearest"], ["similarities", "indices"]),
        make("Slice", ["indices", "zero", "k", "one"], ["voters"]),
        make("Gather", ["stored", "voters"], ["votes"]),
        make("Slice", ["similarities", "zero", "one", "one"], ["first"]),
        make("Sub", ["similarities", "first"], ["below"]),
        make("Div", ["below", "temperature"], ["scaled"]),
        make("Exp", ["scaled"], ["weights"]),
        make("Slice", ["weights", "zero", "k", "one"], ["own"]),
        make("Slice", ["weights", "k", "nearest", "one"], ["last"]),
        make("Sub", ["own", "last"], ["reduced"]),
        make("Add", ["reduced", "least"], ["kept"]),
        make("Unsqueeze", ["kept", "one"], ["row"]),
        make("MatMul", ["row", "votes"], ["summed"]),
        make("ReduceSum", ["summed", "two"], ["total"]),
        make("Div", ["summed", "total"], ["fractions"]),
        make("Squeeze", ["fractions", "one"], ["flat"]),
        make("Mul", ["flat", "scale"], ["stretched"]),
        make("Sub", ["stretched", "bias"], ["logits"]),
    ]
    numbers = {"temperature": KNN["temperature"], "least": LEAST_WEIGHT, "scale": KNN["scale"], "bias": KNN["scale"] / count}
    constants = {name: np.array([value], np.float32) for name, value in numbers.items()}
    constants |= {"bank": np.ascontiguousarray(bank.T), "stored": votes, "center": np.array([0.1, -0.2, 0.3], np.float32)}
    indices = {"sides": [2, 3], "zero": [0], "one": [1], "two": [2], "k": [k], "nearest": [k + 1]}
    constants |= {name: np.array(value, np.int64) for name, value in indices.items()}
    shapes = {"logits": [count], "features": [3], "similarities": [k + 1], "votes": [k, count]}
    ends = [end("input", ["n", 3, SIDE, SIDE]), *(end(name, ["n", *shape]) for name, shape in shapes.items())]
    return onnx_bytes(nodes, constants, ends=ends)


def write_knn_bundle(folder: Path, release: int = 1, *, precisions: Sequence[str] = ("fp32",), name: str = "colors") -> Path:
    """Write a k-NN bundle of ``LABELS`` whose stored features are colors near red, green and blue, six of each."""
    rng = np.random.default_rng(release)
    bank = (np.repeat(np.eye(3), 6, axis=0) + rng.normal(0, 0.2, (18, 3))).astype(np.float32)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    model = knn_network(bank, np.repeat(np.eye(3, dtype=np.float32), 6, axis=0))
    write_bundle(folder, release, name=name, precisions=precisions)
    for precision in precisions:
        (folder / f"onnx-{precision}/1/model.onnx").write_bytes(model)
    head = KnnHead(width=3, weights=(1.0, 1.0, 1.0), **KNN)
    write_manifest(folder, _manifest(folder, release, name, precisions, (1.0, 0.0, 0.0)).model_copy(update={"knn": head}))
    scores = tuple(float(score) for score in load(folder).predict(image()).scores)
    write_manifest(folder, _manifest(folder, release, name, precisions, scores).model_copy(update={"knn": head}))
    open_bundle(folder)
    return folder


def network_without_kernel() -> bytes:
    """Return a valid ONNX file that ONNX Runtime cannot load on any CPU: it has no kernel for the pooling of double numbers."""
    ends = [end("input", ["n", 3, SIDE, SIDE]), end("logits", ["n", 3])]
    nodes = [
        helper.make_node("Cast", ["input"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("AveragePool", ["wide"], ["pooled"], kernel_shape=[SIDE, SIDE]),
        helper.make_node("Cast", ["pooled"], ["narrow"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["narrow"], ["logits"]),
    ]
    return onnx_bytes(nodes, {}, ends=ends)


def image(color: tuple[int, int, int] = (200, 60, 30)) -> bytes:
    """Return a PNG file of one color."""
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), color).save(file, "PNG")
    return file.getvalue()


def write_bundle(
    folder: Path, release: int, *, name: str = "colors", precisions: Sequence[str] = ("fp32",), model: bytes | None = None, note: str = ""
) -> Path:
    """Write a bundle whose scores depend on its release number.

    Args:
        folder: folder of the bundle.
        release: release number.
        name: name of the bundle.
        precisions: precisions of the ONNX variants, which have the same network.
        model: ONNX file of the first variant, if it differs from the others. The golden scores are those of the others.
        note: text of the model card.
    """
    root = folder
    files = {f"onnx-{precision}/1/model.onnx": network(1 + release / 100) for precision in precisions}
    files |= {"golden/0.png": image(), "seen.bin": pack_prefixes({1, 2, 3}), "card.md": f"# Release {release}\n{note}\n".encode()}
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    write_manifest(root, _manifest(root, release, name, precisions, (1.0, 0.0, 0.0)))
    scores = load(root).predict(image()).scores
    if model is not None:
        (root / f"onnx-{precisions[0]}/1/model.onnx").write_bytes(model)
    write_manifest(root, _manifest(root, release, name, precisions, tuple(float(score) for score in scores)))
    open_bundle(root)
    return root


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write the manifest as an export does."""
    (root / MANIFEST_NAME).write_text(json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n", "utf-8")


def _manifest(root: Path, release: int, name: str, precisions: Sequence[str], scores: tuple[float, ...]) -> Manifest:
    variants = [variant_of(root, f"onnx-{item}", [f"onnx-{item}/1/model.onnx"], ends=("input", "logits")) for item in precisions]
    spec, card = PreprocessSpec(input_size=(SIDE, SIDE), crop_pct=1.0), describe_file(root, root / "card.md")
    golden = {item.name: scores for item in variants}
    return manifest_of(root, variants, golden, name=name, release=release, labels=LABELS, preprocess=spec, card=card)


def add_release(store: Path, bundle: Path, *, probation: Probation | None = None, key: str | None = None) -> ReleaseRecord:
    """Copy a bundle into a store and activate it, without the checks of an installation. Without ``probation`` it is confirmed."""
    manifest = open_bundle(bundle).manifest
    data = describe_file(bundle, bundle / MANIFEST_NAME)
    record = ReleaseRecord(release=manifest.release, manifest_sha256=data.sha256, installed=utc_now(), key=key)
    before = StoreState(name=manifest.name)
    if is_store(store):
        before = StoreState.model_validate_json((store / "state.json").read_bytes())
    shutil.copytree(bundle, store / "releases" / record.id)
    write_state(store, activated(before, record, probation))
    return record


def release_in_use(store: Path) -> int:
    """Return the number of the release that ``edgetl.load`` uses, by its scores. It must be complete."""
    scores = load(store).predict(image()).scores
    spec = PreprocessSpec(input_size=(SIDE, SIDE))
    red, green = ((value / 255 - spec.mean[channel]) / spec.std[channel] for channel, value in enumerate((200, 60)))
    scale = np.log(scores[0] / scores[1]) / (red - green)
    return round(100 * (scale - 1))


def trust_folder(root: Path, *keys: Path, revoked: str = "") -> Path:
    """Add public keys to a trust folder, and replace its list of revoked keys."""
    root.mkdir(exist_ok=True)
    for key in keys:
        shutil.copy(key, root)
    (root / REVOKED_NAME).write_text(revoked)
    return root


def pass_self_test(bundle: Bundle, _limits: SelfTestLimits) -> tuple[SelfTest, tuple[str, ...]]:
    """Replace the child process of the self-test, which takes a second, in tests of the sequence around it."""
    result = SelfTest(variant=bundle.manifest.variants[0].name, images=1, largest_difference=0.0, median_ms=1.0, peak_memory_mb=1.0)
    return result, ()
