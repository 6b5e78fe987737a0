"""Progressive networks: a frozen previous network, unchanged bit for bit, and a new column with lateral connections to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from timm.utils import ModelEmaV3
from torch import nn

from edgetl.data.folder import scan
from edgetl.data.loading import batches
from edgetl.data.split import Splits, split
from edgetl.errors import ConfigError
from edgetl.export.config import ExportConfig
from edgetl.export.convert.to_onnx import to_onnx
from edgetl.export.package import export_bundle
from edgetl.runtime.engine import load_engine
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.record import TIMM_CONFIG_NAME
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.continual.progressive import find_laterals
from edgetl.train.inputs.openvino_features import compile_with_openvino
from edgetl.train.loop.optimizer import learning_rates, parameter_groups
from edgetl.train.networks.backbone import feature_extractor, find_head
from edgetl.train.networks.progressive import Column, Lateral, ProgressiveNetwork, ProgressiveRecord, last_column
from edgetl.train.networks.stages import choose_stages, find_stages
from edgetl.train.networks.stochastic_depth import drop_path_layers
from edgetl.train.workflows.train import train
from tests.command import edgetl
from tests.conftest import write_colors
from tests.train.planning import prepared

SMALL: dict[str, Any] = {
    "backbone": "test_resnet",
    "input_size": (32, 32),
    "val": 0.25,
    "test": 0.25,
    "workers": 0,
    "epochs": 8,
    "batch_size": 8,
    "strategy": "full",
    "augment": "none",
    "augmented_views": 1,
    "patience": 100,
    "lr": 3e-3,
    "backbone_lr": 1e-3,
    "lr_decay": 1.0,
    "cache_views": 0,
}


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.from_options(**{**SMALL, **changes})


def _beside(parent: Run, **changes: object) -> TrainConfig:
    return _config(backbone=str(parent.path), forgetting="progressive", **changes)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run that classifies red, green and blue."""
    root = tmp_path_factory.mktemp("previous")
    write_colors(root / "colors", 20)
    return train(root / "colors", _config(strategy="scratch", pretrained=False, epochs=20), root / "parent")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folder with other classes: horizontal and vertical stripes."""
    root, rng = tmp_path_factory.mktemp("shapes") / "shapes", np.random.default_rng(0)
    for name in ("horizontal", "vertical"):
        (root / name).mkdir(parents=True)
        for index in range(20):
            pixels = np.repeat(rng.integers(0, 255, (40, 1, 3)), 40, axis=1)
            Image.fromarray((pixels if name == "horizontal" else pixels.transpose(1, 0, 2)).astype(np.uint8)).save(
                root / name / f"{index}.png"
            )
    return root


@pytest.fixture(scope="module")
def extended(parent: Run, shapes: Path) -> Run:
    """Run with ``parent`` as the frozen column and a new column that classifies the stripes."""
    return train(shapes, _beside(parent), shapes.parent / "extended")


@pytest.fixture(scope="module")
def splits(shapes: Path) -> Splits:
    return split(scan(shapes), seed=0, val=0.25, test=0.25)


@pytest.fixture(scope="module")
def images(parent: Run) -> torch.Tensor:
    """Test images of the previous task."""
    return torch.from_numpy(next(batches(parent.samples("test"), parent.record.preprocess)))


def _columns(run: Run) -> ProgressiveNetwork:
    model = run.load_model()
    assert isinstance(model, ProgressiveNetwork)
    return model


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def _weights(run: Run) -> str:
    return run.record.files["weights.safetensors"]


def _with_random_laterals(model: ProgressiveNetwork) -> ProgressiveNetwork:
    """Initialize the lateral connections with random weights, and return ``model``."""
    torch.manual_seed(0)
    for weight in model.laterals.parameters():
        nn.init.normal_(weight, std=0.05)
    return model


@torch.no_grad()
def test_training_keeps_weights_statistics_and_outputs_of_the_previous_network(parent: Run, extended: Run, images: torch.Tensor) -> None:
    previous, model = parent.load_model(), _columns(extended)
    kept, learned = model.columns[0].state_dict(), model.columns[1].state_dict()
    assert kept.keys() == previous.state_dict().keys()
    assert all(_bytes(kept[key]) == _bytes(value) for key, value in previous.state_dict().items()), "parameters and buffers"
    assert _bytes(model.column_logits(images, 0)) == _bytes(previous(images)) == _bytes(model.previous_network()(images))
    moved = [key for key, value in previous.state_dict().items() if not key.startswith("fc.") and not torch.equal(value, learned[key])]
    assert {key.partition(".")[0] for key in moved} == {"layer1", "layer2", "layer3", "layer4"}, "the new column was trained"
    assert all(bool(weight.any()) for weight in model.laterals.parameters()), "all lateral connections were trained"


@torch.no_grad()
def test_reopened_run_gives_the_same_outputs_for_both_tasks(parent: Run, shapes: Path, splits: Splits, tmp_path: Path) -> None:
    run = train(shapes, _beside(parent, epochs=2), tmp_path / "run")
    first, second = _columns(run), _columns(open_run(run.path))
    inputs = torch.from_numpy(next(batches(splits.test, run.record.preprocess)))
    assert _bytes(first(inputs)) == _bytes(second(inputs)) and first(inputs).shape[1] == 2
    assert _bytes(first.previous_network()(inputs)) == _bytes(parent.load_model()(inputs)) == _bytes(second.previous_network()(inputs))
    truth = torch.tensor([sample.label for sample in splits.test])
    assert run.record.test is not None
    assert float((second(inputs).argmax(dim=1) == truth).float().mean()) == pytest.approx(run.record.test.accuracy.value)


def test_run_record_lists_columns_and_reports_no_forgetting(parent: Run, extended: Run) -> None:
    record = extended.record
    columns, forgetting = record.backbone.columns, record.forgetting
    assert columns is not None and columns.earlier == (Column(name="parent", classes=3, labels=("blue", "green", "red")),)
    assert [place.module for place in columns.laterals] == ["bn1", "layer1", "layer2", "layer3", "layer4"]
    assert record.backbone.head_name == "columns.1.fc" and record.labels == ("horizontal", "vertical")
    assert forgetting is not None and parent.record.test is not None
    assert (forgetting.through, forgetting.before, forgetting.drop) == ("previous column", parent.record.test.accuracy.value, 0.0)
    assert record.test is not None and record.test.accuracy.value >= 0.9
    assert not (extended.path / TIMM_CONFIG_NAME).exists(), "timm cannot build a progressive network"
    plain = json.loads((parent.path / "run.json").read_text())["backbone"]
    assert plain["columns"] is None


@torch.no_grad()
def test_new_column_starts_with_the_features_of_the_copied_network(parent: Run, splits: Splits, images: torch.Tensor) -> None:
    backbone, _ = prepared(splits, _beside(parent))
    features = feature_extractor(backbone.model, backbone.head_name)(images)
    assert torch.equal(features, feature_extractor(parent.load_model(), "fc")(images))
    assert isinstance(backbone.model, ProgressiveNetwork)
    assert not torch.equal(feature_extractor(_with_random_laterals(backbone.model), backbone.head_name)(images), features), (
        "the lateral connections change the features"
    )
    assert _bytes(backbone.model.previous_network()(images)) == _bytes(parent.load_model()(images)), "the previous network is unchanged"


def test_training_mode_keeps_frozen_columns_in_evaluation_mode_without_gradients(parent: Run, splits: Splits) -> None:
    backbone, _ = prepared(splits, _beside(parent))
    model = backbone.model.train()
    assert isinstance(model, ProgressiveNetwork)
    assert not any(module.training for module in model.columns[0].modules()) and model.columns[1].training
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names and not any(name.startswith("columns.0.") for name in names)
    assert find_head(model) == "columns.1.fc" and last_column(model) == ("columns.1.", model.columns[1])


def test_laterals_have_their_own_parameter_group_with_the_backbone_rate(parent: Run, splits: Splits) -> None:
    config = _beside(parent, lr=0.004, backbone_lr=0.002, lr_decay=0.1)
    backbone, plan = prepared(splits, config)
    stages = find_stages(backbone.model, backbone.head_name)
    assert [stage.name for stage in stages] == ["stem", "stage1", "stage2", "stage3", "stage4", "laterals", "head"]
    all_groups = parameter_groups(backbone.model, choose_stages(stages, plan.unfreeze), plan)
    groups = {group["stage"]: group for group in all_groups}
    assert (groups["laterals"]["lr"], groups["head"]["lr"], groups["stage4"]["lr"]) == (0.002, 0.004, 0.002)
    assert isinstance(backbone.model, ProgressiveNetwork)
    laterals = {id(parameter) for parameter in backbone.model.laterals.parameters()}
    assert {id(parameter) for parameter in groups["laterals"]["params"]} == laterals
    learning = {id(parameter) for group in all_groups for parameter in group["params"]}
    assert learning.isdisjoint(id(parameter) for parameter in backbone.model.columns[0].parameters())
    rates = learning_rates(torch.optim.AdamW(all_groups), plan, 0)
    assert rates["lr/laterals"] == pytest.approx(rates["lr/stage4"])


@torch.no_grad()
def test_ema_keeps_the_frozen_column_bit_for_bit(parent: Run, splits: Splits) -> None:
    backbone, _ = prepared(splits, _beside(parent))
    ema = ModelEmaV3(backbone.model.train().to(memory_format=torch.channels_last), decay=0.97)
    for _ in range(5):
        backbone.head.weight.add_(0.1)
        ema.update(backbone.model)
    averaged = ema.module.get_submodule("columns.0").state_dict()
    assert all(_bytes(averaged[key]) == _bytes(value) for key, value in parent.load_model().state_dict().items())
    assert not torch.equal(ema.module.get_parameter("columns.1.fc.weight"), backbone.head.weight)


@pytest.mark.parametrize(("unfreeze", "expected"), [("0.3", 3), ("stage3", 3), ("stage1", 5), ("first", 2), ("1", 5)])
def test_stages_of_columns_match_those_of_one_network_and_laterals_start_one_stage_earlier(
    parent: Run, splits: Splits, unfreeze: str, expected: int
) -> None:
    plain = load_backbone(_config(backbone=str(parent.path)).backbone, 2)
    backbone, _ = prepared(splits, _beside(parent, unfreeze=unfreeze))
    chosen = [stage.name for stage in choose_stages(find_stages(backbone.model, backbone.head_name), unfreeze)]
    alone = [stage.name for stage in choose_stages(find_stages(plain.model, plain.head_name), unfreeze)]
    assert chosen == [*alone[:-1], "laterals", "head"]
    assert backbone.columns is not None
    assert len(backbone.columns.laterals) == {"first": 5}.get(unfreeze, expected)


@pytest.mark.parametrize(
    ("name", "side", "layouts"),
    [
        ("test_resnet", 32, ["map"] * 5),
        ("test_vit", 160, ["rows"] * 7),
        ("test_convnext", 64, ["map"] * 6),
        ("test_mambaout", 64, ["rows"] * 6),
    ],
)
@torch.no_grad()
def test_laterals_are_found_for_feature_maps_and_token_features(name: str, side: int, layouts: list[str]) -> None:
    previous, new = (timm.create_model(name, num_classes=3).eval() for _ in range(2))
    head = find_head(new)
    laterals = find_laterals(new, head, "1", (side, side))
    assert [place.layout for place in laterals] == layouts
    model, inputs = ProgressiveNetwork([previous, new], [laterals], head).eval(), torch.randn(2, 3, side, side)
    assert torch.equal(model(inputs), new(inputs)), "lateral connections of zero have no effect"
    assert not torch.equal(_with_random_laterals(model)(inputs), new(inputs))
    assert torch.equal(model.previous_network()(inputs), previous(inputs))


def test_lateral_adds_a_linear_map_of_the_previous_output() -> None:
    torch.manual_seed(0)
    previous, new = (nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)) for _ in range(2))
    model = _with_random_laterals(ProgressiveNetwork([previous, new], [[Lateral(module="0", channels=5, layout="rows")]], "2").eval())
    given = torch.randn(3, 4)
    matrix = next(model.laterals.parameters())
    torch.testing.assert_close(model(given), new[2]((new[0](given) + previous[0](given) @ matrix.T).relu()))
    torch.testing.assert_close(model.previous_network()(given), previous(given))


def test_stochastic_depth_applies_only_to_the_new_column() -> None:
    previous, new = (timm.create_model("test_convnext", num_classes=3) for _ in range(2))
    model = ProgressiveNetwork([previous, new], [find_laterals(new, find_head(new), "1", (64, 64))], find_head(new))
    assert drop_path_layers(model) == [f"columns.1.{name}" for name in drop_path_layers(new)] != []


@pytest.mark.parametrize("choice", [{"strategy": "full"}, {"strategy": "partial", "cache_views": 2}, {"strategy": "progressive"}])
def test_resumed_progressive_training_gives_the_same_weights(parent: Run, shapes: Path, tmp_path: Path, choice: dict[str, Any]) -> None:
    config = _beside(parent, epochs=3, checkpoint_s=0.001, **choice)
    whole = train(shapes, config, tmp_path / "whole")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == total // 2 + 1:
            raise _StopError

    with pytest.raises(_StopError):
        train(shapes, config, tmp_path / "broken", progress=stop)
    assert _weights(train(shapes, config, tmp_path / "broken", resume=True)) == _weights(whole)


class _StopError(Exception):
    """Error that stops a training from its progress callback."""


@torch.no_grad()
@pytest.mark.slow
def test_chain_of_columns_keeps_all_tasks_and_starts_from_the_last_column(
    parent: Run, extended: Run, images: torch.Tensor, tmp_path: Path
) -> None:
    root = write_colors(tmp_path / "again", 10, seed=5)
    third, _ = prepared(split(scan(root), seed=0, val=0.25, test=0.25), _beside(extended))
    before = feature_extractor(_columns(extended), extended.record.backbone.head_name)(images)
    assert torch.equal(feature_extractor(third.model, third.head_name)(images), before)
    run = train(root, _beside(extended, epochs=2, strategy="partial"), tmp_path / "third")
    model = _columns(open_run(run.path))
    assert _bytes(model.column_logits(images, 0)) == _bytes(parent.load_model()(images))
    assert _bytes(model.column_logits(images, 1)) == _bytes(_columns(extended)(images)) == _bytes(model.previous_network()(images))
    assert model(images).shape[1] == 3 and run.record.backbone.head_name == "columns.2.fc"
    columns, forgetting = run.record.backbone.columns, run.record.forgetting
    assert columns is not None and [column.name for column in columns.earlier] == ["parent", "extended"]
    assert forgetting is not None and (forgetting.parent, forgetting.through, forgetting.drop) == ("extended", "previous column", 0.0)


@torch.no_grad()
def test_training_without_the_option_continues_the_last_column_and_keeps_the_first(
    parent: Run, extended: Run, shapes: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    run = train(shapes, _config(backbone=str(extended.path), epochs=2, l2sp=0.01), tmp_path / "next")
    model = _columns(run)
    assert len(model.columns) == 2 and run.record.backbone.columns == extended.record.backbone.columns
    assert _bytes(model.previous_network()(images)) == _bytes(parent.load_model()(images))
    assert run.record.forgetting is not None and run.record.forgetting.through == "own"


def test_progressive_network_keeps_published_weights_with_their_head(splits: Splits, tmp_path: Path) -> None:
    published = timm.create_model("test_resnet", num_classes=7)
    folder = tmp_path / "published"
    folder.mkdir()
    save_for_hf(published, str(folder), safe_serialization=True)
    config = _config(backbone=f"local-dir:{folder}", forgetting="progressive")
    backbone, _ = prepared(splits, config)
    assert backbone.columns is not None and backbone.columns.earlier == (Column(name=f"local-dir:{folder}", classes=7),)
    assert isinstance(backbone.model, ProgressiveNetwork)
    inputs = torch.randn(2, 3, 32, 32)
    assert _bytes(backbone.model.previous_network()(inputs)) == _bytes(published.eval()(inputs))


def test_probe_adds_no_column(parent: Run, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run = train(shapes, _beside(parent, strategy="probe"), tmp_path / "run")
    assert run.record.backbone.columns is None
    assert "--forgetting progressive has no effect, because the strategy probe trains only the head" in caplog.text


def test_progressive_option_rejects_missing_heads_and_conflicting_options(parent: Run, extended: Run, splits: Splits) -> None:
    for config in (_beside(parent, strategy="scratch"), _config(forgetting="progressive", pretrained=False)):
        with pytest.raises(ConfigError, match="--forgetting progressive cannot be combined with random weights"):
            prepared(splits, config)
    with pytest.raises(ConfigError, match=r"cannot be combined with --lwf and --wise-ft. Remove one"):
        prepared(splits, _beside(parent, lwf=1.0, wise_ft=True))
    with pytest.raises(ConfigError, match=r"the weights of edgetl_small have none\. Use --l2sp or --replay"):
        prepared(splits, _config(forgetting="progressive", backbone="edgetl_small"))
    with pytest.raises(ConfigError, match="is a progressive network, which --random-weights would freeze with random weights"):
        prepared(splits, _config(backbone=str(extended.path), strategy="scratch"))


def test_record_of_three_columns_lists_laterals_of_the_second_and_third() -> None:
    one, two = (Lateral(module=name, channels=4, layout="map") for name in ("a", "b"))
    record = ProgressiveRecord(
        head="fc", earlier=(Column(name="x", classes=2), Column(name="y", classes=3, laterals=(one,))), laterals=(one, two)
    )
    assert record.all_laterals == ((one,), (one, two))


@torch.no_grad()
def test_onnx_and_openvino_give_the_outputs_of_torch(extended: Run, images: torch.Tensor, tmp_path: Path) -> None:
    model, spec = _columns(extended), extended.record.preprocess
    path = tmp_path / "model.onnx"
    to_onnx(model, spec, path, {})
    found = load_engine("onnx", [path.read_bytes()], threads=1).run(images.numpy())
    np.testing.assert_allclose(found, model(images).numpy(), atol=1e-4)
    extractor = feature_extractor(model, extended.record.backbone.head_name)
    features = compile_with_openvino(extractor, images.numpy())
    assert features is not None
    np.testing.assert_allclose(features(images.numpy()), extractor(images).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_bundle_of_a_progressive_run_has_all_variants_for_the_new_task(extended: Run, tmp_path: Path) -> None:
    config = ExportConfig(precisions=("fp32", "int8"), max_drop=0.1, calibration_images=20)
    bundle = export_bundle(extended.path, config, tmp_path / "bundle")
    assert {variant.name for variant in bundle.manifest.variants} == {"onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8"}
    assert bundle.manifest.labels == ("horizontal", "vertical")


@pytest.mark.slow
def test_train_command_with_forgetting_progressive_reports_no_drop(parent: Run, shapes: Path, tmp_path: Path) -> None:
    options = [
        "--backbone",
        str(parent.path),
        "--forgetting",
        "progressive",
        "--strategy",
        "full",
        "--epochs",
        "2",
        "--augmented-views",
        "1",
    ]
    done = edgetl("train", str(shapes), *options, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stdout.split())
    assert "previous task, of parent (previous column): accuracy" in output and "largest drops" not in output
