"""Tuning of a bundle on this host."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.config import read_json
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting, Tuning
from edgetl.device.tuning import TuneConfig, thread_counts, tune
from edgetl.errors import ConfigError, EngineError
from edgetl.runtime.predictor import load
from tests.command import edgetl, edgetl_in_one_process
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


@pytest.mark.parametrize(("limit", "counts"), [(1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (4, [4, 2, 1]), (6, [6, 4, 2, 1])])
def test_thread_counts_are_the_limit_and_powers_of_two(limit: int, counts: list[int]) -> None:
    assert thread_counts(limit) == counts


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
    # Scaled decoding does not change the golden PNG files, so it is not faster. The simpler setting wins.
    assert tuning.chosen.setting.decode == "full"


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


def test_choices_beyond_the_time_limit_are_listed(bundle: Bundle) -> None:
    tuning = tune(bundle, TuneConfig(threads=1, max_seconds=0.001))
    late = [item for item in tuning.skipped if "time limit" in item.reason]
    assert late and len({item.choice for item in tuning.timings}) >= 1 and "--max-seconds" in late[0].reason


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


def test_the_command_prints_a_table_and_writes_the_file(bundle: Bundle, tmp_path: Path, photo: bytes) -> None:
    (tmp_path / "digit.png").write_bytes(photo)
    out = tmp_path / "tuning.json"
    common = [str(bundle.path), "--threads", "1", "--max-seconds", "1"]
    table, again, inside, predicted = edgetl_in_one_process(
        [
            ["tune", *common, "--images", str(tmp_path / "digit.png"), "--out", str(out)],
            ["tune", *common, "--out", str(tmp_path / "digit.png")],
            ["tune", *common, "--out", str(bundle.path / "tuning.json")],
            ["predict", str(bundle.path), str(tmp_path / "digit.png"), "--tuning", str(out)],
        ]
    )
    assert table.code == 0 and "chosen" in table.stdout and "1 different images (files)" in table.stdout, table.stderr
    written = read_json(out, Tuning, ConfigError)
    assert again.code == ConfigError.exit_code and "`edgetl tune` did not write it" in again.words
    assert inside.code == ConfigError.exit_code and "is inside the bundle" in inside.words
    assert written.chosen.variant in table.stdout and predicted.code == 0 and "digit.png: " in predicted.stdout


def test_the_command_prints_the_tuning_as_json(bundle: Bundle) -> None:
    printed = edgetl("tune", bundle.path, "--threads", "1", "--max-seconds", "0.1", "--json")
    assert Tuning.model_validate_json(printed.stdout).manifest_sha256 == bundle.manifest_sha256, printed.stderr
