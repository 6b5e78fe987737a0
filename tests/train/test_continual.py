"""Continual learning: LwF, EWC, L2-SP and replay preserve the previous task during training on a new task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from edgetl.core.progress import silent
from edgetl.data.folder import ImageFolder, scan
from edgetl.data.split import Splits, split
from edgetl.errors import ConfigError
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.record import FISHER_NAME
from edgetl.train.artifacts.run import Run
from edgetl.train.config.options import TrainConfig
from edgetl.train.continual.ewc import EWC, measure_fisher
from edgetl.train.continual.lwf import LwF
from edgetl.train.continual.previous_task import HeadInput, PreviousTask, find_previous_task
from edgetl.train.continual.replay import UNLABELED, choose_replayed, herd
from edgetl.train.inputs.samplers import StepSampler
from edgetl.train.loop.losses import StepOutputs
from edgetl.train.loop.processes import Execution
from edgetl.train.workflows.optimization import Training, prepare_training
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
    "epochs": 10,
    "batch_size": 8,
    "strategy": "full",
    "augment": "none",
    "augmented_views": 1,
    "patience": 100,
    "lr": 3e-3,
    "backbone_lr": 3e-3,
    "lr_decay": 1.0,
    "cache_views": 0,
}


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.from_options(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run that classifies red, green and blue images."""
    root = tmp_path_factory.mktemp("old")
    write_colors(root / "colors", 20)
    return train(root / "colors", _config(strategy="scratch", pretrained=False, epochs=20), root / "run")


@pytest.fixture(scope="module")
def inverted(parent: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folder with the same classes in another domain: negatives."""
    root = tmp_path_factory.mktemp("new") / "inverted"
    write_colors(root, 20, seed=1)
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            negative = 255 - np.asarray(image)
        Image.fromarray(negative).save(path)
    return root


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folder with other classes: horizontal and vertical stripes."""
    root, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for name in ("horizontal", "vertical"):
        (root / name).mkdir()
        for index in range(20):
            pixels = np.repeat(rng.integers(0, 255, (40, 1, 3)), 40, axis=1)
            striped = pixels if name == "horizontal" else pixels.transpose(1, 0, 2)
            Image.fromarray(striped.astype(np.uint8)).save(root / name / f"{index}.png")
    return root


def _weights(run: Run) -> str:
    return run.record.files["weights.safetensors"]


def test_loss_weight_of_0_gives_bit_identical_weights(parent: Run, inverted: Path, tmp_path: Path) -> None:
    plain = train(inverted, _config(backbone=str(parent.path), epochs=2), tmp_path / "plain")
    for name in ("lwf", "ewc", "l2sp"):
        zero = train(inverted, _config(backbone=str(parent.path), epochs=2, **{name: 0.0}), tmp_path / name)
        assert _weights(zero) == _weights(plain)


def test_forgetting_is_reported_and_reduced_by_replay_and_lwf(parent: Run, inverted: Path, tmp_path: Path) -> None:
    plain = train(inverted, _config(backbone=str(parent.path)), tmp_path / "plain").record
    protected = train(inverted, _config(backbone=str(parent.path), replay=str(parent.path), lwf=1.0), tmp_path / "protected").record
    assert plain.forgetting and protected.forgetting and parent.record.test and protected.test
    assert plain.forgetting.before == parent.record.test.accuracy.value and plain.forgetting.through == "own"
    assert plain.forgetting.drop > 0.3 and protected.forgetting.drop <= plain.forgetting.drop / 3
    assert protected.test.accuracy.value >= 0.9
    assert [item.label for item in plain.forgetting.classes] == ["blue", "green", "red"]
    mean = np.average([item.after for item in plain.forgetting.classes], weights=[item.n for item in plain.forgetting.classes])
    assert mean == pytest.approx(plain.forgetting.after)


@pytest.mark.parametrize("places", [None, (2, 0, 1)])
def test_lwf_loss_is_zero_at_the_start_and_restores_a_changed_network(places: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    network: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3 if places else 2))
    head, images = nn.Linear(8, 3), torch.randn(64, 6)
    if places:
        with torch.no_grad():
            network[2].weight[list(places)], network[2].bias[list(places)] = head.weight, head.bias
    head_input = HeadInput(network, "2")
    term = LwF(network, PreviousTask("old", head, places, None), head_input, weight=1.0)

    def loss() -> torch.Tensor:
        return term(StepOutputs(images, torch.zeros(64), network(images)))

    assert float(loss().detach()) == pytest.approx(0.0, abs=1e-7)
    with torch.no_grad():
        network[0].weight.add_(0.5 * torch.randn(8, 6))
    changed = float(loss().detach())
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert changed > 0.05 and float(loss().detach()) < changed / 20
    frozen = [*term.previous.parameters(), *term.previous_head.parameters()]
    assert not any(parameter.grad is not None for parameter in frozen), "the previous network is not trained"


def test_each_loss_term_is_logged_by_its_name(parent: Run, shapes: Path, tmp_path: Path) -> None:
    terms = {"lwf": 1.0, "l2sp": 0.01, "replay": str(parent.path)}
    run = train(shapes, _config(backbone=str(parent.path), epochs=1, **terms), tmp_path / "run")
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()][:-1]
    assert {key for row in rows for key in row if key.startswith("loss/")} == {"loss/lwf", "loss/l2sp", "loss/replay"}
    assert all(row["loss/lwf"] >= 0 and row["loss/replay"] > 0 for row in rows)


def test_forgetting_is_measured_with_the_previous_head_if_classes_differ(parent: Run, shapes: Path, tmp_path: Path) -> None:
    config = _config(backbone=str(parent.path), replay=str(parent.path), lwf=1.0)
    found = train(shapes, config, tmp_path / "run").record.forgetting
    assert found is not None and found.through == "previous head" and found.drop <= 0.1


def test_stronger_ewc_changes_weights_less_and_infinite_ewc_not_at_all(parent: Run, inverted: Path, tmp_path: Path) -> None:
    start = parent.load_model().state_dict()

    def moved(strength: float) -> tuple[float, bool]:
        run = train(inverted, _config(backbone=str(parent.path), ewc=strength, epochs=4), tmp_path / f"{strength:g}")
        after, fisher = run.load_model().state_dict(), run.read_tensors(FISHER_NAME)
        important = {key: value > 0 for key, value in fisher.items()}
        unchanged = all(torch.equal(after[key][mask], start[key][mask]) for key, mask in important.items())
        return sum(float((value * (after[key] - start[key]).square()).sum()) for key, value in fisher.items()), unchanged

    weak, strong, infinite = (moved(strength) for strength in (1.0, 1000.0, 1e30))
    assert infinite[1] and not strong[1] and strong[0] < weak[0]


def test_fisher_information_of_a_softmax_layer_is_the_expected_squared_gradient() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4, bias=False)
    image = torch.tensor([2.0, 0.0, -1.0])
    found = measure_fisher(layer, [image] * 4000, {"weight"}, seed=0)["weight"]
    chance = layer(image).softmax(dim=0).detach()
    expected = (chance * (1 - chance))[:, None] * image.square()[None, :]  # expectation of ((p - y) x)^2 over sampled labels y
    torch.testing.assert_close(found, expected / expected.mean(), rtol=0.15, atol=0.02)
    assert found.mean() == pytest.approx(1.0)
    chained = measure_fisher(layer, [image] * 10, {"weight"}, seed=0, earlier={"weight": torch.full((4, 3), 10.0)})["weight"]
    assert float(chained.mean()) == pytest.approx(1.0 + 0.9 * 10.0)


def test_fisher_information_accumulates_over_a_chain_of_runs(parent: Run, inverted: Path, shapes: Path, tmp_path: Path) -> None:
    middle = train(inverted, _config(backbone=str(parent.path), ewc=10.0, epochs=1), tmp_path / "middle")
    last = train(shapes, _config(backbone=str(middle.path), ewc=10.0, epochs=1), tmp_path / "last")
    first, second = (run.read_tensors(FISHER_NAME)["layer1.0.conv1.weight"].mean() for run in (middle, last))
    assert second > 1.3 * first
    images = torch.rand(2, 3, *last.record.preprocess.input_size)
    of_timm = timm.create_model(f"local-dir:{last.path}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(of_timm(images), last.load_model()(images)), "timm loaded the Fisher information as weights"


def test_ewc_update_is_the_exact_proximal_minimum() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0]]))
    penalty = EWC(layer, {"weight": torch.tensor([[4.0, 0.0]])}, 5.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 2.0]]))
    penalty(layer, torch.optim.SGD([layer.weight], 0.1))
    # argmin over w of (w - 2)^2 / (2 lr) + 5 * 4 * (w - 1)^2 / 2 is (2 + 2 * 1) / (1 + 2)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[4 / 3, 2.0]]))


def test_herding_approximates_the_class_mean() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 8)).astype(np.float32) + np.repeat(np.eye(8)[:2] * 4, 30, axis=0).astype(np.float32)
    labels = np.repeat([0, 1], 30)
    chosen = herd(features, labels, 5)
    assert [int(labels[row]) for row in chosen] == [0] * 5 + [1] * 5 and len(set(chosen)) == 10
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = unit[:30].mean(axis=0)
    distance = float(np.linalg.norm(unit[chosen[:5]].mean(axis=0) - mean))
    random = [float(np.linalg.norm(unit[rng.choice(30, 5, replace=False)].mean(axis=0) - mean)) for _ in range(50)]
    assert distance < np.quantile(random, 0.1)
    assert herd(features, labels, 100) != [] and len(herd(features, labels, 100)) == 60


def test_batches_contain_replayed_images_and_are_the_same_after_resume() -> None:
    whole = list(StepSampler(10, 4, range(6), seed=1, replayed=5, replay_batch=2))
    assert all(len(batch) == len([index for index in batch if index % 15 < 10]) + 2 for batch in whole)
    assert [[index % 15 for index in batch if index % 15 < 10] for batch in whole] == [
        [index % 10 for index in batch] for batch in StepSampler(10, 4, range(6), seed=1)
    ]
    assert list(StepSampler(10, 4, range(3, 6), seed=1, replayed=5, replay_batch=2)) == whole[3:]


def test_replayed_images_get_labels_of_new_previous_or_no_class(parent: Run, inverted: Path, shapes: Path, tmp_path: Path) -> None:
    from edgetl.train.inputs.features import FrozenFeatures

    config = _config(backbone=str(parent.path), replay=str(parent.path), replay_per_class=3)
    backbone = load_backbone(config.backbone, 2)
    previous = find_previous_task(config.backbone, backbone, ("horizontal", "vertical"))
    extract = FrozenFeatures(nn.Flatten(), backbone.spec)

    def labels(config: TrainConfig, names: tuple[str, ...]) -> list[int]:
        found = choose_replayed(config.continual, _of_classes(names), previous, extract, progress=silent)
        return sorted({sample.label for sample in found})

    assert labels(config, ("horizontal", "vertical")) == [-3, -2, -1]
    assert labels(config, ("blue", "red", "vertical")) == [-2, 0, 1]
    assert labels(config.with_options(replay=str(shapes)), ("blue", "red")) == [UNLABELED]
    assert labels(config.with_options(replay=str(shapes)), ("vertical", "red")) == [UNLABELED, 0]
    seen = replace(_of_classes(("red",)), train=tuple(parent.samples("train")))
    assert not choose_replayed(config.continual, seen, previous, extract, progress=silent), "an image is new and replayed"


def _of_classes(labels: tuple[str, ...]) -> Splits:
    """Make empty splits with these classes."""
    return Splits(ImageFolder(Path(), labels, (), ()), (), (), ())


def test_head_is_kept_if_the_new_data_has_all_previous_classes(parent: Run, inverted: Path, tmp_path: Path) -> None:
    config = _config(backbone=str(parent.path), lwf=1.0)
    splits = split(scan(inverted), seed=0, val=0.25, test=0.25)
    backbone, plan = prepared(splits, config)
    continual = prepare_training(Training(backbone, splits, config, plan, Execution("cpu", tmp_path))).continual
    assert continual.keeps_head and torch.equal(backbone.head.weight, parent.load_model().get_parameter("fc.weight"))


@pytest.mark.parametrize("choice", [{"strategy": "full"}, pytest.param({"strategy": "partial", "cache_views": 2}, marks=pytest.mark.slow)])
def test_resumed_training_with_all_loss_terms_gives_the_same_weights(
    parent: Run, inverted: Path, tmp_path: Path, choice: dict[str, Any]
) -> None:
    terms = {"lwf": 1.0, "ewc": 100.0, "replay": str(parent.path), "l2sp": 0.01}
    config = _config(backbone=str(parent.path), epochs=4, checkpoint_s=0.001, **terms, **choice)
    whole = train(inverted, config, tmp_path / "whole")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == total // 2 + 1:
            raise _StopError

    with pytest.raises(_StopError):
        train(inverted, config, tmp_path / "broken", progress=stop)
    assert _weights(train(inverted, config, tmp_path / "broken", resume=True)) == _weights(whole)


class _StopError(Exception):
    """Raised in the progress callback to stop a training."""


def test_continual_learning_refuses_random_weights_and_weights_without_a_head(parent: Run, inverted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--lwf cannot be combined with random weights \(--random-weights"):
        train(inverted, _config(pretrained=False, lwf=1.0), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"the weights of edgetl_small have none\. Use --l2sp or --replay"):
        train(inverted, _config(backbone="edgetl_small", ewc=1.0, input_size=None), tmp_path / "b")


def test_lwf_uses_the_head_of_published_weights(shared: Path, inverted: Path, tmp_path: Path) -> None:
    config = _config(backbone=f"local-dir:{shared}/weights/mobilenetv2_100.imagenet", lwf=1.0, strategy="partial")
    splits = split(scan(inverted), seed=0, val=0.25, test=0.25)
    backbone, plan = prepared(splits, config)
    previous = prepare_training(Training(backbone, splits, config, plan, Execution("cpu", tmp_path))).continual.previous
    assert plan.steps and previous and previous.head.out_features >= 1000 and previous.places is None


@pytest.mark.slow
def test_train_command_reports_forgetting(parent: Run, inverted: Path, tmp_path: Path) -> None:
    options = ["--backbone", str(parent.path), "--strategy", "full", "--epochs", "8", "--lr", "0.003", "--backbone-lr", "0.003"]
    done = edgetl("train", str(inverted), *options, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stdout.split())
    assert f"previous task, of {parent.record.name}" in output and "largest drops:" in output
    assert f"--replay {parent.path} --lwf 1" in output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["forgetting"]["parent"] == parent.record.name
