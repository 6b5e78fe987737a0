"""Small bundles with real networks, built in milliseconds, stores with them, and trust folders."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from PIL import Image

from edgetl.core.bundle import Bundle, describe_file, open_bundle, pack_prefixes
from edgetl.core.manifest import MANIFEST_NAME, Manifest
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.store.releases import is_store
from edgetl.core.store.state import Probation, ReleaseRecord, StoreState, activated, utc_now
from edgetl.core.store.writing import write_state
from edgetl.device.signature import REVOKED_NAME
from edgetl.device.store.selftest import SelfTest, SelfTestLimits
from edgetl.runtime.predictor import load
from tests.core.bundles import manifest_of, variant_of
from tests.runtime.hostile import end, onnx_bytes

LABELS = ("red", "green", "blue")
SIDE = 8


def network(scale: float) -> bytes:
    """Return an ONNX file whose logits are the channel means of the image, times ``scale``."""
    ends = [end("input", ["n", 3, SIDE, SIDE]), end("logits", ["n", 3])]
    nodes = [
        helper.make_node("ReduceMean", ["input", "sides"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["logits"]),
    ]
    return onnx_bytes(nodes, {"sides": np.array([2, 3]), "weights": scale * np.eye(3, dtype=np.float32)}, ends=ends)


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
