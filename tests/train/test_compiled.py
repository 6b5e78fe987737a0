"""Compilation (``--compile``): same results as without it, and fallback if there is no compiler."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train

SMALL = {
    "backbone": "test_resnet",
    "input_size": (32, 32),
    "val": 0.25,
    "test": 0.25,
    "workers": 0,
    "batch_size": 9,
    "pretrained": False,
    "strategy": "partial",
    "unfreeze": "stage4",
    "epochs": 2,
    "augment": "none",
}


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.from_options(**{**SMALL, **changes})


def test_training_continues_with_a_warning_without_a_compiler(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")}), caplog.at_level(logging.WARNING, "edgetl"):
        tried = train(colors, _config(compile=True, device="cpu"), tmp_path / "tried")
    messages = [record.message for record in caplog.records if "--compile" in record.message]
    assert len(messages) == 1 and "No working C++ compiler" in messages[0] and "continues without it" in messages[0]
    plain = train(colors, _config(device="cpu"), tmp_path / "plain")
    assert tried.record.files["weights.safetensors"] == plain.record.files["weights.safetensors"]


@pytest.mark.slow
def test_compiled_training_gives_the_weights_of_uncompiled_training(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING, "edgetl"):
        compiled, plain = (train(colors, _config(compile=choice), tmp_path / str(choice)) for choice in (True, False))
    if any("--compile" in record.message for record in caplog.records):
        pytest.skip("there is no compiler")
    states = [run.load_model().state_dict() for run in (compiled, plain)]
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        assert torch.allclose(value.float(), states[1][key].float(), rtol=1e-2, atol=1e-3), key
