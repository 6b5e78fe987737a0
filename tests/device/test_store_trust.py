"""Signed releases of a store: changed bundles are refused with their exit codes, changed releases are not used, keys are rotated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME
from edgetl.core.store import active_release
from edgetl.device.keys import PrivateKey, generate_key, read_private_key
from edgetl.device.signature import Trust, open_trust, sign_bundle, verified_bundle
from edgetl.device.store.install import install
from edgetl.device.store.status import confirm, read_status
from edgetl.errors import BundleError, RevokedKeyError, UnknownKeyError
from tests.core.bundles import CHANGES, CODES, files_of
from tests.device.bundles import pass_self_test, release_in_use, trust_folder, write_bundle

MODEL = "onnx-fp32/1/model.onnx"
FILES = [MANIFEST_NAME, SIGNATURE_NAME, MODEL, "golden/0.png", "seen.bin", "card.md"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetl.device.store.install.self_test", pass_self_test)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, key: PrivateKey) -> dict[int, Path]:
    """Bundles of the releases 1 to 3, signed by the key ``release``."""
    root = tmp_path_factory.mktemp("bundles")
    found = {number: write_bundle(root / str(number), number) for number in (1, 2, 3)}
    for bundle in found.values():
        sign_bundle(bundle, key)
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, bundles: dict[int, Path], trust: Trust) -> Path:
    """Store with the confirmed releases 1 and 2. Do not change it."""
    store = tmp_path_factory.mktemp("installed") / "store"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("edgetl.device.store.install.self_test", pass_self_test)
        for number in (1, 2):
            install(str(bundles[number]), store, trust=trust)
            confirm(store)
    return store


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_bundle_is_refused_with_its_exit_code(
    installed: Path, bundles: dict[int, Path], trust: Trust, tmp_path: Path, change: str
) -> None:  # A1 to A8, A18
    store = shutil.copytree(installed, tmp_path / "store")
    before = files_of(store)
    for name in FILES:
        (tmp_path / "source").mkdir()
        CHANGES[change](shutil.copytree(bundles[3], tmp_path / "source/3"), name)
        with pytest.raises(BundleError) as refused:
            install(str(tmp_path / "source/3"), store, trust=trust)
        assert refused.value.exit_code == CODES.get(name, {}).get(change, 9)
        assert files_of(store) == before
        shutil.rmtree(tmp_path / "source")
    install(str(bundles[3]), store, trust=trust)
    assert release_in_use(store) == 3


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_release_is_not_used(installed: Path, trust: Trust, tmp_path: Path, change: str) -> None:  # A1 to A8
    for name in FILES:
        store = shutil.copytree(installed, tmp_path / "store")
        release = active_release(store).path
        CHANGES[change](release, name)
        with pytest.raises(BundleError) as refused:
            bundle, _ = verified_bundle(release, trust)
            for file in bundle.manifest.all_files():
                bundle.read(file)
        assert refused.value.exit_code == CODES.get(name, {}).get(change, 9)
        # Loading compares the manifest with the state of the store, and reads the model. Only trusted keys need the signature.
        assert release_in_use(store) == 1 or name not in (MANIFEST_NAME, MODEL)
        assert read_status(store).damaged or name == SIGNATURE_NAME
        shutil.rmtree(store)


def test_keys_are_rotated_between_installations(tmp_path: Path) -> None:  # D12
    for name in ("old", "new"):
        generate_key(tmp_path / f"{name}.key")
    old, new = (read_private_key(tmp_path / f"{name}.key") for name in ("old", "new"))
    bundles = {number: write_bundle(tmp_path / str(number), number) for number in (1, 2, 3)}
    for number, key in ((1, old), (2, new), (3, old)):
        sign_bundle(bundles[number], key)
    device, offline = tmp_path / "device", tmp_path / "offline"
    online_keys, offline_keys = (trust_folder(tmp_path / name, tmp_path / "old.pub") for name in ("online keys", "offline keys"))
    for store, keys in ((device, online_keys), (offline, offline_keys)):
        install(str(bundles[1]), store, trust=open_trust(keys))
        confirm(store)

    # 1. The device gets the new public key, then a release of the new key. A device that was offline refuses it and keeps its release.
    trust_folder(online_keys, tmp_path / "new.pub")
    install(str(bundles[2]), device, trust=open_trust(online_keys))
    with pytest.raises(UnknownKeyError):
        install(str(bundles[2]), offline, trust=open_trust(offline_keys))
    assert [release_in_use(store) for store in (device, offline)] == [2, 1]

    # 2. The old key is revoked. A later release with its signature is refused, and the active release stays.
    trust_folder(online_keys, revoked=old.public.fingerprint)
    with pytest.raises(RevokedKeyError):
        install(str(bundles[3]), device, trust=open_trust(online_keys))
    assert release_in_use(device) == 2

    # 3. The device that was offline gets the trusted keys. Its release of the revoked key is in use until the update.
    shutil.copytree(online_keys, offline_keys, dirs_exist_ok=True)
    assert release_in_use(offline) == 1
    install(str(bundles[2]), offline, trust=open_trust(offline_keys))
    assert release_in_use(offline) == 2
