"""Export of adapted runs: images of the target domain calibrate int8, decide in the accuracy gate, and are monitored."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgetl.cli.tables import attempt_lines, reference_lines, target_lines, variants_table
from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.lineage import TargetImages
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import silent
from edgetl.core.results import UnlabeledAgreement
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import Sample, scan_unlabeled
from edgetl.data.loading import PixelSet
from edgetl.errors import ConfigError, DataError
from edgetl.export.config import ExportConfig
from edgetl.export.context import prepare
from edgetl.export.gate.agreement import GateSet, compare, drop_reason
from edgetl.export.gate.degradation import expected_drop_reason
from edgetl.export.gate.images import read_images
from edgetl.export.gate.unlabeled import changed_too_much, decide_alone
from edgetl.export.package import export_bundle
from edgetl.runtime.verify import verify
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.adaptation.options import AdaptationConfig
from edgetl.train.workflows.runs.adapt import adapt_run
from edgetl.train.workflows.runs.calibrate import calibrate_run
from tests.built import built
from tests.conftest import write_colors
from tests.domains import invert

IMAGES = 120


@pytest.fixture(scope="module")
def target(digits: Path) -> Path:
    """Inverted digits."""
    return built("inverted", lambda folder: invert(digits, folder, per_class=IMAGES // 10))


@pytest.fixture(scope="module")
def adapted(run: Run, target: Path) -> Run:
    """Run of the digits with the BatchNorm statistics of inverted digits."""
    return open_run(built("runs/inverted", lambda out: adapt_run(run.path, target, out, AdaptationConfig(method="adabn"))))


@pytest.fixture(scope="module")
def adapted_bundle(adapted: Run) -> Bundle:
    """Bundle of the adapted run in int8."""
    config = ExportConfig(name="inverted", formats=("onnx",), precisions=("fp32", "int8"), max_drop=0.2, min_agreement=0.5)
    return open_bundle(built("bundles/inverted", lambda out: export_bundle(adapted.path, config, out)))


def changed(run: Run, folder: Path, **adaptation: str | None) -> Run:
    """Copy a run, with other values in the record of its adaptation."""
    shutil.copytree(run.path, folder)
    record = json.loads((folder / "run.json").read_text())
    record["adaptation"] |= adaptation
    (folder / "run.json").write_text(json.dumps(record))
    return open_run(folder)


def test_target_images_calibrate_and_decide_and_are_monitored(adapted_bundle: Bundle, adapted: Run, target: Path) -> None:
    manifest, images = adapted_bundle.manifest, read_images(adapted, ExportConfig())
    assert manifest.target == images.target and manifest.target is not None
    assert (manifest.target.n, manifest.target.adapted, manifest.target.labeled) == (IMAGES, IMAGES, 0)
    assert not {item.content for item in images.fitting} & {item.content for item in images.gate}
    assert all(item.path.is_relative_to(target) for item in (*images.fitting, *images.gate, *images.reference))
    digest = hashlib.sha256("\n".join(sorted(sample.content for sample in images.fitting)).encode()).hexdigest()
    calibration, reference = manifest.calibration, manifest.reference
    assert calibration is not None and (calibration.n, calibration.source, calibration.images_sha256) == (60, "target", digest)
    assert reference is not None and reference.n == IMAGES
    assert (manifest.trained.value, manifest.trained.n, manifest.folds, manifest.max_changed) == (1.0, 60, 0, None)
    files = {path.read_bytes() for path in target.rglob("*.png")}
    assert all(adapted_bundle.read(golden.image) in files for golden in manifest.golden)


def test_variants_have_the_agreement_with_the_trained_model_and_no_accuracy(adapted_bundle: Bundle) -> None:
    manifest = adapted_bundle.manifest
    assert (manifest.score_name, manifest.gate_images) == ("agreement", "unlabeled target images")
    int8 = adapted_bundle.variant("onnx-int8")
    assert int8.test is None and int8.accuracy_drop is None and int8.validation.value == int8.agreement.top1_agreement
    assert int8.unlabeled is not None and int8.unlabeled.images == "60 target images", "these decide alone with a limit of 0.2"
    assert manifest.drop_of(int8) == int8.unlabeled.expected_drop
    assert manifest.drop_of(adapted_bundle.variant("onnx-fp32")) == 0.0


def test_golden_labels_are_the_predictions_of_the_trained_model(adapted_bundle: Bundle) -> None:
    manifest = adapted_bundle.manifest
    found = [manifest.labels[int(np.argmax(golden.scores["onnx-fp32"]))] for golden in manifest.golden]
    assert [golden.label for golden in manifest.golden] == found


def test_output_and_card_name_the_images_of_the_gate(adapted_bundle: Bundle) -> None:
    manifest, card = adapted_bundle.manifest, (adapted_bundle.path / "card.md").read_text()
    assert "agreement with the trained model on 60 unlabeled target images" in str(variants_table(manifest).title)
    first, second = target_lines(manifest)
    assert first == "target domain: 120 images, of which 120 adapted the network; 60 calibrate int8."
    assert "on 60 target images without labels" in second and "--target-labels" in second
    assert any(": agreement 0." in line or ": agreement 1." in line for line in attempt_lines(manifest))
    assert "- Accuracy gate: unlabeled target images, by the agreement with the trained model on 60 images" in card
    assert "- Calibration of int8: 60 target images" in card and "- Monitoring reference: 120 images of the target domain" in card
    assert "- Domain adaptation: adabn, to 120 unlabeled images of another domain" in card


def test_bundle_of_an_adapted_run_passes_its_verification(adapted_bundle: Bundle) -> None:
    assert len(verify(adapted_bundle).checked) == len(adapted_bundle.manifest.variants) == 2


def test_labels_of_the_trained_model_are_kept_at_a_smaller_input(adapted: Run, tmp_path: Path) -> None:
    config = ExportConfig(formats=("onnx",), precisions=("fp32",), input_size=40, max_drop=1.0)
    context = prepare(adapted, config, tmp_path, silent)
    assert context.full_size is not None and context.full_size.value == 1.0
    assert context.gate.evaluation.accuracy.value == context.gate.measure(context.gate.trained).accuracy.value < 1.0
    assert context.limits.max_drop < 1.0


def test_images_of_the_training_are_not_needed(adapted: Run, tmp_path: Path) -> None:
    run = changed(adapted, tmp_path / "run")
    record, splits = (json.loads((run.path / name).read_text()) for name in ("run.json", "splits.json"))
    (run.path / "splits.json").write_text(json.dumps({**splits, "root": str(tmp_path / "missing")}))
    record["files"]["splits.json"] = hashlib.sha256((run.path / "splits.json").read_bytes()).hexdigest()
    (run.path / "run.json").write_text(json.dumps(record))
    assert len(read_images(open_run(run.path), ExportConfig()).gate) == IMAGES // 2


def test_missing_or_replaced_target_folder_is_an_error(adapted: Run, tmp_path: Path) -> None:
    missing = changed(adapted, tmp_path / "missing", target=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"target images of .* are not at .*nowhere\. .*target domain with --unlabeled"):
        read_images(missing, ExportConfig())
    replaced = changed(adapted, tmp_path / "replaced", target=str(write_colors(tmp_path / "colors", 8)))
    with pytest.raises(DataError, match=r"colors has none of the images that .*replaced was adapted to"):
        read_images(replaced, ExportConfig())


def test_unlabeled_replaces_the_images_of_the_adaptation(adapted: Run, target: Path, tmp_path: Path) -> None:
    other = write_colors(tmp_path / "colors", 8)
    found = read_images(adapted, ExportConfig(unlabeled=other)).target
    assert found is not None and (found.n, found.adapted, found.labeled) == (24, 0, 0)
    shutil.copytree(target / "0", other / "0")
    found = read_images(adapted, ExportConfig(unlabeled=other)).target
    assert found is not None and (found.n, found.adapted) == (36, 12)
    few = write_colors(tmp_path / "few", 5)
    with pytest.raises(DataError, match=r"few has 15 different images\. The export of an adapted run needs at least 20"):
        read_images(adapted, ExportConfig(unlabeled=few))


def test_images_of_the_training_are_not_counted_as_adapted(adapted: Run, digits: Path) -> None:
    found = read_images(adapted, ExportConfig(unlabeled=digits / "0")).target
    assert found is not None and found.adapted == 0


def test_scores_of_an_adapted_run_are_not_calibrated_on_images_of_the_training(adapted: Run) -> None:
    with pytest.raises(ConfigError, match=r"cannot be calibrated: its validation images are not of the domain to which it was adapted"):
        calibrate_run(adapted.path)


def test_run_may_be_adapted_to_images_of_its_training(adapted: Run, digits: Path, tmp_path: Path) -> None:
    contents = sorted({sample.content for sample in scan_unlabeled(digits / "0")})
    fingerprint = hashlib.sha256("\n".join(contents).encode()).hexdigest()
    run = changed(adapted, tmp_path / "run", target=str(digits / "0"), fingerprint=fingerprint)
    found = read_images(run, ExportConfig()).target
    assert found is not None and found.adapted == found.n == len(contents)


def test_unlabeled_images_of_the_training_are_a_warning(
    adapted: Run, digits: Path, target: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_images(adapted, ExportConfig(unlabeled=target))
    assert not caplog.text
    trained = adapted.samples("train")[:8]
    for sample in trained:
        shutil.copy(sample.path, tmp_path / sample.path.name)
    shutil.copytree(target / "0", tmp_path / "0")
    read_images(adapted, ExportConfig(unlabeled=tmp_path))
    assert "--unlabeled: 8 of 20 images are of the training before the adaptation, not of the target domain" in caplog.text


def test_folder_without_readable_target_images_is_an_error(adapted: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = changed(adapted, tmp_path / "run", target=str(tmp_path / "empty"))
    with pytest.raises(DataError) as caught:
        read_images(run, ExportConfig())
    assert str(caught.value) == (
        f"the folder of target images {tmp_path / 'empty'} contains no usable image: no image in it can be read. Give other images."
    )


def test_options_for_labeled_images_of_the_training_are_errors(adapted: Run, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data is not used: .* is an adapted run"):
        read_images(adapted, ExportConfig(data=digits))
    with pytest.raises(ConfigError, match=r"--strict needs labels, and the target images of .* have none"):
        prepare(adapted, ExportConfig(strict=True), tmp_path, silent)


@pytest.fixture(scope="module")
def labeled(digits: Path) -> Path:
    """Labeled inverted digits, which are also among the target images."""
    return built("inverted-labeled", lambda folder: invert(digits, folder, per_class=4))


def test_labeled_target_images_decide(adapted: Run, labeled: Path, tmp_path: Path) -> None:
    run = changed(adapted, tmp_path / "run", labels=str(labeled))
    images = read_images(run, ExportConfig())
    assert images.kind == "labeled target" and images.target is not None and images.target.labeled == len(images.gate) == 40
    known = {sample.content for sample in images.gate}
    assert len(images.fitting) == 60 and not known & {sample.content for sample in (*images.fitting, *images.unlabeled)}
    assert len(images.unlabeled) == IMAGES - 60 - 40
    config = ExportConfig(name="labeled", formats=("onnx",), precisions=("fp32", "fp16"))
    bundle = export_bundle(run.path, config, tmp_path / "bundle")
    manifest, card = bundle.manifest, (bundle.path / "card.md").read_text()
    assert manifest.score_name == "accuracy" and manifest.trained.n == 40 and manifest.max_changed == 0
    found = bundle.variant("onnx-fp16").unlabeled
    assert found is not None and found.images == "40 labeled images, 20 target images and 440 random crops"
    assert target_lines(manifest)[1] == "accuracy gate: accuracy on 40 labeled target images."
    assert "- Accuracy gate: labeled target images, by accuracy of the trained model 0." in card
    assert "trained model accuracy 0." in str(variants_table(manifest).title)


def test_missing_labeled_images_are_an_error_or_a_warning(
    adapted: Run, target: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = changed(adapted, tmp_path / "run", labels=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"labeled target images of .* are not at .*nowhere\. Restore them"):
        read_images(run, ExportConfig())
    with caplog.at_level(logging.WARNING):
        assert read_images(run, ExportConfig(unlabeled=target)).kind == "unlabeled target"
    assert "The accuracy gate decides without labels" in caplog.text


def test_record_of_an_adaptation_has_absolute_paths(adapted: Run, target: Path) -> None:
    assert adapted.record.adaptation is not None and adapted.record.adaptation.target == str(target)


def test_labels_can_be_replaced_without_decoding_again(colors: Path) -> None:
    samples = [Sample(path, 0, path.name) for path in sorted(colors.rglob("*.png"))[:3]]
    images = PixelSet(samples, PreprocessSpec(input_size=(8, 8)))
    before = next(images.batches())
    other = images.with_labels([2, 1, 0])
    for path in colors.rglob("*.png"):
        path.unlink()
    assert [sample.label for sample in other.samples] == [2, 1, 0] and np.array_equal(next(other.batches()), before)
    assert [sample.label for sample in images.samples] == [0, 0, 0]


def gate_of(trained: np.ndarray) -> GateSet:
    """Make a gate of images without labels, which are never read."""
    samples = [Sample(Path(f"{index}.png"), int(row.argmax()), f"{index:064x}") for index, row in enumerate(trained)]
    return GateSet(
        PixelSet(samples, PreprocessSpec(input_size=(8, 8))), trained, OutputDecoding(labels=("a", "b")), kind="unlabeled target"
    )


def test_gate_without_labels_limits_the_expected_drop() -> None:
    trained = np.array([[4.0, 0.0]] * 10 + [[0.0, 4.0]] * 10, np.float32)
    trained[0] = [0.01, 0.0]
    close, far = trained.copy(), trained.copy()
    close[0], far[1] = [0.0, 0.01], [0.0, 4.0]
    gate = gate_of(trained)
    assert gate.drop_of(trained) == 0.0 and drop_reason(gate, trained, ExportConfig()) == ""
    assert compare(trained, close).top1_agreement == compare(trained, far).top1_agreement == 0.95
    assert gate.drop_of(close) < 0.001 and drop_reason(gate, close, ExportConfig()) == "", "the two classes are equally likely"
    assert gate.drop_of(far) == pytest.approx((1 / (1 + np.exp(-4)) - 1 / (1 + np.exp(4))) / 20)
    reason = drop_reason(gate, far, ExportConfig())
    assert reason.startswith(
        "the trained model's scores predict an accuracy drop of 0.0482 on 20 target images without labels (limit --max-drop"
    )
    assert "too many images get the same prediction" in drop_reason(
        gate, np.array([[9.0, 0.0]] * 20, np.float32), ExportConfig(max_drop=1.0)
    )


def test_expected_drop_of_one_class_is_limited() -> None:
    predicted = np.repeat([0, 1], [480, 20])
    drops = np.where(predicted == 1, 0.06, 0.0)
    assert expected_drop_reason(drops, predicted, ("a", "b"), 0.01).startswith(
        "the trained model's scores predict an accuracy drop of 0.0600 on target images that it assigns to class b (limit 0.05)"
    )
    assert expected_drop_reason(drops, predicted, ("a", "b"), 0.06) == ""
    assert expected_drop_reason(drops[1:-1], predicted[1:-1], ("a", "b"), 0.01) == "", "19 images are too few"


def test_reason_without_labels_suggests_more_target_images() -> None:
    found = UnlabeledAgreement(n=500, top1_agreement=0.9, expected_drop=0.05, target=30, crops=470)
    assert found.images == "30 target images and 470 random crops"
    assert "Give more target images with --unlabeled (with 200 or more, these decide without crops), or raise" in changed_too_much(
        found, 30, 0.01
    )
    labeled = found.model_copy(update={"crops": 440})
    assert labeled.images == "30 labeled images, 30 target images and 440 random crops"
    assert "Add labeled images (with 100 or more, these decide alone), give more target images with --unlabeled, or raise" in (
        changed_too_much(labeled, 30, 0.01)
    )


def test_enough_target_images_decide_without_crops(adapted: Run, tmp_path: Path) -> None:
    assert [decide_alone(n, 0.01) for n in (99, 100)] == [decide_alone(n, 0.001) for n in (99, 100)] == [False, True]
    assert decide_alone(5, 0.2) and not decide_alone(4, 0.2)
    more = prepare(adapted, ExportConfig(max_drop=0.1), tmp_path, silent).agreement_set
    assert (more.images, more.trained.shape) == ((), (0, 10))


def test_too_few_target_images_for_a_reference_are_counted(adapted_bundle: Bundle) -> None:
    assert reference_lines(adapted_bundle.manifest) == []
    few = TargetImages(n=40, adapted=40, labeled=0, images_sha256="0" * 64)
    manifest = adapted_bundle.manifest.model_copy(update={"reference": None, "target": few})
    assert "40 target images, fewer than 50" in reference_lines(manifest)[0]
