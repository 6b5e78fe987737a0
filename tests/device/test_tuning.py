"""Tuning of a bundle on this host."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path

import pytest

from bench.memory import family
from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.config import read_json
from edgetl.core.store import active_release
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting, Timing, Tuning
from edgetl.device.store.status import read_status
from edgetl.device.store.tuning_process import tune_release
from edgetl.device.tuning import TuneConfig, best_of, thread_counts, tune
from edgetl.errors import ConfigError, EngineError
from edgetl.runtime.predictor import load
from tests.command import edgetl, edgetl_in_one_process
from tests.device.bundles import add_release, image, write_bundle
from tests.runtime.test_execution_settings import with_settings

ONE_THREAD = TuneConfig(threads=1, max_seconds=5.0)
SCALED = ExecutionSetting(decode="scaled").model_dump()
F16 = ExecutionSetting(precision="f16").model_dump()


@pytest.fixture(scope="module")
def tuned(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Tuning]:
    """Bundle with a kept, a rejected and an unsupported setting, and its tuning on one thread."""
    folder = tmp_path_factory.mktemp("tuned") / "bundle"
    rejected = {"setting": ExecutionSetting(provider="dnnl").model_dump(), "kept": False, "reason": "accuracy drops"}
    copy = with_settings(bundle, folder, {"setting": SCALED, "kept": True}, rejected, {"setting": F16, "kept": True})
    return copy, tune(copy, ONE_THREAD)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Bundle with two variants of a tiny network."""
    return write_bundle(tmp_path / "small", 1, precisions=("fp32", "fp16"))


@pytest.mark.parametrize(("limit", "counts"), [(1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (4, [4, 2, 1]), (6, [6, 4, 2, 1])])
def test_thread_counts_are_the_limit_and_powers_of_two(limit: int, counts: list[int]) -> None:
    assert thread_counts(limit) == counts


@pytest.mark.parametrize(
    ("other", "best"),
    [
        ({"whole_ms": 4.2}, "first"),  # slower
        ({"whole_ms": 4.05}, "other"),  # as fast, with fewer special settings
        ({"whole_ms": 4.05, "peak_rss_mb": 140.0}, "first"),  # as fast, with more memory
        ({"whole_ms": 4.05, "peak_rss_mb": 110.0, "load_ms": 400.0}, "other"),
        ({"whole_ms": 4.05, "load_ms": 600.0}, "first"),  # as fast, with a longer load time
        ({"whole_ms": 3.0, "peak_rss_mb": 900.0, "load_ms": 3000.0}, "other"),  # faster
    ],
)
def test_choices_of_equal_speed_differ_by_memory_load_time_and_settings(other: dict[str, float], best: str) -> None:
    setting = ExecutionSetting(precision="bf16")
    figures = {"n": 40, "golden_difference": 0.0, "threads": 1}
    values = {"peak_rss_mb": 100.0, "load_ms": 300.0, **figures}
    first = Timing.model_validate({"variant": "openvino-fp32", "setting": setting, "whole_ms": 4.0, **values})
    second = Timing.model_validate({"variant": "onnx-fp32", **values, **other})
    assert best_of([first, second]) == {"first": first, "other": second}[best]


def test_a_tuning_contains_a_timing_of_each_choice_and_the_chosen_one(tuned: tuple[Bundle, Tuning]) -> None:
    bundle, tuning = tuned
    times = [item.whole_ms for item in tuning.timings]
    assert times == sorted(times) and min(times) > 0
    assert len({item.choice for item in tuning.timings}) == len(tuning.timings)
    assert {item.variant for item in tuning.timings} == {variant.name for variant in bundle.manifest.variants}
    assert any(item.setting.static_batch for item in tuning.timings if item.variant == "openvino-fp32")
    chosen = next(item for item in tuning.timings if item.choice == tuning.chosen)
    assert chosen.peak_rss_mb is not None and chosen.load_ms is not None and chosen.n > 0
    assert tuning.manifest_sha256 == bundle.manifest_sha256 and tuning.max_threads == 1 and not tuning.outdated(bundle.manifest_sha256)


def test_the_fastest_choices_are_also_timed_with_scaled_decoding(tuned: tuple[Bundle, Tuning]) -> None:
    _, tuning = tuned
    assert any(item.setting.decode == "scaled" for item in tuning.timings)
    finalists = [item for item in tuning.timings if item.peak_rss_mb is not None]
    assert tuning.chosen == best_of(finalists).choice


def test_settings_that_cannot_be_used_are_listed_with_a_reason(tuned: tuple[Bundle, Tuning]) -> None:
    _, tuning = tuned
    reasons = {(item.variant, item.setting.describe() if item.setting else ""): item.reason for item in tuning.skipped}
    assert reasons["onnx-fp32", "f32, dnnl"] == "not kept by the accuracy gate: accuracy drops"
    assert "does not support it" in reasons["onnx-fp32", "f16"]


def test_a_variant_with_other_golden_scores_is_not_timed(bundle: Bundle, tmp_path: Path) -> None:
    folder = with_settings(bundle, tmp_path / "bundle").path
    manifest = json.loads((folder / "manifest.json").read_text())
    for golden in manifest["golden"]:
        golden["scores"] = {name: row if name == "onnx-fp32" else row[::-1] for name, row in golden["scores"].items()}
    (folder / "manifest.json").write_text(json.dumps(manifest) + "\n")
    tuning = tune(open_bundle(folder), ONE_THREAD)
    assert {item.variant for item in tuning.timings} == {"onnx-fp32"} and tuning.chosen.setting == DEFAULT_SETTING
    assert all("differ from the manifest" in item.reason for item in tuning.skipped if item.variant == "openvino-fp32")
    for golden in manifest["golden"]:
        golden["scores"]["onnx-fp32"].reverse()
    (folder / "manifest.json").write_text(json.dumps(manifest) + "\n")
    with pytest.raises(EngineError, match="no variant can be used on this host"):
        tune(open_bundle(folder), ONE_THREAD)


def test_choices_beyond_the_time_limit_are_listed(small: Path) -> None:
    tuning = tune(open_bundle(small), TuneConfig(threads=1, max_seconds=1e-6))
    (late,) = [item for item in tuning.skipped if "time limit" in item.reason]
    assert late.variant == "onnx-fp16" and "Raise --max-seconds" in late.reason
    assert [item.variant for item in tuning.timings] == ["onnx-fp32"]


def test_a_predictor_uses_the_tuned_choice(tuned: tuple[Bundle, Tuning], tmp_path: Path, photo: bytes) -> None:
    bundle, tuning = tuned
    (tmp_path / "tuning.json").write_text(tuning.model_dump_json())
    for given in (tuning, tmp_path / "tuning.json", str(tmp_path / "tuning.json")):
        predictor = load(bundle, tuning=given)
        assert predictor.variant is not None and predictor.variant.name == tuning.chosen.variant
        assert predictor.setting == tuning.chosen.setting and predictor.predict(photo).label in bundle.manifest.labels
    other = next(name.name for name in bundle.manifest.variants if name.name != tuning.chosen.variant)
    assert load(bundle, variant=other, tuning=tuning).setting == DEFAULT_SETTING


def test_an_outdated_tuning_is_not_used_and_is_logged(
    tuned: tuple[Bundle, Tuning], bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        predictor = load(bundle, tuning=tuned[1])
    assert predictor.variant == bundle.manifest.variants[0] and predictor.setting == DEFAULT_SETTING
    assert "is outdated and is not used: it belongs to another bundle. Repeat it with `edgetl tune`." in caplog.text


def test_another_file_is_not_a_tuning(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"other\.json"):
        load(bundle, tuning=tmp_path / "other.json")


def test_the_command_prints_a_table_and_writes_the_file(small: Path, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(image())
    out, common = tmp_path / "tuning.json", ["tune", str(small), "--threads", "1"]
    table, other, inside, predicted = edgetl_in_one_process(
        [
            [*common, "--images", str(tmp_path / "red.png"), "--out", str(out)],
            [*common, "--out", str(tmp_path / "red.png")],
            [*common, "--out", str(small / "tuning.json")],
            ["predict", str(small), str(tmp_path / "red.png"), "--tuning", str(out)],
        ]
    )
    assert table.code == 0 and "1 different images (files)" in table.stdout, table.stderr
    assert other.code == ConfigError.exit_code and "`edgetl tune` did not write it" in other.words
    assert inside.code == ConfigError.exit_code and "is inside the bundle" in inside.words
    chosen = read_json(out, Tuning, ConfigError).chosen
    assert f"chosen {chosen.variant}, 1 thread(s), f32" in table.stdout
    assert predicted.code == 0 and "red.png: red" in predicted.stdout


def test_the_command_prints_the_tuning_as_json(small: Path) -> None:
    printed = edgetl("tune", small, "--threads", "1", "--json")
    assert Tuning.model_validate_json(printed.stdout).manifest_sha256 == open_bundle(small).manifest_sha256, printed.stderr


def test_a_store_keeps_the_tuning_of_its_release_and_uses_it(small: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    add_release(store, small)
    release = active_release(store)
    tuning = tune_release(release, ONE_THREAD)
    assert read_json(release.tuning, Tuning, ConfigError) == tuning
    assert tune_release(release, ONE_THREAD) == tuning, "it applies to this host"
    for name in ("onnx-fp32", "onnx-fp16"):
        chosen = tuning.chosen.model_copy(update={"variant": name})
        release.tuning.write_text(tuning.model_copy(update={"chosen": chosen}).model_dump_json())
        loaded, given = load(store), load(store, variant="onnx-fp32")
        assert loaded.variant is not None and loaded.variant.name == name
        assert given.variant is not None and given.variant.name == "onnx-fp32"


@pytest.mark.parametrize("content", ["", "{}", "not JSON", '{"schema_version": 9}'])
def test_a_damaged_tuning_of_a_store_is_logged_and_not_used(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    store = tmp_path / "store"
    add_release(store, small)
    path = active_release(store).tuning
    path.parent.mkdir()
    path.write_text(content)
    assert load(store).setting == DEFAULT_SETTING and "The tuning is not used" in caplog.text


def test_an_output_file_for_a_store_is_an_error(small: Path, tmp_path: Path) -> None:
    add_release(tmp_path / "store", small)
    (done,) = edgetl_in_one_process([["tune", str(tmp_path / "store"), "--out", str(tmp_path / "tuning.json")]])
    assert done.code == ConfigError.exit_code and "is a store, which keeps the result itself. Omit --out." in done.words


def test_a_tuning_of_a_store_is_repeated_if_it_is_outdated_or_made_for_other_options(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, photo, quick = tmp_path / "store", tmp_path / "red.png", TuneConfig(threads=1, max_seconds=0.1)
    add_release(store, small)
    photo.write_bytes(image())
    release = active_release(store)
    tuning = tune_release(release, quick)
    other_host = {**tuning.host, "cpu": "another CPU"}
    release.tuning.write_text(tuning.model_copy(update={"host": other_host}).model_dump_json())
    status = read_status(store)
    assert status.tuned == tuning.chosen and "host cpu was 'another CPU'" in status.tuning_problem
    with caplog.at_level(logging.INFO):
        tune_release(release, quick)
        assert "the tuning of release 1 is repeated: host cpu was 'another CPU'" in caplog.text
        assert read_status(store).tuning_problem == ""
        assert tune_release(release, quick, images=[photo]).image_source == "files"
        assert "is repeated: it used the golden images" in caplog.text


def test_a_tuning_process_that_is_killed_is_an_error(small: Path, tmp_path: Path) -> None:
    add_release(tmp_path / "store", small)
    release = active_release(tmp_path / "store")

    def kill(stage: str, done: int, total: int) -> None:
        for child in family(os.getpid())[1:]:
            os.kill(child, signal.SIGKILL)

    with pytest.raises(EngineError, match="the tuning failed: the process was killed by SIGKILL"):
        tune_release(release, ONE_THREAD, progress=kill)
    assert not release.tuning.exists()
