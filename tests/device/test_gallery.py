"""Gallery of a k-NN bundle: classes that are added on a device without training."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgetl
from edgetl.core.bundle import open_bundle
from edgetl.core.store import active_release
from edgetl.device.gallery.changes import add, install, list_gallery, remove, remove_all
from edgetl.device.gallery.place import open_place
from edgetl.device.keys import PrivateKey, load_public_key, read_private_key
from edgetl.device.runner.loop import Runner
from edgetl.device.runner.model import Check, Model
from edgetl.device.runner.waiting import Stop
from edgetl.device.signature import Trust, check_gallery, sign_bundle, trust_keys, verified_bundle
from edgetl.device.store.cleanup import clean
from edgetl.device.store.status import roll_back
from edgetl.errors import ConfigError, GalleryError, ImageError, SignatureError, StorageError, UnknownKeyError, UnsignedError
from edgetl.runtime.gallery.file import MAX_IMAGES, gallery_path, read_gallery
from edgetl.runtime.verify import verify
from tests.device.bundles import SIDE, add_release, knn_network, write_bundle, write_knn_bundle, write_manifest
from tests.device.power_loss import Recorder, durable, recording
from tests.device.test_device_commands import Commands
from tests.device.test_device_commands import command as command
from tests.device.test_runner_loop import Collected, Given
from tests.disks import fill, small_disk

YELLOW = (230, 220, 20)


def _images(folder: Path, color: tuple[int, int, int], count: int, *, seed: int = 0) -> list[Path]:
    """Write images of noisy colors near ``color``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, found = np.random.default_rng(seed), []
    for index in range(count):
        pixels = np.clip(np.array(color) + rng.normal(0, 25, (1, 1, 3)) + np.zeros((SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        found.append(folder / f"{seed}-{index}.png")
        Image.fromarray(pixels).save(found[-1])
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_knn_bundle(tmp_path_factory.mktemp("knn") / "bundle")


@pytest.fixture
def bundle(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "bundle")


@pytest.fixture
def yellow(tmp_path: Path) -> list[Path]:
    return _images(tmp_path / "yellow", YELLOW, 6)


@pytest.fixture
def store(source: Path, tmp_path: Path) -> Path:
    add_release(tmp_path / "store", source)
    return tmp_path / "store"


def test_added_images_vote_as_if_the_head_had_been_fitted_with_them(bundle: Path, tmp_path: Path, yellow: list[Path]) -> None:
    plain = edgetl.load(bundle)
    add(open_place(bundle), yellow, "yellow")
    add(open_place(bundle), _images(tmp_path / "red", (150, 120, 90), 4, seed=1), "red")
    combined, opened = edgetl.load(bundle), read_gallery(gallery_path(bundle)).gallery
    assert combined.labels == ("red", "green", "blue", "yellow") and plain.labels == ("red", "green", "blue")
    votes = np.zeros((28, 4), np.float32)
    votes[np.arange(28), [*np.repeat(np.arange(3), 6), *[3] * 6, *[0] * 4]] = 1
    bank = np.concatenate([_bank(bundle), opened.matrix()])
    union = write_union(tmp_path / "union", bundle, knn_network(bank, votes))
    queries = [plain.prepare(plain.read(path)) for path in _images(tmp_path / "queries", (140, 120, 90), 40, seed=2)]
    batch = np.concatenate(queries).astype(np.float32)
    expected = edgetl.load(union).logits(batch)
    np.testing.assert_allclose(combined.logits(batch), expected, atol=1e-4)
    assert not np.allclose(combined.logits(batch)[:, :3], plain.logits(batch), atol=0.1)
    assert plain.features(batch).shape == (40, 3)


def _bank(bundle: Path) -> np.ndarray:
    import onnx

    graph = onnx.load(bundle / "onnx-fp32/1/model.onnx").graph
    return next(onnx.numpy_helper.to_array(item).T for item in graph.initializer if item.name == "bank")


def write_union(root: Path, bundle: Path, model: bytes) -> Path:
    """Write the bundle with ``model``, which has one more class."""
    from edgetl.core.bundle import describe_file

    shutil.copytree(bundle, root)
    (root / "onnx-fp32/1/model.onnx").write_bytes(model)
    manifest = open_bundle(bundle).manifest
    assert manifest.knn is not None
    variant = manifest.variants[0].model_copy(update={"files": (describe_file(root, root / "onnx-fp32/1/model.onnx"),)})
    golden = manifest.golden[0].model_copy(update={"scores": {"onnx-fp32": (1.0, 0.0, 0.0, 0.0)}})
    head = manifest.knn.model_copy(update={"weights": (1.0,) * 4})
    changed = {"labels": (*manifest.labels, "yellow"), "variants": (variant,), "golden": (golden,), "knn": head}
    write_manifest(root, manifest.model_copy(update=changed))
    return root


def test_a_new_class_is_predicted_and_the_bundle_is_unchanged(bundle: Path, tmp_path: Path, yellow: list[Path]) -> None:
    before = open_bundle(bundle).manifest_sha256
    (query,) = _images(tmp_path / "query", YELLOW, 1, seed=7)
    assert edgetl.load(bundle).predict(query).label != "yellow"
    done = add(open_place(bundle), yellow, "yellow")
    assert done.changed == 6 and done.gallery.labels[0].new and done.gallery.labels[0].images == 6
    assert edgetl.load(bundle).predict(query).label == "yellow"
    assert edgetl.load(bundle, gallery=False).predict(query).label != "yellow"
    assert open_bundle(bundle).manifest_sha256 == before


def test_votes_of_a_new_class_with_few_images_weigh_more(bundle: Path, yellow: list[Path]) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.knn is not None and manifest.lineage.train_images == 10
    weights = []
    for count in (1, 3, 6):
        add(open_place(bundle), yellow[:count], "yellow")
        weights.append(read_gallery(gallery_path(bundle)).gallery.votes(manifest, manifest.knn)[0].tolist())
    assert weights == [[0, 0, 0, pytest.approx((10 / 3) ** 0.5)], [0, 0, 0, pytest.approx((10 / 9) ** 0.5)], [0, 0, 0, 1]]


@pytest.mark.slow
def test_golden_images_are_verified_without_the_gallery(bundle: Path, yellow: list[Path]) -> None:
    add(open_place(bundle), yellow, "yellow")
    assert verify(bundle).files == 4


def test_a_copied_or_pickled_predictor_keeps_its_gallery(bundle: Path, yellow: list[Path]) -> None:
    add(open_place(bundle), yellow, "yellow")
    predictor = edgetl.load(bundle)
    remove_all(open_place(bundle))
    for other in (copy.copy(predictor), pickle.loads(pickle.dumps(predictor))):
        assert other.labels == predictor.labels and other.predict(yellow[0]) == predictor.predict(yellow[0])


def test_duplicates_and_unreadable_images_are_reported_and_not_added(bundle: Path, tmp_path: Path, yellow: list[Path]) -> None:
    add(open_place(bundle), yellow[:2], "yellow")
    with Image.open(yellow[0]) as image:
        image.save(tmp_path / "copy.bmp")
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = add(open_place(bundle), [tmp_path / "copy.bmp", yellow[2], yellow[2], tmp_path / "broken.png"], "gold")
    assert done.changed == 1 and [item.reason for item in done.duplicates] == [
        "the gallery has it already, with the label yellow",
        "the gallery has it already, with the label gold",
    ]
    assert [item.image for item in done.failed] == [str(tmp_path / "broken.png")]
    assert {item.label: item.images for item in done.gallery.labels} == {"yellow": 2, "gold": 1}
    with pytest.raises(ImageError, match="no image was added"):
        add(open_place(bundle), [tmp_path / "broken.png"], "gold")


def test_removal_of_the_last_image_of_a_class_removes_the_class_and_then_the_file(bundle: Path, yellow: list[Path]) -> None:
    add(open_place(bundle), yellow[:2], "yellow")
    add(open_place(bundle), yellow[2:4], "gold")
    with pytest.raises(GalleryError, match=r"no such image. Nothing was removed. Its labels: yellow, gold"):
        remove(open_place(bundle), label="green")
    content = list_gallery(open_place(bundle)).images[0].content
    done = remove(open_place(bundle), [str(yellow[1]), content[:12], "0" * 12])
    assert done.changed == 2 and [item.label for item in done.gallery.labels] == ["gold"] and done.failed[0].image == "0" * 12
    assert edgetl.load(bundle).labels == ("red", "green", "blue", "gold")
    assert remove(open_place(bundle), label="gold").gallery.file is None
    assert not gallery_path(bundle).exists() and edgetl.load(bundle).labels == ("red", "green", "blue")
    with pytest.raises(GalleryError, match="has no gallery"):
        remove(open_place(bundle), label="gold")


@pytest.mark.parametrize("label", ["", " ", "a\tb", "a\nb", "zero\u200bwidth"])
def test_a_label_follows_the_rule_of_class_names(bundle: Path, yellow: list[Path], label: str) -> None:
    with pytest.raises(ConfigError, match="--label"):
        add(open_place(bundle), yellow, label)
    assert add(open_place(bundle), yellow[:1], "gelb – 黄色 👩\u200d🚀").changed == 1


def test_a_bundle_without_feature_outputs_is_refused_with_the_export_command(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match=r"it has no k-NN head with feature outputs.*edgetl export RUN --out BUNDLE"):
        open_place(write_bundle(tmp_path / "plain", 1))


def _changed(path: Path, **fields: object) -> None:
    """Change fields of the gallery in a file."""
    envelope = json.loads(path.read_text())
    gallery = {**json.loads(envelope["gallery"]), **fields}
    path.write_text(json.dumps({**envelope, "gallery": json.dumps(gallery)}))


def _vectors(values: np.ndarray) -> str:
    from edgetl.runtime.gallery.file import encode_vectors

    return encode_vectors(values.astype(np.float32))


def _entry(number: int) -> dict[str, str]:
    return {"content": f"{number:064x}", "label": "yellow", "added": "", "variant": "onnx-fp32"}


DAMAGE: dict[str, tuple[dict[str, object], str]] = {
    "another width": ({"width": 4}, "the vectors have 24 bytes, expected 32"),
    "NaN": ({"vectors": _vectors(np.full((2, 3), np.nan))}, "a vector is not finite"),
    "length": ({"vectors": _vectors(np.ones((2, 3)))}, "its length is not 1"),
    "no base64": ({"vectors": "é" * 32}, "not base64"),
    "too many images": ({"images": [_entry(number) for number in range(MAX_IMAGES + 1)]}, f"at most {MAX_IMAGES} items"),
    "no image": ({"images": []}, "at least 1 item"),
    "schema": ({"schema_version": 2}, "Upgrade edgetl"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_gallery_is_refused(bundle: Path, yellow: list[Path], name: str) -> None:
    add(open_place(bundle), yellow[:2], "yellow")
    fields, message = DAMAGE[name]
    _changed(gallery_path(bundle), **fields)
    for use in (lambda: edgetl.load(bundle), lambda: add(open_place(bundle), yellow[2:], "yellow")):
        with pytest.raises(GalleryError, match=message):
            use()
    assert remove_all(open_place(bundle)).gallery.file is None
    assert edgetl.load(bundle).labels == ("red", "green", "blue")


@pytest.mark.parametrize("data", [b"", b"{}", b"\x80", b'{"gallery": "[]"}', b'{"gallery": "\\ud800", "signature": null}'])
def test_a_file_that_is_no_gallery_is_refused(bundle: Path, data: bytes) -> None:
    gallery_path(bundle).write_bytes(data)
    with pytest.raises(GalleryError, match="The gallery is damaged and was not used"):
        edgetl.load(bundle)


def test_the_gallery_of_another_release_is_kept_reported_and_not_used(
    bundle: Path, yellow: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    add(open_place(bundle), yellow, "yellow")
    shutil.rmtree(bundle)
    write_knn_bundle(bundle, 2)
    assert edgetl.load(bundle).labels == ("red", "green", "blue")
    assert "belongs to release 1 of colors. It is kept and not used" in caplog.text
    with pytest.raises(GalleryError, match="belongs to release 1 of colors, not to"):
        add(open_place(bundle), yellow, "yellow")
    assert read_gallery(gallery_path(bundle)).gallery.release == 1


def test_a_gallery_is_bounded(bundle: Path, yellow: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    add(open_place(bundle), yellow[:2], "yellow")
    monkeypatch.setattr("edgetl.device.gallery.place.MAX_IMAGES", 3)
    with pytest.raises(GalleryError, match="at most 3 images with 3 features, and this one would have 4"):
        add(open_place(bundle), yellow[2:4], "yellow")
    assert len(read_gallery(gallery_path(bundle)).gallery.images) == 2


def test_a_second_process_does_not_change_the_gallery_at_the_same_time(bundle: Path, yellow: list[Path]) -> None:
    code = (
        "import sys; from edgetl.core.output.locks import locked; from pathlib import Path\n"
        f"with locked(Path({str(gallery_path(bundle))!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(GalleryError, match="another process changes the gallery"):
            add(open_place(bundle), yellow, "yellow")
        holder.communicate()
    assert add(open_place(bundle), yellow, "yellow").changed == 6


def test_a_killed_add_leaves_the_previous_gallery(bundle: Path, yellow: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    add(open_place(bundle), yellow[:2], "yellow")
    before = gallery_path(bundle).read_bytes()
    code = (
        "import os, sys; from pathlib import Path\n"
        "from edgetl.device.gallery.changes import add; from edgetl.device.gallery.place import open_place\n"
        "os.replace = lambda *_: os._exit(9)\n"
        f"add(open_place(Path({str(bundle)!r})), [Path({str(yellow[2])!r})], 'gold')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert gallery_path(bundle).read_bytes() == before and edgetl.load(bundle).labels[-1] == "yellow"
    assert add(open_place(bundle), yellow[2:3], "gold").changed == 1


def test_a_full_disk_leaves_the_previous_gallery(source: Path, tmp_path: Path, yellow: list[Path]) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        bundle = shutil.copytree(source, disk / "bundle")
        add(open_place(bundle), yellow[:1], "yellow")
        before = gallery_path(bundle).read_bytes()
        filler = fill(disk)
        with pytest.raises(StorageError, match="No space left on device"):
            add(open_place(bundle), yellow[1:], "yellow")
        assert gallery_path(bundle).read_bytes() == before
        assert {path.name for path in disk.iterdir()} == {"bundle", "bundle.gallery.json", filler.name}


def test_a_store_uses_the_gallery_of_its_active_release_only(store: Path, source: Path, tmp_path: Path, yellow: list[Path]) -> None:
    identity = active_release(store).identity
    add(open_place(store), yellow[:3], "yellow")
    first = active_release(store)
    assert first.identity != identity and edgetl.load(store).labels == ("red", "green", "blue", "yellow")
    add(open_place(store), yellow[3:], "yellow")
    assert [path.name for path in first.galleries.glob("*.json")] == [active_release(store).gallery_file(_digest(store)).name]
    add_release(store, write_knn_bundle(tmp_path / "2", 2))
    found = list_gallery(open_place(store))
    assert found.file is None and len(found.unused) == 1 and edgetl.load(store).labels == ("red", "green", "blue")
    clean(store, keep=3)
    roll_back(store)
    assert edgetl.load(store).labels == ("red", "green", "blue", "yellow") and list_gallery(open_place(store)).unused == ()
    assert remove(open_place(store), label="yellow").gallery.file is None
    assert active_release(store).record.gallery is None and edgetl.load(store).labels == ("red", "green", "blue")


def _digest(store: Path) -> str:
    digest = active_release(store).record.gallery
    assert digest is not None
    return digest


def test_a_store_refuses_a_gallery_that_was_replaced(store: Path, yellow: list[Path]) -> None:
    add(open_place(store), yellow[:2], "yellow")
    path = active_release(store).gallery
    assert path is not None
    path.write_bytes(path.read_bytes().replace(b"yellow", b"orange"))
    with pytest.raises(GalleryError, match=r"was changed since it was written \(SHA-256\)"):
        edgetl.load(store)
    path.unlink()
    with pytest.raises(GalleryError, match="cannot read"):
        edgetl.load(store)
    remove_all(open_place(store))
    assert edgetl.load(store).labels == ("red", "green", "blue")


def test_a_trusted_key_requires_a_valid_signature(bundle: Path, yellow: list[Path], key: PrivateKey, trust: Trust, keys: Path) -> None:
    sign_bundle(bundle, key)
    add(open_place(bundle), yellow[:2], "yellow")
    check = Check(lambda path: verified_bundle(path, trust)[0], lambda opened: check_gallery(opened, trust))
    with pytest.raises(UnsignedError, match="--sign-key"):
        Model(bundle, variant=None, threads=1, check=check)
    with pytest.raises(UnsignedError):
        add(open_place(bundle, trust, key), yellow[2:], "yellow")
    remove_all(open_place(bundle))
    assert add(open_place(bundle, trust, key), yellow[:3], "yellow").gallery.signature.state == "valid"
    assert Model(bundle, variant=None, threads=1, check=check).gallery == read_gallery(gallery_path(bundle)).sha256
    with pytest.raises(UnsignedError, match="the change would remove its signature"):
        add(open_place(bundle), yellow[3:], "yellow")
    with pytest.raises(SignatureError, match="is not trusted"):
        add(open_place(bundle, trust, read_private_key(keys / "other.key")), yellow[3:], "yellow")
    _changed(gallery_path(bundle), name="other")
    with pytest.raises(SignatureError, match="does not belong to this gallery"):
        Model(bundle, variant=None, threads=1, check=check)


def test_a_store_with_required_signatures_needs_a_signed_gallery(
    source: Path, tmp_path: Path, yellow: list[Path], key: PrivateKey, trust: Trust
) -> None:
    store = tmp_path / "store"
    add_release(store, source, key=key.public.fingerprint)
    for place in (open_place(store), open_place(store, trust), open_place(store, None, key)):
        with pytest.raises(UnsignedError, match="requires signatures"):
            add(place, yellow, "yellow")
    assert add(open_place(store, trust, key), yellow, "yellow").gallery.signature.state == "valid"


@pytest.fixture
def signed_gallery(bundle: Path, yellow: list[Path], key: PrivateKey, trust: Trust) -> Path:
    """Gallery file with three images, signed, of a bundle like that of a store."""
    sign_bundle(bundle, key)
    add(open_place(bundle, trust, key), yellow[:3], "yellow")
    return gallery_path(bundle)


@pytest.fixture
def strict_store(source: Path, tmp_path: Path, key: PrivateKey) -> Path:
    """Store that requires signatures."""
    add_release(tmp_path / "strict", source, key=key.public.fingerprint)
    return tmp_path / "strict"


def test_a_signed_gallery_is_installed_unchanged(strict_store: Path, signed_gallery: Path, keys: Path, command: Commands) -> None:
    done = command("gallery", "install", strict_store, signed_gallery, "--key", keys / "release.pub")
    assert done.code == 0 and "installed: 3 images" in done.stdout, done.stderr
    release = active_release(strict_store)
    assert release.gallery is not None and release.gallery.read_bytes() == signed_gallery.read_bytes()
    assert edgetl.load(strict_store).labels == ("red", "green", "blue", "yellow")
    assert command("gallery", "install", strict_store, "--key", keys / "release.pub").code == ConfigError.exit_code


def test_a_store_refuses_a_gallery_that_it_cannot_trust(
    strict_store: Path, signed_gallery: Path, keys: Path, trust: Trust, tmp_path: Path
) -> None:
    with pytest.raises(UnsignedError, match="Give the trusted keys with --key"):
        install(open_place(strict_store), signed_gallery)
    other = trust_keys([load_public_key(keys / "other.pub")])
    with pytest.raises(UnknownKeyError):
        install(open_place(strict_store, other), signed_gallery)
    envelope = json.loads(signed_gallery.read_text())
    (tmp_path / "unsigned.json").write_text(json.dumps({**envelope, "signature": None}))
    with pytest.raises(UnsignedError, match="has no signature"):
        install(open_place(strict_store, trust), tmp_path / "unsigned.json")
    _changed(signed_gallery, name="other")
    with pytest.raises(SignatureError, match="does not belong to this gallery"):
        install(open_place(strict_store, trust), signed_gallery)
    assert active_release(strict_store).record.gallery is None


def test_a_gallery_of_another_release_is_not_installed(store: Path, tmp_path: Path, yellow: list[Path]) -> None:
    other = write_knn_bundle(tmp_path / "other", 2)
    add(open_place(other), yellow, "yellow")
    with pytest.raises(GalleryError, match="belongs to release 2 of colors, not to"):
        install(open_place(store), gallery_path(other))
    assert active_release(store).record.gallery is None


def test_an_installed_gallery_does_not_remove_images_without_overwrite(
    store: Path, signed_gallery: Path, bundle: Path, yellow: list[Path]
) -> None:
    add(open_place(store), yellow[2:4], "yellow")
    with pytest.raises(GalleryError, match=r"does not have 1 of the 2 images .*--overwrite"):
        install(open_place(store), signed_gallery)
    assert install(open_place(store), signed_gallery, overwrite=True).changed == len(list_gallery(open_place(store)).images) == 3
    remove_all(open_place(bundle))
    add(open_place(bundle), yellow, "yellow")
    with pytest.raises(UnsignedError, match="Sign it, or replace the signed gallery with --overwrite"):
        install(open_place(store), gallery_path(bundle))


def test_a_power_loss_during_an_installation_leaves_the_old_or_the_new_gallery(
    store: Path, signed_gallery: Path, tmp_path: Path, yellow: list[Path]
) -> None:
    add(open_place(store), yellow[:1], "yellow")
    before = shutil.copytree(store, tmp_path / "before")
    old = _digest(store)
    with recording(Recorder(store)) as recorder:
        install(open_place(store), signed_gallery)
    new, place, found = _digest(store), tmp_path / "after", set()
    for point in range(len(recorder.changes) + 1):
        for lose in ("zeros", "names"):
            durable(recorder.changes[:point], before, store, place, lose=lose)
            found.add(_digest(place))
            assert len(edgetl.load(place).labels) == 4
            install(open_place(place), signed_gallery)
            assert _digest(place) == new
            shutil.rmtree(place)
    assert found == {old, new}


def test_a_running_model_loads_a_changed_gallery(bundle: Path, yellow: list[Path]) -> None:
    model = Model(bundle, variant=None, threads=1)
    assert model.gallery is None and not model.refresh(now=True)
    add(open_place(bundle), yellow, "yellow")
    assert model.refresh(now=True) and model.gallery == read_gallery(gallery_path(bundle)).sha256
    remove_all(open_place(bundle))
    assert model.refresh(now=True) and model.gallery is None


def test_records_and_health_of_a_runner_name_the_gallery(bundle: Path, yellow: list[Path]) -> None:
    add(open_place(bundle), yellow, "yellow")
    model, sink = Model(bundle, variant=None, threads=1), Collected()
    counts = Runner(model, Given(yellow[0].read_bytes()), [sink], stop=Stop()).run(flush_s=1)
    (record,) = sink.records
    assert record["gallery"] == counts.gallery == read_gallery(gallery_path(bundle)).sha256
    assert record["label"] == "yellow" and set(record["scores"]) == {"red", "green", "blue", "yellow"}


def test_the_commands_add_list_and_remove(bundle: Path, tmp_path: Path, yellow: list[Path], command: Commands) -> None:
    added = command("gallery", "add", bundle, yellow[0].parent, "--label", "yellow")
    assert added.code == 0 and "added: 6 images" in added.stdout and "new" in added.stdout
    listed = json.loads(command("gallery", "list", bundle, "--json").stdout)
    assert listed["labels"] == [{"label": "yellow", "images": 6, "new": True}]
    predicted = json.loads(command("predict", bundle, yellow[0], "--json").stdout)
    assert predicted["gallery"] == listed["sha256"] and predicted["predictions"][0]["label"] == "yellow"
    removed = command("gallery", "remove", bundle, yellow[0], tmp_path / "missing.png", "--json")
    assert removed.code == 5 and json.loads(removed.stdout)["changed"] == 1
    usage = command("gallery", "add", bundle, yellow[0])
    assert usage.code == 3 and "edgetl gallery add BUNDLE IMAGE --label NAME" in usage.stderr
