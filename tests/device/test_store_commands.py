"""Commands on a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetl.device.keys import generate_key, public_path, read_private_key
from edgetl.device.signature import sign_bundle
from edgetl.device.transport import pack
from edgetl.errors import UnsignedError
from tests.command import Printed, edgetl, edgetl_in_one_process
from tests.device.bundles import release_in_use, write_bundle


def _run(*commands: tuple[object, ...]) -> list[Printed]:
    return edgetl_in_one_process([[str(part) for part in command] for command in commands])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Signed bundles of the releases 1 and 2, with the trusted key in ``keys``."""
    root = tmp_path_factory.mktemp("bundles")
    (root / "keys").mkdir()
    generate_key(root / "release.key")
    public_path(root / "release.key").rename(root / "keys/release.pub")
    bundles = {number: write_bundle(root / str(number), number) for number in (1, 2)}
    for bundle in bundles.values():
        sign_bundle(bundle, read_private_key(root / "release.key"))
    return bundles


def test_a_signed_release_is_installed_confirmed_and_rolled_back(bundles: dict[int, Path], tmp_path: Path) -> None:
    store, keys = tmp_path / "store", bundles[1].parent / "keys"
    pack(bundles[2], tmp_path / "2.edgetl")
    first, tuned, confirmed, second, status, back, cleaned = _run(
        ("install", bundles[1], "--store", store, "--trust", keys),
        ("tune", store),
        ("confirm", "--store", store),
        ("install", tmp_path / "2.edgetl", "--store", store, "--key", keys / "release.pub", "--no-tune"),
        ("status", "--store", store),
        ("rollback", "--store", store),
        ("gc", "--store", store, "--keep", "1"),
    )
    assert [item.code for item in (first, tuned, confirmed, second, status, back, cleaned)] == [0] * 7, second.stderr
    assert "self-test passed: onnx-fp32, 1 golden images" in first.stdout
    assert "tuned: onnx-fp32, " in first.stdout and "timing onnx-fp32" in first.stderr
    assert "release 1 is tuned for this host already. --force repeats it." in tuned.stderr and "chosen onnx-fp32" in tuned.stdout
    assert "active: colors release 1 (signed by the key" in first.stdout
    assert "active: colors release 2, after release 1" in second.stdout
    assert "state            probation" in status.stdout
    assert "crashes          0 of 3" in status.stdout
    assert "tuning not in use: the release is not tuned. Tune the release: edgetl tune" in " ".join(status.stdout.split())
    assert "signature        required" in status.stdout
    assert "rollback of release 2  to release 1: rolled back by the operator." in back.stdout
    assert "1 release(s) kept" in cleaned.stdout
    assert release_in_use(store) == 1


def test_refused_releases_have_their_exit_codes(bundles: dict[int, Path], tmp_path: Path) -> None:
    store, keys = tmp_path / "store", bundles[1].parent / "keys"
    unsigned = write_bundle(tmp_path / "unsigned", 3)
    printed = _run(
        ("status", "--store", store),
        ("install", bundles[2], "--store", store, "--no-tune", "--require-signature"),
        ("install", bundles[2], "--store", store, "--no-tune"),
        ("install", bundles[1], "--store", store),
        ("install", unsigned, "--store", store, "--trust", keys),
        ("install", "http://example.com/a.edgetl", "--store", store),
        ("install", tmp_path / "missing", "--store", store),
        ("rollback", "--store", store),
    )
    assert [item.code for item in printed] == [26, 3, 0, 25, 21, 24, 8, 26]
    assert all("Traceback" not in item.stderr for item in printed)
    status = json.loads(edgetl("status", "--store", store, "--json").stdout)
    assert (status["state"], status["active"]["release"]) == ("probation", 2)


def test_trusted_keys_of_the_environment_refuse_an_unsigned_release(bundles: dict[int, Path], tmp_path: Path) -> None:
    unsigned = write_bundle(tmp_path / "unsigned", 3)
    command = ["install", str(unsigned), "--store", str(tmp_path / "store")]
    (printed,) = edgetl_in_one_process([command], [{"EDGETL_TRUST": str(bundles[1].parent / "keys")}])
    assert printed.code == UnsignedError.exit_code, printed.stderr


def test_status_of_a_store_without_a_healthy_release_has_the_reason(bundles: dict[int, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    installed, status = _run(
        ("install", bundles[1], "--store", store, "--tries", "1", "--no-tune"),
        ("status", "--store", store),
    )
    assert (installed.code, status.code) == (0, 0)
    damaged = next((store / "releases").iterdir()) / "card.md"
    damaged.unlink()
    damaged_status, predicted, not_ready = _run(
        ("status", "--store", store),
        ("predict", store, bundles[1] / "golden/0.png"),
        ("status", "--store", store),
    )
    assert (damaged_status.code, predicted.code, not_ready.code) == (9, 26, 26)
    assert "is not ready: release 1 was rolled back, and no earlier release is left" in predicted.words
    assert "state       not ready" in not_ready.stdout
