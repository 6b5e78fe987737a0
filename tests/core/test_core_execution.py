"""Execution settings, and the conditions under which a stored tuning applies."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from edgetl.core.system import execution
from edgetl.core.system.execution import DEFAULT_SETTING, Choice, ExecutionSetting, Timing, Tuning

SHA = "ab" * 32


def tuning(**changes: object) -> Tuning:
    chosen = Choice(variant="onnx-fp32", threads=1)
    timing = Timing(variant="onnx-fp32", threads=1, whole_ms=2.0, n=40, golden_difference=0.0)
    values = {"name": "pets", "manifest_sha256": SHA, "max_threads": 1, "images": 8, "chosen": chosen, "timings": (timing,), "seconds": 3.0}
    return Tuning.model_validate({**values, **changes})


def test_a_setting_is_described_by_its_differences_from_the_default() -> None:
    assert DEFAULT_SETTING.describe() == "f32" and DEFAULT_SETTING.changes == 0
    setting = ExecutionSetting(precision="bf16", static_batch=True, decode="scaled")
    assert setting.describe() == "bf16, batch 1, scaled decode" and setting.changes == 3
    assert ExecutionSetting(provider="xnnpack").describe() == "f32, xnnpack"


def test_a_static_batch_is_not_part_of_the_measured_setting() -> None:
    assert ExecutionSetting(precision="bf16", static_batch=True).measured == ExecutionSetting(precision="bf16")
    assert ExecutionSetting(static_batch=True).measured == DEFAULT_SETTING


def test_an_unknown_setting_is_rejected() -> None:
    with pytest.raises(ValidationError, match="int4"):
        ExecutionSetting.model_validate({"precision": "int4"})


def test_a_tuning_applies_to_its_bundle_on_its_host() -> None:
    found = Tuning.model_validate_json(tuning().model_dump_json())
    assert found == tuning(created=found.created) and found.outdated(SHA) == ""
    assert found.outdated("cd" * 32) == "it belongs to another bundle"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"host": {**execution.tuning_host(), "cpu": "Other CPU"}}, "host cpu was 'Other CPU' and is"),
        ({"host": {**execution.tuning_host(), "cores": "64"}}, "host cores was '64' and is"),
        ({"versions": {**execution.tuning_versions(), "openvino": "2020.1"}}, "version openvino was '2020.1' and is"),
        ({"versions": {}}, "version edgetl was 'missing' and is"),
    ],
)
def test_a_tuning_is_outdated_after_a_change_of_cpu_cores_or_versions(changes: dict[str, object], reason: str) -> None:
    assert tuning(**changes).outdated(SHA).startswith(reason)


def test_a_tuning_with_more_threads_than_cores_is_outdated() -> None:
    chosen = Choice(variant="onnx-fp32", threads=4096)
    assert tuning(chosen=chosen).outdated(SHA) == "it uses more threads than there are cores"
