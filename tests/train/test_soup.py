"""Soups: the average that the ingredients make, chosen on validation images, refused where runs do not fit, and exported as any run."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from edgetl.core.bundle import open_bundle
from edgetl.data.loading import batches, stratified
from edgetl.errors import RunError
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.soup import average, make_soup
from edgetl.train.workflows.train import train
from tests.command import edgetl
from tests.conftest import write_colours

SMALL = {
    "backbone": "edgetl_small", "input_size": (32, 32), "val": 0.25, "test": 0.25, "workers": 0, "batch_size": 8, "strategy": "full",
    "epochs": 3, "augmented_views": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("soup") / "colours", 12)


@pytest.fixture(scope="module")
def runs(images: Path) -> list[Run]:
    rates = {"low": 1e-4, "middle": 1e-3, "high": 3e-3}
    return [train(images, TrainConfig.from_options(**{**SMALL, "lr": lr}), images.parent / name) for name, lr in rates.items()]


def _paths(runs: list[Run]) -> list[Path]:
    return [run.path for run in runs]


def test_the_mean_is_taken_of_weights_and_not_of_counters() -> None:
    found = average([{"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}, {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor(5)}])
    assert found["w"].tolist() == [2.0, 4.0] and found["n"].item() == 3 and found["w"].dtype == torch.float32


def test_a_uniform_soup_is_the_average_of_all_and_its_run_is_a_run(runs: list[Run], tmp_path: Path) -> None:
    soup = make_soup(_paths(runs), tmp_path / "soup", method="uniform")
    states = [run.load_model().state_dict() for run in runs]
    frozen = [run.record.plan.freeze_batchnorm for run in runs]
    assert all(frozen), "few images: BatchNorm stayed as it was, and its statistics are the same in all"
    for key, value in soup.load_model().state_dict().items():
        assert torch.allclose(value, average(states)[key]), key
    record = soup.record
    assert record.soup is not None and record.soup.method == "uniform" and all(item.used for item in record.soup.ingredients)
    accuracies = [item.val_accuracy for item in record.soup.ingredients]
    assert accuracies == sorted(accuracies, reverse=True)
    assert [parent.name for parent in record.backbone.parents][:1] == ["edgetl_small"]
    assert {parent.sha256 for parent in record.backbone.parents[1:]} == {run.digest() for run in runs}
    assert soup.splits() == runs[0].splits() and record.test is not None and record.images == runs[0].record.images


def _spoiled(run: Run, path: Path) -> Path:
    """A copy of a run whose head says the opposite."""
    shutil.copytree(run.path, path)
    state = safetensors.torch.load_file(path / "weights.safetensors")
    head = run.record.backbone.head_name
    state = {key: -value * 3 if key.startswith(f"{head}.") else value for key, value in state.items()}
    safetensors.torch.save_file(state, path / "weights.safetensors")
    digest = hashlib.sha256((path / "weights.safetensors").read_bytes()).hexdigest()
    record = run.record.model_copy(update={"name": path.name, "files": {**run.record.files, "weights.safetensors": digest}})
    (path / "run.json").write_text(record.model_dump_json())
    return path


def test_a_greedy_soup_is_never_worse_on_validation_images_and_leaves_out_what_harms(runs: list[Run], tmp_path: Path) -> None:
    bad = _spoiled(runs[0], tmp_path / "bad")
    soup = make_soup([bad, *_paths(runs)], tmp_path / "soup")
    assert soup.record.soup is not None
    ingredients = {item.name: item for item in soup.record.soup.ingredients}
    assert soup.record.validation.accuracy.value >= max(item.val_accuracy for item in ingredients.values())
    assert soup.record.soup.ingredients[0].used and soup.record.alarms == ()
    assert not ingredients["bad"].used and "bad" not in [parent.name for parent in soup.record.backbone.parents]
    for run in runs:
        assert ingredients[run.record.name].val_accuracy == pytest.approx(run.record.validation.accuracy.value)
    uniform = make_soup([bad, *_paths(runs)], tmp_path / "uniform", method="uniform").record
    assert uniform.soup is not None and all(item.used for item in uniform.soup.ingredients)
    assert bool(uniform.alarms) == (uniform.validation.accuracy.value < soup.record.soup.ingredients[0].val_accuracy)


def test_batchnorm_statistics_that_differ_are_those_of_the_average_on_training_images(images: Path, tmp_path: Path) -> None:
    free = [
        train(images, TrainConfig.from_options(**{**SMALL, "recipe": "fastai", "lr": lr, "epochs": 2}), tmp_path / f"{lr}")
        for lr in (1e-3, 3e-3)
    ]
    assert not any(run.record.plan.freeze_batchnorm for run in free)
    soup = make_soup(_paths(free), tmp_path / "soup", method="uniform")
    model, states = soup.load_model(), [run.load_model().state_dict() for run in free]
    name = next(key for key in states[0] if key.endswith("running_mean"))
    assert not torch.allclose(states[0][name], states[1][name])
    assert not torch.allclose(model.state_dict()[name], average(states)[name])
    first = model.get_submodule(name.removesuffix(".running_mean"))
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    with torch.no_grad():
        for batch in batches(stratified(soup.samples("train"), 2000), soup.record.preprocess):
            model(torch.from_numpy(batch))
    means = torch.stack([given.mean(dim=(0, 2, 3)) for given in seen])
    assert torch.allclose(model.state_dict()[name], means.mean(dim=0), atol=1e-5)


def test_runs_that_do_not_fit_together_are_refused_with_every_reason(runs: list[Run], images: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="two different runs at least"):
        make_soup([runs[0].path, runs[0].path], tmp_path / "soup")
    other = train(images, TrainConfig.from_options(**{**SMALL, "seed": 1, "epochs": 1}), tmp_path / "other")
    with pytest.raises(RunError, match=r"(?s)other has another split into train, val and test.*same --seed"):
        make_soup([runs[0].path, other.path], tmp_path / "soup")
    random = train(
        images, TrainConfig.from_options(**{**SMALL, "backbone": "test_resnet", "pretrained": False, "epochs": 1}), tmp_path / "random"
    )
    with pytest.raises(RunError, match=r"started from random weights.*another architecture.*another start"):
        make_soup([runs[0].path, random.path], tmp_path / "soup")
    (images.parent / "elsewhere").mkdir()
    more = write_colours(images.parent / "elsewhere" / "colours", 12, seed=5)
    with pytest.raises(RunError, match="another data set"):
        make_soup(
            [runs[0].path, train(more, TrainConfig.from_options(**{**SMALL, "epochs": 1}), tmp_path / "more").path], tmp_path / "soup"
        )
    assert not (tmp_path / "soup").exists()


@pytest.mark.slow
def test_the_command_makes_a_soup_that_exports(runs: list[Run], images: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    done = edgetl("soup", *_paths(runs), "--out", tmp_path / "soup", "--data", moved)
    assert done.returncode == 0, done.stderr
    assert "greedy soup" in done.stdout and "next: edgetl export" in done.stdout
    arguments = ("--data", moved, "--format", "onnx", "--precision", "fp32")
    done = edgetl("export", tmp_path / "soup", "--out", tmp_path / "bundle", *arguments)
    assert done.returncode == 0, done.stderr
    names = [parent.name for parent in open_bundle(tmp_path / "bundle").manifest.lineage.parents]
    assert names == [parent.name for parent in open_run(tmp_path / "soup").record.backbone.parents]
    refused = edgetl("soup", runs[0].path, runs[1].path, "--out", tmp_path / "other", "--method", "spicy")
    assert refused.returncode == 3 and "it takes greedy, uniform" in " ".join(refused.stderr.split())
