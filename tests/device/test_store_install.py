"""Installation: sequence, release policy, self-test, rollback, cleanup."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import edgetl
from edgetl.core.store import Release, active_release
from edgetl.core.store.state import read_state
from edgetl.core.system.execution import Tuning
from edgetl.device.keys import PrivateKey
from edgetl.device.signature import Trust, sign_bundle
from edgetl.device.store.cleanup import clean
from edgetl.device.store.config import InstallConfig
from edgetl.device.store.install import install
from edgetl.device.store.staging import install_lock
from edgetl.device.store.status import confirm, read_status, roll_back
from edgetl.device.store.tuning_process import tune_release
from edgetl.device.transport import pack
from edgetl.device.tuning import TuneConfig
from edgetl.errors import BundleError, DowngradeError, InstallError, IntegrityError, MissingExtraError, StoreError, UnsignedError
from tests.core.bundles import files_of
from tests.core.deadline import within
from tests.device.bundles import network, network_without_kernel, pass_self_test, release_in_use, write_bundle

ALLOWED = InstallConfig(allow_downgrade=True)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Bundles of the releases 1 to 5."""
    root = tmp_path_factory.mktemp("bundles")
    return {number: write_bundle(root / str(number), number) for number in range(1, 6)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "a store"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Replace the self-test, which takes a second, in the tests of the sequence around it."""
    if "self_tested" not in request.fixturenames:
        monkeypatch.setattr("edgetl.device.store.install.self_test", pass_self_test)


@pytest.fixture
def self_tested() -> None:
    """Run the real self-test."""


def test_install_creates_a_store_with_the_release_in_probation(store: Path, bundles: dict[int, Path], self_tested: None) -> None:
    found = install(str(bundles[1]), store)
    assert (found.release.release, found.replaced, found.confirmed) == (1, None, False)
    assert found.self_test is not None
    assert found.self_test.variant == "onnx-fp32"
    assert release_in_use(store) == 1
    assert [path.name for path in (store / "releases").iterdir()] == [found.release.id]


def test_a_transport_file_is_installed_like_its_folder(store: Path, bundles: dict[int, Path], tmp_path: Path) -> None:
    pack(bundles[1], tmp_path / "colors.edgetl")
    assert install(str(tmp_path / "colors.edgetl"), store).release.release == 1
    assert release_in_use(store) == 1


def test_an_update_confirm_and_rollback_change_the_active_release(store: Path, bundles: dict[int, Path]) -> None:
    install(str(bundles[1]), store)
    assert confirm(store).state == "confirmed"
    assert install(str(bundles[2]), store).replaced == 1
    assert read_status(store).state == "probation"
    assert roll_back(store).active == active_release(store).record
    assert release_in_use(store) == 1
    with pytest.raises(InstallError, match="release 2 was rolled back on this device: rolled back by the operator"):
        install(str(bundles[2]), store)
    install(str(bundles[2]), store, ALLOWED)
    assert release_in_use(store) == 2


def test_installing_the_active_release_again_changes_nothing(store: Path, bundles: dict[int, Path]) -> None:
    install(str(bundles[1]), store)
    before = (store / "state.json").read_bytes()
    assert install(str(bundles[1]), store).unchanged
    assert (store / "state.json").read_bytes() == before


def test_installing_a_damaged_active_release_again_repairs_it(store: Path, bundles: dict[int, Path]) -> None:
    install(str(bundles[1]), store)
    confirm(store)
    (active_release(store).path / "card.md").write_text("changed")
    assert read_status(store).damaged
    assert install(str(bundles[1]), store).confirmed
    assert read_status(store).damaged == ()
    assert read_status(store).earlier == ()


def test_an_older_release_is_refused_unless_a_downgrade_is_allowed(store: Path, bundles: dict[int, Path]) -> None:  # D7
    install(str(bundles[3]), store)
    with pytest.raises(DowngradeError, match="release 2 is older than release 3"):
        install(str(bundles[2]), store)
    assert release_in_use(store) == 3
    install(str(bundles[2]), store, ALLOWED)
    assert release_in_use(store) == 2
    assert read_state(store).history[-1].action == "downgrade"
    install(str(bundles[3]), store)
    assert release_in_use(store) == 3


def test_a_rollback_does_not_lower_the_high_water(store: Path, bundles: dict[int, Path]) -> None:  # D7
    install(str(bundles[1]), store)
    confirm(store)
    install(str(bundles[3]), store)
    roll_back(store)
    with pytest.raises(DowngradeError):
        install(str(bundles[2]), store)


def test_the_same_release_number_with_other_content_is_refused(store: Path, bundles: dict[int, Path], tmp_path: Path) -> None:  # D7
    install(str(bundles[1]), store)
    other = write_bundle(tmp_path / "other", 1, note="changed")
    with pytest.raises(DowngradeError, match="release 1 was active already, with other content"):
        install(str(other), store)


def test_a_release_number_that_is_far_too_large_is_refused(store: Path, bundles: dict[int, Path], tmp_path: Path) -> None:  # D7
    install(str(bundles[1]), store)
    with pytest.raises(InstallError, match="is more than 1,000,000,000 above release 1"):
        install(str(write_bundle(tmp_path / "jump", 2**53 - 1)), store)


def test_a_bundle_of_another_name_is_refused(store: Path, bundles: dict[int, Path], tmp_path: Path) -> None:  # D8
    install(str(bundles[1]), store)
    with pytest.raises(InstallError, match="has releases of 'colors', but this bundle is 'shapes'"):
        install(str(write_bundle(tmp_path / "shapes", 2, name="shapes")), store)


def test_a_damaged_source_leaves_no_trace(store: Path, bundles: dict[int, Path], tmp_path: Path) -> None:
    install(str(bundles[1]), store)
    shutil.copytree(bundles[2], tmp_path / "damaged")
    (tmp_path / "damaged/card.md").write_text("x")
    before = sorted(store.rglob("*"))
    with pytest.raises(IntegrityError):
        install(str(tmp_path / "damaged"), store)
    assert sorted(store.rglob("*")) == before


def test_a_source_that_is_no_bundle_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.edgetl").write_bytes(b"x" * 100)
    with pytest.raises(BundleError, match="not a transport file"):
        install(str(tmp_path / "photo.edgetl"), store)
    with pytest.raises(BundleError, match="does not exist"):
        install(str(tmp_path / "missing"), store)
    os.mkfifo(tmp_path / "pipe.edgetl")
    for special in (str(tmp_path / "pipe.edgetl"), os.devnull):
        with within(60), pytest.raises(BundleError, match=r"is a file\. Give the folder"):
            install(special, store)


def test_a_release_with_wrong_golden_scores_is_refused(
    store: Path, bundles: dict[int, Path], tmp_path: Path, self_tested: None
) -> None:  # A31
    install(str(bundles[1]), store)
    wrong = write_bundle(tmp_path / "wrong", 2, model=network(9.0))
    with pytest.raises(InstallError, match=r"failed its self-test(.|\n)*golden/0.png differ from the manifest"):
        install(str(wrong), store)
    assert release_in_use(store) == 1
    assert len(list((store / "releases").iterdir())) == 1


@pytest.mark.parametrize(("model", "reason"), [(network(9.0), "differ from the manifest"), (network_without_kernel(), "cannot load")])
def test_a_variant_that_fails_on_this_host_is_not_used(store: Path, tmp_path: Path, model: bytes, reason: str, self_tested: None) -> None:
    mixed = write_bundle(tmp_path / "mixed", 4, precisions=("int8", "fp32"), model=model)
    found = install(str(mixed), store)
    assert found.failures[0].startswith("onnx-int8: ")
    assert reason in found.failures[0]
    predictor = edgetl.load(store)
    assert predictor.variant is not None
    assert predictor.variant.name == "onnx-fp32"


def test_a_release_without_an_installed_engine_is_refused(
    store: Path, bundles: dict[int, Path], self_tested: None, monkeypatch: pytest.MonkeyPatch
) -> None:  # A32, D8
    install(str(bundles[1]), store)
    before = files_of(store)
    with monkeypatch.context() as patched:
        patched.setattr("edgetl.runtime.engine.installed", lambda _: False)
        with pytest.raises(MissingExtraError, match=r"onnxruntime is not installed\. Install it with"):
            install(str(bundles[2]), store)
    assert files_of(store) == before


def test_a_slow_release_is_refused(store: Path, bundles: dict[int, Path], self_tested: None) -> None:
    with pytest.raises(InstallError, match=r"the median latency is .* ms, and the limit is 1e-09 ms"):
        install(str(bundles[1]), store, InstallConfig(max_latency_ms=1e-9))
    with pytest.raises(StoreError, match="No complete release"):
        edgetl.load(store)


def test_a_release_that_exceeds_the_memory_limit_is_refused(store: Path, bundles: dict[int, Path], self_tested: None) -> None:
    with pytest.raises(InstallError, match="failed its self-test"):
        install(str(bundles[1]), store, InstallConfig(memory_mb=1))


def test_at_most_three_releases_are_kept(store: Path, bundles: dict[int, Path]) -> None:
    for number in range(1, 6):
        install(str(bundles[number]), store)
        confirm(store)
    assert sorted(int(path.name.split("-")[0]) for path in (store / "releases").iterdir()) == [3, 4, 5]
    roll_back(store)
    assert release_in_use(store) == 4
    assert clean(store, keep=1).removed
    assert [path.name for path in (store / "releases").iterdir()] == [active_release(store).id]
    with pytest.raises(StoreError, match="no complete earlier release"):
        roll_back(store)


@pytest.mark.parametrize("cycles", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_size_of_a_store_is_bounded(store: Path, bundles: dict[int, Path], cycles: int) -> None:  # D14
    sizes = []
    for cycle in range(cycles):
        install(str(bundles[1 + cycle % 4]), store, ALLOWED)
        confirm(store)
        install(str(bundles[5]), store, ALLOWED)
        roll_back(store)
        files = [path for path in store.rglob("*") if path.is_file()]
        sizes.append(sum(path.stat().st_size for path in files))
        assert len(list((store / "releases").iterdir())) <= 4
        assert len(files) <= 30
    print(f"{cycles} cycles: the store has at most {max(sizes):,} bytes")
    assert max(sizes) < 4 * sum(path.stat().st_size for path in bundles[1].rglob("*") if path.is_file()) + 30_000


def test_a_second_installation_at_the_same_time_is_an_error(store: Path, bundles: dict[int, Path]) -> None:  # D4
    store.mkdir()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with install_lock(store):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        with pytest.raises(InstallError, match="another process installs a release"):
            install(str(bundles[1]), store)
    finally:
        done.set()
        thread.join()
    install(str(bundles[1]), store)


def test_an_installation_of_another_process_is_an_error(store: Path, bundles: dict[int, Path]) -> None:  # D4
    install(str(bundles[1]), store)
    code = "import sys\nfrom pathlib import Path\nfrom edgetl.device.store.staging import install_lock\n"
    code += "with install_lock(Path(sys.argv[1])):\n    print(flush=True)\n    sys.stdin.read()\n"
    with subprocess.Popen([sys.executable, "-c", code, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for change in (lambda: install(str(bundles[2]), store), lambda: clean(store)):
            with pytest.raises(InstallError, match="another process installs a release"):
                change()
        assert release_in_use(store) == 1
        other.communicate()
    install(str(bundles[2]), store)


def test_a_store_can_be_read_during_an_installation(store: Path, bundles: dict[int, Path]) -> None:  # D4
    install(str(bundles[1]), store)
    with install_lock(store):
        assert release_in_use(store) == 1


def test_the_clock_of_the_device_decides_nothing(store: Path, bundles: dict[int, Path]) -> None:  # D9
    install(str(bundles[2]), store)
    state = json.loads((store / "state.json").read_text())
    state["active"]["installed"] = "1970-01-01T00:00:00+00:00"
    (store / "state.json").write_text(json.dumps(state))
    with pytest.raises(DowngradeError):
        install(str(bundles[1]), store)
    assert release_in_use(store) == 2


def test_a_store_has_no_links_and_no_names_that_differ_in_case_only(store: Path, bundles: dict[int, Path]) -> None:  # D13
    install(str(bundles[1]), store)
    paths = list(store.rglob("*"))
    assert not any(path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1) for path in paths)
    assert len({str(path).casefold() for path in paths}) == len(paths)


@pytest.fixture
def signed(tmp_path: Path, key: PrivateKey) -> dict[int, Path]:
    """Signed bundles of the releases 6 and 7."""
    found = {number: write_bundle(tmp_path / f"signed {number}", number) for number in (6, 7)}
    for bundle in found.values():
        sign_bundle(bundle, key)
    return found


UNSIGNED = InstallConfig(allow_unsigned=True)


def test_a_store_requires_a_signature_after_an_installation_with_trusted_keys(
    store: Path, bundles: dict[int, Path], signed: dict[int, Path], trust: Trust, tmp_path: Path
) -> None:
    install(str(bundles[1]), store)
    assert not confirm(store).signature_required
    install(str(signed[6]), store, trust=trust)
    assert read_status(store).signature_required
    for source in (str(signed[6]), str(signed[7]), "https://127.0.0.1:9/7.edgetl"):  # before the download
        with pytest.raises(InstallError, match="requires a signature, because an earlier release was installed with trusted keys"):
            install(source, store)
    with pytest.raises(UnsignedError):
        install(str(write_bundle(tmp_path / "8", 8)), store, trust=trust)
    assert release_in_use(store) == 6
    roll_back(store)
    with pytest.raises(InstallError, match="requires a signature"):
        install(str(signed[7]), store)


def test_an_operator_ends_the_requirement_of_a_signature(
    store: Path, bundles: dict[int, Path], signed: dict[int, Path], trust: Trust, tmp_path: Path
) -> None:
    install(str(signed[6]), store, trust=trust)
    install(str(write_bundle(tmp_path / "8", 8)), store, UNSIGNED)
    state = read_state(store)
    assert (state.history[-2].action, state.history[-1].action, state.signature_required) == ("allow-unsigned", "install", False)
    install(str(write_bundle(tmp_path / "9", 9)), store)
    assert release_in_use(store) == 9


def test_a_check_of_the_active_release_with_trusted_keys_requires_a_signature(store: Path, signed: dict[int, Path], trust: Trust) -> None:
    install(str(signed[6]), store)
    assert not read_state(store).signature_required
    assert install(str(signed[6]), store, trust=trust).unchanged
    assert read_state(store).signature_required


def test_a_lost_state_does_not_end_the_requirement_of_a_signature(store: Path, signed: dict[int, Path], trust: Trust) -> None:  # D11
    install(str(signed[6]), store, trust=trust)
    (store / "state.json").write_text("")
    with pytest.raises(InstallError, match="requires a signature"):
        install(str(signed[7]), store)
    (active_release(store).path / "card.md").unlink()  # no complete release is left
    with pytest.raises(InstallError, match="requires a signature"):
        install(str(signed[7]), store)


def test_a_state_of_an_earlier_version_is_read(store: Path, bundles: dict[int, Path]) -> None:
    install(str(bundles[1]), store)
    state = json.loads((store / "state.json").read_text())
    del state["signature_required"]
    (store / "state.json").write_text(json.dumps(state))
    assert not read_state(store).signature_required
    assert install(str(bundles[2]), store).replaced == 1


def test_a_release_is_tuned_before_its_activation(store: Path, bundles: dict[int, Path]) -> None:
    def tune(release: Release) -> Tuning:
        with pytest.raises(StoreError):
            active_release(store)
        return tune_release(release, TuneConfig(threads=1, max_seconds=1.0))

    found = install(str(bundles[1]), store, tune=tune)
    assert found.tuning is not None and found.tuning_error == ""
    status = read_status(store)
    assert (status.tuned, status.tuning_problem) == (found.tuning.chosen, "")


def test_a_tuning_that_fails_does_not_stop_the_installation(
    store: Path, bundles: dict[int, Path], caplog: pytest.LogCaptureFixture
) -> None:
    def tune(release: Release) -> Tuning:
        (release.path / "card.md").unlink()
        return tune_release(release)

    found = install(str(bundles[1]), store, tune=tune)
    assert found.tuning is None and "card.md" in found.tuning_error
    assert "release 1 is not tuned and uses onnx-fp32" in caplog.text
    assert read_status(store).tuning_problem == "the release is not tuned"
