from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.tasks import DecisionRule
from edgetl.errors import AccuracyGateError, DataError, IntegrityError
from edgetl.runtime.evaluation import EvaluationConfig, evaluate_bundle
from edgetl.runtime.predictor import load
from edgetl.runtime.verify import verify
from edgetl.train.artifacts.run import Run
from tests.command import edgetl
from tests.device.bundles import image, write_bundle, write_manifest


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(bundle.path, tmp_path / "copy")
    return tmp_path / "copy"


def test_an_unchanged_bundle_reproduces_its_golden_scores(bundle: Bundle) -> None:
    report = verify(bundle.path)
    assert report.files == len(bundle.manifest.all_files()) and not report.skipped
    assert {check.variant for check in report.checked} == {variant.name for variant in bundle.manifest.variants}
    assert all(check.largest_difference <= check.tolerance / 10 for check in report.checked)


def test_a_flipped_bit_in_any_file_is_an_error_that_names_it(bundle: Bundle, copy: Path) -> None:
    for file in bundle.manifest.all_files():
        whole = (copy / file.path).read_bytes()
        (copy / file.path).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(IntegrityError, match=file.path.rsplit("/", 1)[-1]):
            verify(copy)
        (copy / file.path).write_bytes(whole)
    assert verify(copy).files


def test_a_wrong_golden_score_is_an_error_with_image_and_variant(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    scores = manifest["golden"][2]["scores"]["onnx-fp32"]
    scores.reverse()
    (copy / "manifest.json").write_text(json.dumps(manifest) + "\n")
    with pytest.raises(AccuracyGateError, match=r"scores of onnx-fp32 for golden/02\.png differ"):
        verify(copy)


def test_evaluating_the_training_folder_uses_unseen_images_only(bundle: Bundle, run: Run, digits: Path) -> None:
    report = evaluate_bundle(bundle.path, digits, EvaluationConfig(variant="onnx-fp32"))
    assert run.record.test is not None
    # The scores of torch and ONNX Runtime differ by rounding.
    assert report.result.model_copy(update={"reliability": None}) == run.record.test.model_copy(update={"reliability": None})
    assert report.result.reliability is not None and run.record.test.reliability is not None
    assert report.result.reliability.nll == pytest.approx(run.record.test.reliability.nll, rel=1e-3)
    assert report.left_out == run.record.images["train"] + run.record.images["val"]
    everything = evaluate_bundle(bundle.path, digits, EvaluationConfig(variant="onnx-fp32", every_image=True))
    assert everything.left_out == 0 and everything.result.accuracy.n == sum(run.record.images.values())
    assert (report.seen, everything.seen) == (0, report.left_out)


def test_a_folder_with_seen_images_only_is_an_error(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    for sample in run.samples("train")[:40]:
        target = tmp_path / "seen" / run.record.labels[sample.label] / sample.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample.path, target)
    with pytest.raises(DataError, match=r"all 40 images.*--all"):
        evaluate_bundle(bundle.path, tmp_path / "seen")


def test_unknown_classes_are_named(bundle: Bundle, colors: Path) -> None:
    with pytest.raises(DataError, match="blue, green, red"):
        evaluate_bundle(bundle.path, colors)


def test_the_command_line_names_the_golden_image_that_differs(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in manifest["golden"][1]["scores"]:
        manifest["golden"][1]["scores"][name].reverse()
    (copy / "manifest.json").write_text(json.dumps(manifest) + "\n")
    done = edgetl("verify", copy)
    assert (done.returncode, done.stdout) == (AccuracyGateError.exit_code, "")
    assert done.stderr.count("error:") == 1 and "for golden/01.png differ" in done.stderr and "Traceback" not in done.stderr


def test_golden_scores_do_not_depend_on_the_calibration(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", 1)
    manifest = open_bundle(folder).manifest
    write_manifest(folder, manifest.model_copy(update={"decision_rule": DecisionRule(temperature=3.0, reject_below=0.9)}))
    bundle = open_bundle(folder)
    (check,) = verify(bundle).checked
    assert check.largest_difference < 1e-6
    found, plain = load(bundle).predict(image()), manifest.golden[0].scores["onnx-fp32"]
    assert found.label is None and found.score < max(plain)


def test_a_bundle_without_a_temperature_and_a_threshold_is_not_calibrated(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("temperature", "reject_below"):
        del manifest["decision_rule"][key]
    (folder / "manifest.json").write_text(json.dumps(manifest) + "\n")
    found = load(folder)
    assert (found.decoding.decision_rule.temperature, found.predict(image()).label) == (1.0, "red")
