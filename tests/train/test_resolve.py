"""Resolution of a training configuration: option groups, recipes, and conflicts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import BaseModel

import edgetl.train as edgetl_train
from edgetl.core.options import flat, nested, options
from edgetl.data.folder import ImageFolder, Sample
from edgetl.data.split import Splits
from edgetl.errors import ConfigError, DataError
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.recipe import read_recipe
from edgetl.train.config.resolve import check_conflicts, resolve
from edgetl.train.loop.checkpoints import Checkpoints, SavedState
from edgetl.train.loop.resume import Job
from edgetl.train.workflows.compare import compared_strategies
from edgetl.train.workflows.preview import draw_preview
from tests.command import edgetl
from tests.train.planning import plan_of


def _splits(images: int, classes: int = 2) -> Splits:
    samples = tuple(Sample(Path(f"{index}.png"), index % classes, str(index)) for index in range(images))
    return Splits(ImageFolder(Path("images"), ("a", "b"), samples, ()), samples, samples[:4], ())


def test_training_configuration_imports_no_training_library() -> None:
    modules = [path.stem for path in Path("edgetl/train/config").glob("*.py") if path.stem != "__init__"]
    code = f"import sys; {'; '.join(f'import edgetl.train.config.{name}' for name in modules)}; "
    code += "sys.exit(bool({'torch', 'torchvision', 'timm', 'lightning', 'lightning_fabric', 'sklearn'} & set(sys.modules)))"
    assert modules and subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_flat_options_and_groups_give_the_same_configuration() -> None:
    config = TrainConfig.from_options(backbone="resnet18", head="knn", lwf=1.0, distillation_weight=0.3)
    assert (config.backbone.name, config.head.kind, config.continual.lwf, config.distillation.weight) == ("resnet18", "knn", 1.0, 0.3)
    assert TrainConfig.from_options(**flat(config)) == config
    assert config.given() == {"backbone": "resnet18", "head": "knn", "lwf": 1.0, "distillation_weight": 0.3}
    assert TrainConfig.from_options(**config.given()).given() == config.given()
    assert config.with_options(lwf=2.0).given() == {**config.given(), "lwf": 2.0}


def test_options_rejects_duplicate_option_names() -> None:
    class Group(BaseModel):
        seed: int = 0

    class Wrong(BaseModel):
        seed: int = 1
        group: Group = Group()

    with pytest.raises(ValueError, match="Wrong has two options seed"):
        options(Wrong)


def test_nested_keeps_unknown_options_for_the_error_of_the_model() -> None:
    assert nested(TrainConfig, {"speed": 3}) == {"speed": 3}


@pytest.mark.parametrize(("given", "strategy"), [({}, "full"), ({"strategy": "auto"}, "partial"), ({"strategy": "probe"}, "probe")])
def test_given_strategy_overrides_the_recipe_even_if_it_is_the_default(given: dict[str, Any], strategy: str) -> None:
    job = resolve(TrainConfig.from_options(recipe="fastai", **given), _splits(500))
    assert job.strategy == strategy and job.config.optim.unfreeze == ("1" if not given else None)


def test_train_command_records_given_options_apart_from_defaults(colors: Path, tmp_path: Path) -> None:
    options = ["--recipe", "fastai", "--strategy", "auto", "--input-size", 32, "--augmented-views", 1, "--test", 0.15]
    done = edgetl("train", colors, "--out", tmp_path / "run", *options, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["plan"]["strategy"] == "probe", "auto with few images selects probe, and the recipe's strategy is full"
    assert record["given"] == ["input_size", "test", "augmented_views", "recipe", "strategy"]


def test_train_package_exports_the_names_of_its_modules() -> None:
    assert edgetl_train.open_run is open_run and edgetl_train.TrainConfig is TrainConfig
    assert all(getattr(edgetl_train, name) for name in edgetl_train.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = edgetl_train.fit


def test_resolve_reports_all_conflicts_together_before_loading_weights() -> None:
    config = TrainConfig.from_options(
        backbone="no_such_backbone",
        strategy="full",
        head="knn",
        multilabel_loss="asymmetric",
        forgetting="progressive",
        lwf=1.0,
        teacher="resnet18",
        replay="old",
        balance="sampler",
    )
    with pytest.raises(ConfigError) as caught:
        resolve(config, _splits(20_000))
    for text in (
        "--multilabel-loss asymmetric is only for multi-label tasks, not classification",
        "--replay cannot be combined with --balance sampler",
        "--teacher cannot be combined with --replay",
        "--forgetting progressive keeps the previous network frozen and cannot be combined with --lwf and --replay and --teacher",
        "--head knn cannot be combined with the strategy full",
        "at most 10,000. There are 20,000 training images",
    ):
        assert text in str(caught.value)


def test_resolve_names_a_class_without_training_images() -> None:
    with pytest.raises(DataError, match=r"no training image of b. Add images, or remove the class"):
        resolve(TrainConfig(), _splits(500, classes=1))


def test_mixup_is_off_by_default_with_replay() -> None:
    model = timm.create_model("test_resnet", num_classes=2)
    plain, replayed = (plan_of(TrainConfig.from_options(**given), 30_000, model) for given in ({}, {"replay": "old"}))
    assert plain.mixup > 0 and replayed.mixup == 0
    with pytest.raises(ConfigError, match="--replay cannot be combined with"):
        resolve(TrainConfig.from_options(replay="old", mixup=0.2), _splits(500))


def _recipe(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_recipe_without_a_strategy_keeps_its_unfreeze_value(tmp_path: Path) -> None:
    file = _recipe(tmp_path / "mine.toml", 'unfreeze = "0.5"\n')
    assert resolve(TrainConfig.from_options(recipe=file, strategy="partial"), _splits(500)).config.optim.unfreeze == "0.5"


def test_label_smoothing_of_a_recipe_is_ignored_for_other_losses_but_the_option_conflicts(tmp_path: Path) -> None:
    file = _recipe(tmp_path / "mine.toml", "label_smoothing = 0.1\n")
    recipe = TrainConfig.from_options(recipe=file, multilabel_loss="asymmetric", task="multi-label", labels="x.csv")
    check_conflicts(recipe)
    with pytest.raises(ConfigError, match="--label-smoothing is only for classification"):
        check_conflicts(recipe.with_options(label_smoothing=0.1))


def test_date_in_a_recipe_gives_an_error_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lr: Input should be a valid number"):
        read_recipe(_recipe(tmp_path / "mine.toml", "lr = 2024-01-01\n"))


def test_random_weights_conflict_with_a_weights_file() -> None:
    job = resolve(TrainConfig.from_options(backbone="resnet18", pretrained=False, weights="w.safetensors"), _splits(500))
    with pytest.raises(ConfigError, match=r"--weights .*--random-weights"):
        load_backbone(job.config.backbone, 2)


@pytest.mark.parametrize(("images", "scratch", "count"), [(100_000, True, 3), (100_001, True, 4), (100_001, False, 3)])
def test_comparison_includes_scratch_only_with_very_many_images(images: int, scratch: bool, count: int) -> None:
    assert len(compared_strategies(_splits(images), scratch=scratch)) == count


def test_preview_rejects_conflicting_options(colors: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--task regression needs --labels"):
        draw_preview(colors, TrainConfig.from_options(task="regression"), tmp_path / "sheet.png")


def test_saved_state_of_another_version_is_not_resumed(tmp_path: Path) -> None:
    job = Job(data="", options={"no_such_option": 1}, resolved={})
    Checkpoints(tmp_path / "run.checkpoints", job).save(SavedState(1, {"x": torch.zeros(1)}, {}))
    with pytest.raises(ConfigError, match="has the state of a different training: the version of edgetl"):
        Checkpoints(tmp_path / "run.checkpoints", Job(data="", options={}, resolved={})).newest()
