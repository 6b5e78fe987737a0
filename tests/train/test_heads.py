"""Heads of a probe: predictions of each kind, reopening and export of their runs, and refused combinations of options."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from edgetl.core.bundle import Bundle
from edgetl.core.preprocess import preprocess
from edgetl.core.tasks import LEAST_WEIGHT, KnnHead
from edgetl.data.folder import ImageFolder, Sample
from edgetl.data.loading import batches, labels_of
from edgetl.data.split import Splits, split
from edgetl.errors import ConfigError
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.runtime.gallery.votes import combined_logits
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.resolve import MAX_BANK, resolve
from edgetl.train.config.tasks import scan_images
from edgetl.train.continual.teacher import find_teacher
from edgetl.train.heads.fit import fit_other_head, with_head_modules
from edgetl.train.heads.linear import class_weights, fit_logistic
from edgetl.train.heads.modules import FittedHead, HeadedNetwork, HeadSpec, KnnVotes, LabeledFeatures, plain_state
from edgetl.train.heads.multi_stage import MultiStageFeatures
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import feature_extractor
from edgetl.train.workflows.train import train
from tests.conftest import write_colors, write_squares

SMALL = {"input_size": (48, 48), "crop_pct": 1.0, "augmented_views": 1, "strategy": "probe", "workers": 0}
OPTIONS = {
    "cosine": {"head": "cosine"},
    "mlp": {"head": "mlp"},
    "layers": {"features": "layers"},
    "knn on layers": {"head": "knn", "features": "layers"},
}


def _config(**options: object) -> TrainConfig:
    return TrainConfig.from_options(**{**SMALL, **options})


def _clusters(count: int, *, seed: int, classes: int = 4, width: int = 12) -> LabeledFeatures:
    """Make noisy points around one center per class. They are not negative, as features after a ReLU."""
    centers = np.random.default_rng(0).uniform(1, 4, (classes, width))
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return LabeledFeatures((centers[labels] + rng.normal(size=(count, width))).clip(0).astype(np.float32), labels.astype(np.int64))


def _fit(kind: str, train: LabeledFeatures, val: LabeledFeatures, classes: int = 4) -> FittedHead:
    return fit_other_head(HeadSpec.model_validate({"kind": kind}), train, val, torch.ones(classes))


def _logits(fitted: FittedHead, features: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = fitted.head(fitted.adapter(torch.from_numpy(features))).numpy()
    return found


@pytest.fixture(
    scope="module", params=["layers", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cosine", "mlp", "knn on layers"))]
)
def headed(request: pytest.FixtureRequest, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run on 60 images of each digit."""
    root = tmp_path_factory.mktemp("heads")
    for path in (path for folder in sorted(digits.iterdir()) for path in sorted(folder.iterdir())[:60]):
        (root / "digits" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, root / "digits" / path.parent.name / path.name)
    return train(root / "digits", _config(**OPTIONS[request.param], val=0.2, test=0.2), root / "run")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colors(tmp_path_factory.mktemp("heads") / "colors", 12)


@pytest.fixture(scope="module")
def small_knn(images: Path) -> Run:
    return train(images, _config(head="knn", val=0.25, test=0.25), images.parent / "knn")


def test_reopened_run_has_the_recorded_test_accuracy(headed: Run) -> None:
    record = open_run(headed.path).record
    assert record.test is not None and record.test.accuracy.value > 0.8 and not record.alarms
    model, samples = headed.load_model(), headed.samples("test")
    assert isinstance(model, HeadedNetwork) and isinstance(model.get_submodule(record.backbone.head_name), nn.Linear)
    with torch.no_grad():
        found = torch.cat([model(torch.from_numpy(batch)) for batch in batches(samples, record.preprocess)]).argmax(dim=1).numpy()
    assert (found == labels_of(samples)).mean() == pytest.approx(record.test.accuracy.value, abs=1.5 / len(samples))


def test_run_with_a_nonlinear_head_has_no_timm_configuration(headed: Run) -> None:
    assert not (headed.path / "config.json").exists()


def test_exported_variants_give_the_scores_of_the_trained_network(headed: Run, tmp_path: Path) -> None:
    bundle = export_bundle(headed.path, ExportConfig(precisions=("fp32",), gate_images=100), tmp_path / "bundle")
    assert {variant.name for variant in bundle.manifest.variants} == {"onnx-fp32", "openvino-fp32"}
    _same_scores(bundle, headed)
    assert headed.record.head.describe() in (bundle.path / "card.md").read_text("utf-8")


def _same_scores(bundle: Bundle, run: Run) -> None:
    model = run.load_model()
    for sample in run.samples("test")[:10]:
        with torch.no_grad():
            expected = torch.softmax(model(torch.from_numpy(preprocess(sample.path, run.record.preprocess)[None])), 1)[0].numpy()
        for name in ("onnx-fp32", "openvino-fp32"):
            np.testing.assert_allclose(load(bundle, variant=name).predict(sample.path).scores, expected, atol=1e-3)


@pytest.mark.slow
def test_every_head_passes_the_accuracy_gate_in_int8(headed: Run, tmp_path: Path) -> None:
    config = ExportConfig(precisions=("int8",), calibration_images=100, max_drop=0.02)
    bundle = export_bundle(headed.path, config, tmp_path / "bundle")
    assert {variant.name for variant in bundle.manifest.variants} == {"onnx-int8", "openvino-int8"}


def test_knn_votes_equal_those_of_scikit_learn() -> None:
    bank, queries = _clusters(80, seed=1), _clusters(40, seed=2)
    fitted = _fit("knn", bank, queries)
    spec, mean, temperature = fitted.spec, bank.features.mean(axis=0), fitted.spec.temperature

    def weights(distances: NDArray[np.float64]) -> NDArray[np.float64]:
        raw = np.exp((distances[:, :1] - distances) / temperature)
        reduced: NDArray[np.float64] = raw - raw[:, -1:] + LEAST_WEIGHT
        reduced[:, -1] = 0  # the last neighbor has no vote
        return reduced

    reference = KNeighborsClassifier(spec.neighbors + 1, metric="cosine", algorithm="brute", weights=weights)
    reference.fit(bank.features - mean, bank.targets)
    with torch.no_grad():
        votes = fitted.adapter(torch.from_numpy(queries.features)).numpy()
    np.testing.assert_allclose(votes, reference.predict_proba(queries.features - mean), atol=1e-4)
    assert (_logits(fitted, queries.features).argmax(axis=1) == reference.predict(queries.features - mean)).all()


def test_votes_with_a_gallery_equal_those_of_a_head_that_stores_its_images() -> None:
    rows, queries = _clusters(80, seed=1), torch.from_numpy(_clusters(40, seed=2).features)
    fitted = _fit("knn", LabeledFeatures(rows.features[:60], rows.targets[:60]), _clusters(40, seed=3))
    small = fitted.adapter
    assert isinstance(small, KnnVotes)
    added = small.directions(torch.from_numpy(rows.features[60:]))
    votes = F.one_hot(torch.from_numpy(rows.targets[60:]), 5).float() * 1.5
    votes[:3] = torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0])  # a new class
    large = KnnVotes(12, 5, fitted.spec.model_copy(update={"bank": 80}))
    large.directions.center.copy_(small.directions.center)
    large.bank.copy_(torch.cat([small.bank, added]))
    large.votes.copy_(torch.cat([F.pad(small.votes, (0, 1)), votes]))
    with torch.no_grad():
        outputs = [item.numpy() for item in small.nearest(queries)]
        expected = large(queries).numpy()
    head = KnnHead(width=12, neighbors=small.neighbors, temperature=small.temperature, scale=3.0, weights=(1.0,) * 4)
    found = combined_logits(head, (outputs[0], outputs[1], outputs[2]), added.numpy(), votes.numpy())
    np.testing.assert_allclose(found, 3 * (expected - 1 / 5), atol=1e-4)


def test_swapping_two_equally_near_neighbors_keeps_the_prediction() -> None:
    spec = HeadSpec(kind="knn", bank=3, neighbors=1, temperature=0.1)
    layer = KnnVotes(2, 2, spec)
    angles = torch.tensor([0.3, -0.3, 3.0])
    layer.bank.copy_(torch.stack([angles.cos(), angles.sin()], dim=1))
    layer.votes.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    two = KnnVotes(2, 2, spec.model_copy(update={"neighbors": 2}))
    two.load_state_dict(layer.state_dict())
    up, down = (two(torch.tensor([[1.0, turn]])) for turn in (1e-6, -1e-6))
    assert torch.allclose(up, down, atol=1e-4) and torch.allclose(up, torch.tensor([[0.5, 0.5]]), atol=1e-3)


def test_knn_head_works_with_two_images() -> None:
    rows = LabeledFeatures(np.array([[1, 0], [0, 1]], np.float32), np.array([0, 1]))
    fitted = _fit("knn", rows, rows, classes=2)
    assert fitted.spec.neighbors == 1 and (_logits(fitted, rows.features).argmax(axis=1) == rows.targets).all()


@pytest.mark.parametrize("kind", ["cosine", "knn"])
def test_predictions_do_not_depend_on_the_scale_of_the_features(kind: str) -> None:
    rows, val = _clusters(200, seed=1), _clusters(80, seed=2)
    plain = _fit(kind, rows, val)
    scaled = _fit(kind, LabeledFeatures(rows.features * 32, rows.targets), LabeledFeatures(val.features * 32, val.targets))
    np.testing.assert_allclose(_logits(plain, val.features), _logits(scaled, val.features * 32), atol=0.02)


def test_cosine_head_ignores_the_distance_from_the_mean() -> None:
    rows, val = _clusters(200, seed=1), _clusters(80, seed=2)
    fitted, mean = _fit("cosine", rows, val), rows.features.mean(axis=0)
    np.testing.assert_allclose(_logits(fitted, val.features), _logits(fitted, mean + 3 * (val.features - mean)), atol=1e-3)
    lengths = fitted.head.weight.norm(dim=1)
    assert torch.allclose(lengths, lengths[0].expand(4)), "one scale for all classes"


def _exclusive_or(count: int, seed: int) -> LabeledFeatures:
    points = np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)
    return LabeledFeatures(points, (points[:, 0] * points[:, 1] > 0).astype(np.int64))


def test_mlp_head_learns_exclusive_or_and_a_linear_head_does_not() -> None:
    rows, val, test = (_exclusive_or(count, seed) for count, seed in ((600, 1), (200, 2), (400, 3)))
    linear = fit_logistic(LabeledFeatures(rows.features, rows.targets), 2, seed=0)
    linear_accuracy = ((test.features @ linear.weight.T + linear.bias).argmax(axis=1) == test.targets).mean()
    mlp_accuracy = (_logits(_fit("mlp", rows, val, classes=2), test.features).argmax(axis=1) == test.targets).mean()
    assert linear_accuracy < 0.65 and mlp_accuracy > 0.93


def test_mlp_fit_is_reproducible_and_keeps_the_global_random_state() -> None:
    rows, val = _clusters(60, seed=1), _clusters(40, seed=2)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = _fit("mlp", rows, val), _fit("mlp", rows, val)
    assert np.array_equal(_logits(first, val.features), _logits(second, val.features))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["cosine", "mlp", "knn"])
def test_class_weights_increase_predictions_of_a_rare_class(kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 10 == 0).astype(np.int64)
    rows, val = (LabeledFeatures((rng.normal(size=(400, 6)) + labels[:, None] * 0.7).astype(np.float32), labels) for _ in range(2))
    spec = HeadSpec.model_validate({"kind": kind})
    plain, balanced = (fit_other_head(spec, rows, val, weights) for weights in (torch.ones(2), torch.from_numpy(class_weights(labels))))
    queries = rng.normal(size=(300, 6)).astype(np.float32) + 0.35
    assert _logits(balanced, queries).argmax(axis=1).mean() > _logits(plain, queries).argmax(axis=1).mean() + 0.1


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_multi_stage_features_have_the_width_of_all_stages_and_end_with_the_last_features(name: str) -> None:
    config = TrainConfig.from_options(backbone=name, pretrained=False, strategy="probe", features="layers")
    backbone = load_backbone(config.backbone, 3)
    plain = feature_extractor(backbone.model, backbone.head_name)
    own = backbone.head.in_features
    joined = with_head_modules(backbone, HeadSpec(features="layers"))
    assert isinstance(joined.model, HeadedNetwork) and isinstance(joined.model.backbone, MultiStageFeatures)
    images = torch.randn(2, 3, *backbone.spec.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = joined.model.eval().backbone(images), plain(images)
    widths = joined.model.backbone.widths
    assert len(widths) > 1 and found.shape == (2, sum(widths) + own) and joined.head.in_features == sum(widths) + own
    assert torch.allclose(found[:, sum(widths) :], expected, atol=1e-5)


def test_backbone_without_stage_features_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"torchvision:mobilenet_v2 does not provide the feature maps of its stages .*Use --features last"
    ):
        train(images, _config(backbone="torchvision:mobilenet_v2", pretrained=False, features="layers"), tmp_path / "run")


def test_run_with_a_linear_head_has_a_timm_configuration(images: Path, tmp_path: Path) -> None:
    run = train(images, _config(), tmp_path / "run")
    assert run.record.head == HeadSpec() and (run.path / "config.json").is_file()
    assert not isinstance(run.load_model(), HeadedNetwork)


@pytest.mark.parametrize("kind", ["knn", "layers"])
def test_run_with_another_head_is_loaded_as_a_backbone_without_it(kind: str, images: Path, small_knn: Run, tmp_path: Path) -> None:
    parent = small_knn if kind == "knn" else train(images, _config(features="layers"), tmp_path / "parent")
    backbone = load_backbone(_config(backbone=str(parent.path)).backbone, 3)
    state, kept = backbone.model.state_dict(), plain_state(parent.load_model())
    assert kept and all(torch.equal(state[key], value) for key, value in kept.items())
    child = train(images, _config(backbone=str(parent.path)), tmp_path / "child")
    assert child.record.head == HeadSpec() and child.record.forgetting is None
    assert child.record.backbone.parents[-1].name == parent.record.name


def test_lwf_refuses_a_run_with_a_nonlinear_head(images: Path, small_knn: Run, tmp_path: Path) -> None:
    config = _config(backbone=str(small_knn.path), strategy="partial", epochs=1, lwf=1.0)
    with pytest.raises(ConfigError, match=r"need the linear head of the previous task, but the weights of .*knn have none"):
        train(images, config, tmp_path / "run")


def test_run_with_another_head_is_a_teacher_with_its_head(images: Path, small_knn: Run, tmp_path: Path) -> None:
    config = _config(teacher=str(small_knn.path), strategy="partial")
    splits = split(scan_images(images, config.data), seed=0, val=0.25, test=0.25)
    teacher = find_teacher(str(small_knn.path), config.backbone, splits, Execution("cpu", tmp_path))
    image = torch.from_numpy(preprocess(splits.test[0].path, teacher.spec)[None])
    with torch.no_grad():
        assert torch.allclose(teacher.network(image), small_knn.load_model()(image), atol=1e-5)


def test_strategies_other_than_probe_refuse_nonlinear_heads(images: Path, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--head knn cannot be combined with the strategy full. Add --strategy probe"):
        train(images, _config(head="knn", strategy="full"), tmp_path / "run")
    with pytest.raises(ConfigError, match="--features layers cannot be combined with the strategy compare"):
        train(images, _config(features="layers", strategy="compare"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--head mlp cannot be combined with the strategy partial. Add --strategy probe"):
        train(digits, _config(head="mlp", strategy="auto"), tmp_path / "run")


def test_tasks_other_than_classification_refuse_nonlinear_heads(tmp_path: Path) -> None:
    root = write_squares(tmp_path / "squares", 30)
    config = _config(head="cosine", labels=str(root / "labels.csv"), columns="red,green,blue")
    with pytest.raises(ConfigError, match=r"--head cosine is only for classification, not multi-label. Use --head linear"):
        train(root / "images", config, tmp_path / "run")


def test_knn_head_refuses_too_many_training_images() -> None:
    config = TrainConfig.from_options(strategy="probe", head="knn")
    many = [Sample(Path(f"{index}.png"), index % 2, str(index)) for index in range(MAX_BANK + 1)]
    splits = Splits(ImageFolder(Path(), ("a", "b"), tuple(many), ()), tuple(many), tuple(many[:2]), ())
    with pytest.raises(
        ConfigError, match=r"--head knn stores .* at most 10,000. There are 10,001 training images. Use --head linear, cosine or mlp"
    ):
        resolve(config, splits)
