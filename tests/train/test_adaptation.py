"""Domain adaptation: losses and statistics of unlabeled images, choice of a network, and adapted runs."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from edgetl.core.progress import silent
from edgetl.core.results import Proportion
from edgetl.data.folder import scan_unlabeled
from edgetl.data.loading import batches
from edgetl.errors import ConfigError, DataError
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.runtime.evaluation import EvaluationConfig
from edgetl.train.adaptation.batchnorm import LEAST_VARIANCE, adapt_batchnorm
from edgetl.train.adaptation.losses import class_confusion, entropy, information_loss
from edgetl.train.adaptation.pseudo_labels import pseudo_labels
from edgetl.train.adaptation.scores import diversity, information
from edgetl.train.adaptation.training import TargetTraining, make_objective, train_on_target
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.adaptation.options import AdaptationConfig, Candidate, Method, default_steps
from edgetl.train.inputs.dataset import Batches
from edgetl.train.loop.loop import Objective
from edgetl.train.loop.processes import Execution
from edgetl.train.workflows.runs.adapt import adapt_run, choose_candidate, find_alarms
from edgetl.train.workflows.runs.evaluate import evaluate_run
from tests.command import edgetl
from tests.domains import invert

IMAGES = 40


def inverted(digits: Path, folder: Path, *, per_class: int = IMAGES // 10) -> Path:
    """Write inverted digits into class folders."""
    return invert(digits, folder, per_class=per_class)


def candidate(name: str, information: float, *, diversity: float = 0.9, labeled: float | None = None) -> Candidate:
    accuracy = None if labeled is None else Proportion(value=labeled, n=20, low=0.0, high=1.0)
    return Candidate(name=name, information=information, diversity=diversity, collapsed=diversity < 0.5, changed=0.0, labeled=accuracy)


def test_entropy_is_that_of_the_scores() -> None:
    assert float(entropy(torch.zeros(3, 4))) == pytest.approx(math.log(4))
    assert float(entropy(torch.tensor([[0.0, math.log(3.0)]]))) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


def test_information_loss_is_lowest_for_certain_predictions_of_all_classes() -> None:
    certain, one_class, uncertain = 50 * torch.eye(4), 50 * torch.eye(4)[[0, 0, 0, 0]], torch.zeros(4, 4)
    assert float(information_loss(certain)) == pytest.approx(-math.log(4), abs=1e-5)
    assert float(information_loss(one_class)) == pytest.approx(0.0, abs=1e-5) == pytest.approx(float(information_loss(uncertain)), abs=1e-5)


def test_class_confusion_is_zero_for_certain_and_largest_for_uniform_predictions() -> None:
    assert float(class_confusion(200 * torch.eye(4))) == pytest.approx(0.0, abs=1e-6)
    assert float(class_confusion(torch.zeros(8, 4))) == pytest.approx(3 / 4)


@pytest.mark.parametrize("loss", [entropy, information_loss, class_confusion])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gradient_of_a_target_loss_is_finite(loss: object, scale: float) -> None:
    assert callable(loss)
    logits = (scale * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss(logits).backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_information_and_diversity_of_scores() -> None:
    certain, one_class = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[0, 0, 0, 0]]
    assert [information(certain), diversity(certain)] == pytest.approx([1.0, 1.0])
    assert [information(one_class), diversity(one_class)] == pytest.approx([0.0, 0.0])
    assert information(np.full((3, 4), 0.25, np.float32)) == pytest.approx(0.0)


def test_pseudo_labels_correct_scores_that_are_biased_to_one_class() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 50)
    features = (np.eye(2, 8, dtype=np.float32)[truth] * 4 + rng.normal(0, 0.3, (100, 8))).astype(np.float32)
    biased = np.where(truth[:, None] == [0, 1], [0.8, 0.3], [0.7, 0.2]).astype(np.float32)
    assert (biased.argmax(axis=1) == truth).mean() == 0.5, "all images have the first class"
    assert (pseudo_labels(features, biased) == truth).all()


def test_adapted_batchnorm_has_the_statistics_of_the_target_images(run: Run, digits: Path, tmp_path: Path) -> None:
    backbone, execution = run.backbone(), Execution("cpu", tmp_path)
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    target = scan_unlabeled(inverted(digits, tmp_path / "inverted"))
    adapted = adapt_batchnorm(backbone, target, execution, source=backbone.model).model
    seen: list[torch.Tensor] = []
    first = next(module for module in adapted.modules() if isinstance(module, torch.nn.BatchNorm2d))
    first.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        adapted(torch.from_numpy(next(batches(target, backbone.spec, batch_size=len(target)))))
    assert torch.allclose(first.running_mean, seen[0].mean((0, 2, 3)), atol=1e-4)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in backbone.model.state_dict().items()), "the run's network is unchanged"
    assert not adapted.training


def test_a_channel_that_is_constant_on_the_target_images_keeps_a_part_of_its_variance(run: Run, digits: Path, tmp_path: Path) -> None:
    backbone, execution = run.backbone(), Execution("cpu", tmp_path)
    name, first = next((name, layer) for name, layer in backbone.model.named_modules() if isinstance(layer, torch.nn.BatchNorm2d))
    before = backbone.model.get_buffer(f"{name}.running_var").clone()
    convolution = next(layer for layer in backbone.model.modules() if isinstance(layer, torch.nn.Conv2d))
    with torch.no_grad():
        convolution.weight[3] = 0.0
    target = scan_unlabeled(inverted(digits, tmp_path / "inverted"))
    adapted = adapt_batchnorm(backbone, target, execution, source=backbone.model).model.get_buffer(f"{name}.running_var")
    assert len(before) == first.num_features
    assert float(adapted[3]) == pytest.approx(LEAST_VARIANCE * float(before[3]))
    others = torch.arange(len(before)) != 3
    assert (adapted >= LEAST_VARIANCE * before)[others].all() and not torch.allclose(adapted[others], before[others])


def test_auto_never_chooses_a_network_below_that_of_the_run() -> None:
    source = candidate("source-only", 0.5)
    assert choose_candidate([source, candidate("adabn", 0.4), candidate("mcc", 0.3)], "auto") == source
    assert choose_candidate([source, candidate("adabn", 0.5), candidate("mcc", 0.5)], "auto") == source
    assert choose_candidate([source, candidate("adabn", 0.4), candidate("mcc", 0.6)], "auto").name == "mcc"


def test_auto_does_not_choose_a_collapsed_network() -> None:
    networks = [candidate("source-only", 0.2), candidate("mcc", 0.6, diversity=0.3)]
    assert choose_candidate(networks, "auto").name == "source-only"


def test_auto_chooses_by_labeled_images_if_there_are_any() -> None:
    networks = [candidate("source-only", 0.2, labeled=0.6), candidate("adabn", 0.3, labeled=0.7), candidate("mcc", 0.9, labeled=0.5)]
    assert choose_candidate(networks, "auto").name == "adabn"


def test_requested_method_below_the_run_and_a_collapse_are_alarms(run: Run) -> None:
    networks = [candidate("source-only", 0.5), candidate("shot", 0.3, diversity=0.2)]
    chosen = choose_candidate(networks, "shot")
    collapsed, below = find_alarms(chosen, networks, run, measured=True)
    assert "predicts few classes" in collapsed and "(0.300) is below that of the network before the adaptation (0.500)" in below
    assert "were not read" in find_alarms(networks[0], networks, run, measured=False)[0]
    folds = replace(run, record=run.record.model_copy(update={"folds": 5}))
    assert (
        "because the run was cross-validated and has no validation images" in find_alarms(networks[0], networks, folds, measured=False)[0]
    )


def test_default_steps_depend_on_the_number_of_images() -> None:
    assert [default_steps(images, 32) for images in (20, 420, 4_000, 100_000)] == [100, 105, 1000, 2000]


def training_of(run: Run, target: Path, folder: Path, method: Method) -> TargetTraining:
    """Make the inputs of an adaptation of two steps."""
    backbone, samples = run.backbone(), scan_unlabeled(target)
    return TargetTraining(
        method=method,
        labels=run.record.labels,
        run=backbone,
        start=backbone,
        target=[replace(sample, label=position) for position, sample in enumerate(samples)],
        source=run.samples("train")[:IMAGES] if method == "mcc" else (),
        pseudo_labels=torch.arange(len(samples)) % 10,
        plan=run.record.plan,
        steps=2,
        config=AdaptationConfig(batch_size=8, workers=0),
        execution=Execution("cpu", folder, silent),
    )


@pytest.mark.parametrize("method", ["mcc", "shot"])
def test_training_on_target_images_changes_only_the_layers_of_the_method(run: Run, digits: Path, tmp_path: Path, method: Method) -> None:
    training, head = training_of(run, inverted(digits, tmp_path / "inverted"), tmp_path, method), run.record.backbone.head_name
    trained = dict(train_on_target(training).named_parameters())
    changed = {name for name, value in training.start.model.named_parameters() if not torch.equal(value, trained[name])}
    assert (f"{head}.weight" in changed) == (method == "mcc")
    assert changed and ("conv1.0.weight" not in changed)


def test_loss_terms_of_an_adaptation_can_be_replaced(run: Run, digits: Path, tmp_path: Path) -> None:
    training = training_of(run, inverted(digits, tmp_path / "inverted"), tmp_path, "shot")

    def without_loss(training: TargetTraining, network: torch.nn.Module, source: Batches | None) -> Objective:
        objective = make_objective(training, network, source)
        objective.task.weight = 0.0
        return objective

    trained = dict(train_on_target(training, without_loss).named_parameters())
    norms = {name: value for name, value in training.start.model.named_parameters() if value.ndim == 1}
    assert norms and all(torch.equal(value, trained[name]) for name, value in norms.items()), "they have no weight decay"


def without_images(run: Run, folder: Path) -> Path:
    """Copy a run whose images are missing."""
    shutil.copytree(run.path, folder)
    splits, record = (json.loads((folder / name).read_text()) for name in ("splits.json", "run.json"))
    (folder / "splits.json").write_text(json.dumps({**splits, "root": str(folder / "missing")}))
    record["files"]["splits.json"] = hashlib.sha256((folder / "splits.json").read_bytes()).hexdigest()
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_source_free_adaptation_reads_no_images_of_the_run(run: Run, digits: Path, tmp_path: Path) -> None:
    path, target = without_images(run, tmp_path / "run"), inverted(digits, tmp_path / "inverted")
    config = AdaptationConfig(method="shot", steps=3, batch_size=8, workers=0)
    record = adapt_run(path, target, tmp_path / "adapted", config).record
    assert record.adaptation is not None
    assert [item.name for item in record.adaptation.candidates] == ["source-only", "adabn", "shot"]
    assert record.adaptation.chosen == "shot" and record.adaptation.selected_by == "method"
    assert record.adaptation.images == IMAGES and record.adaptation.steps == 3
    assert record.validation == open_run(path).record.validation and "were not read" in record.alarms[-1]
    adapted = open_run(tmp_path / "adapted")
    assert record.backbone.parents[-1].sha256 == open_run(path).digest()
    assert len(adapted.seen_images().trained) == len(run.seen_images().trained) + IMAGES
    assert not adapted.load_model().training, "the weights can be loaded"


def test_method_that_needs_the_images_of_the_run_reports_that_they_are_missing(run: Run, digits: Path, tmp_path: Path) -> None:
    path, target = without_images(run, tmp_path / "run"), inverted(digits, tmp_path / "inverted")
    with pytest.raises(DataError, match="Give their folder with --data"):
        adapt_run(path, target, tmp_path / "adapted", AdaptationConfig(method="mcc"))


def test_adaptation_rejects_few_target_images_and_few_labels(run: Run, digits: Path, tmp_path: Path) -> None:
    few = inverted(digits, tmp_path / "few", per_class=1)
    with pytest.raises(DataError, match=r"has 10 different images\. An adaptation needs at least 20"):
        adapt_run(run.path, few, tmp_path / "adapted", AdaptationConfig(method="adabn"))
    target = inverted(digits, tmp_path / "inverted")
    with pytest.raises(DataError, match=r"has 10 labeled target images\. At least 20 are needed"):
        adapt_run(run.path, target, tmp_path / "adapted", AdaptationConfig(method="adabn", target_labels=few))


@pytest.mark.slow
def test_adapted_run_is_at_least_as_accurate_on_pale_digits_and_can_be_exported(run: Run, digits: Path, tmp_path: Path) -> None:
    target, labeled = (inverted(digits, tmp_path / name, per_class=count) for name, count in (("pale", 40), ("labeled", 5)))
    for path in (*target.rglob("*.png"), *labeled.rglob("*.png")):
        ImageOps.invert(Image.open(path)).point(lambda value: 150 + value // 5).save(path)
    done = edgetl("adapt", run.path, target, "--out", tmp_path / "adapted", "--target-labels", labeled, "--lr", "0.001")
    assert done.returncode == 0, done.stderr
    assert "source-only" in done.stdout and "adabn" in done.stdout and "chosen by the accuracy on labeled target images" in done.stdout
    record = open_run(tmp_path / "adapted").record
    assert record.adaptation is not None and record.adaptation.selected_by == "labels"
    every = EvaluationConfig(every_image=True)
    before, after = (evaluate_run(path, target, every).result.accuracy.value for path in (run.path, tmp_path / "adapted"))
    assert after >= before
    bundle = export_bundle(tmp_path / "adapted", ExportConfig(name="adapted", formats=("onnx",), precisions=("fp32",)), tmp_path / "bundle")
    assert [parent.kind for parent in bundle.manifest.lineage.parents][-1] == "run"


def test_adaptation_rejects_a_run_without_a_linear_head(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be adapted .*a linear head on its last features, such as that of --features last"):
        adapt_run(with_cosine_head(run, tmp_path / "run"), tmp_path, tmp_path / "adapted", AdaptationConfig(method="adabn"))


def with_cosine_head(run: Run, folder: Path) -> Path:
    """Copy a run with another head in its record."""
    shutil.copytree(run.path, folder)
    record = json.loads((folder / "run.json").read_text())
    record["head"] = {"kind": "cosine"}
    (folder / "run.json").write_text(json.dumps(record))
    return folder
