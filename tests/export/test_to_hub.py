from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from huggingface_hub import ModelCard

from edgetl.errors import ConfigError, RunError
from edgetl.export.to_hub import hub_card, share_run
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train
from tests.command import edgetl
from tests.ecosystem import TIMM, TRANSFORMERS, predicted_labels


@pytest.fixture(scope="module")
def hub(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face folder of the run."""
    out = tmp_path_factory.mktemp("hub") / "digits"
    done = edgetl("share", run.path, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == [str(out / name) for name in ("config.json", "model.safetensors", "README.md")]
    return out


def test_the_folder_contains_the_three_files_of_a_hub_model(hub: Path, run: Run) -> None:
    assert {path.name for path in hub.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((hub / "config.json").read_text())
    assert config["architecture"] == "test_resnet" and config["num_classes"] == 10
    assert config["label_names"] == list(run.record.labels)
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48] and config["pretrained_cfg"]["crop_pct"] == 1.0
    with safetensors.safe_open(hub / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"} and set(file.keys()) == set(run.load_model().state_dict())


def test_the_weights_are_a_copy(hub: Path, run: Run) -> None:
    assert (hub / "model.safetensors").read_bytes() == (run.path / "weights.safetensors").read_bytes()
    assert not (hub / "model.safetensors").samefile(run.path / "weights.safetensors")
    assert open_run(run.path).read("weights.safetensors")


def test_the_card_has_license_library_task_and_figures(hub: Path, run: Run) -> None:
    card = ModelCard.load(hub / "README.md")
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-classification"
    assert card.data.license == "unknown" and {"image-classification", "timm", "edgetl"} <= set(card.data.tags or [])
    assert f"{run.record.validation.accuracy.value:.3f}" in card.text and "10 classes" in card.text and "48 x 48" in card.text


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ('my: "own" license', {"license": "other", "license_name": 'my: "own" license'}),
        (None, {"license": "unknown"}),
    ],
)
def test_a_license_unknown_to_the_hub_is_written_as_other(run: Run, license: str | None, expected: dict[str, str]) -> None:
    backbone = run.record.backbone.model_copy(update={"license": license})
    front = ModelCard(hub_card(run.record.model_copy(update={"backbone": backbone}))).data.to_dict()  # type: ignore[no-untyped-call]
    assert {key: value for key, value in front.items() if key.startswith("license")} == expected


def test_a_backbone_from_the_hub_is_the_base_model(run: Run) -> None:
    backbone = run.record.backbone.model_copy(update={"name": "hf-hub:timm/resnet18.a1_in1k@0123"})
    front = ModelCard(hub_card(run.record.model_copy(update={"backbone": backbone}))).data.to_dict()  # type: ignore[no-untyped-call]
    assert front["base_model"] == "timm/resnet18.a1_in1k"


def test_timm_and_transformers_predict_the_same_labels_from_the_folder(hub: Path, run: Run) -> None:
    photos = [sample.path for sample in run.samples("test")][::9]
    names = predicted_labels(TIMM, hub, photos)
    assert names == predicted_labels(TRANSFORMERS, hub, photos) and len(set(names)) > 5


def test_a_run_with_a_cosine_head_cannot_be_shared(colors: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_options(
        backbone="test_resnet", pretrained=False, strategy="probe", head="cosine", input_size=(32, 32), val=0.25, test=0.0
    )
    run = train(colors, config, tmp_path / "run")
    with pytest.raises(RunError, match=r"the head is cosine, and timm builds one linear layer\. Share the bundle instead: edgetl export"):
        share_run(run.path, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_regression_run_cannot_be_shared(squares: Path, tmp_path: Path) -> None:
    network = {"backbone": "test_resnet", "pretrained": False, "strategy": "probe", "input_size": (32, 32)}
    options = {"labels": str(squares / "labels.csv"), "task": "regression", "columns": "mm", "tolerance": 1.0}
    config = TrainConfig.from_options(**{**network, **options})
    run = train(squares / "images", config, tmp_path / "run")
    with pytest.raises(RunError, match="the task is regression"):
        share_run(run.path, tmp_path / "hub")


def test_a_torchvision_network_cannot_be_shared(colors: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_options(
        backbone="torchvision:squeezenet1_1", pretrained=False, strategy="probe", input_size=(32, 32), val=0.25, test=0.0
    )
    run = train(colors, config, tmp_path / "run")
    with pytest.raises(RunError, match="the network is torchvision:squeezenet1_1, which timm does not build"):
        share_run(run.path, tmp_path / "hub")


def test_a_damaged_run_and_an_existing_folder_are_errors(hub: Path, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--overwrite"):
        share_run(run.path, hub)
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(RunError, match="changed since the training"):
        share_run(tmp_path / "run", tmp_path / "hub")
    assert not (tmp_path / "hub").exists()
