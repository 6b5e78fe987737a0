from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgetl
from edgetl.core.bundle import Bundle
from edgetl.core.images.decode import ImageInput
from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import BundleError, ConfigError, EngineError, ImageError, IntegrityError
from edgetl.runtime.engine import load_engine
from edgetl.runtime.testing import FixedEngine
from tests.command import edgetl as command
from tests.device.bundles import network_without_kernel, write_bundle

VARIANTS = ["onnx-fp32", "openvino-fp32", "onnx-int8", "openvino-int8"]


@pytest.fixture
def image_path(digits: Path) -> Path:
    return sorted((digits / "3").iterdir())[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_paths_bytes_images_and_arrays_give_the_same_prediction(bundle: Bundle, image_path: Path, variant: str) -> None:
    predictor = edgetl.load(bundle.path, variant=variant)
    with Image.open(image_path) as image:
        inputs: list[ImageInput] = [image_path, str(image_path), image_path.read_bytes(), image.copy(), np.asarray(image)]
    first, *others = [predictor.predict(item) for item in inputs]
    assert all(prediction == first for prediction in others)
    assert first.label == "3" and first.score == max(first.scores)
    assert sum(first.scores) == pytest.approx(1.0, abs=1e-5) and len(first.scores) == 10


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_list_gives_the_predictions_of_single_calls(bundle: Bundle, digits: Path, variant: str) -> None:
    predictor = edgetl.load(bundle, variant=variant)
    paths = [next((digits / str(digit)).iterdir()) for digit in range(10)] * 2
    together = predictor.predict(paths)
    for path, prediction in zip(paths, together, strict=True):
        single = predictor.predict(path)
        assert single.label == prediction.label
        np.testing.assert_allclose(single.scores, prediction.scores, atol=1e-5)
    assert predictor.predict([]) == []


def test_several_threads_can_use_the_same_predictor(bundle: Bundle, digits: Path) -> None:
    paths = [path for digit in range(10) for path in sorted((digits / str(digit)).iterdir())[:5]]
    for variant in VARIANTS[:2]:
        predictor = edgetl.load(bundle, variant=variant, threads=1)
        expected = [predictor.predict(path) for path in paths]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(predictor.predict, paths)) == expected


def test_a_variant_that_cannot_be_loaded_is_replaced_by_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ONNX Runtime has no kernel for an operation of the first variant, as for some float16 variants on ARM."""
    mixed = write_bundle(tmp_path / "mixed", 1, precisions=("fp16", "fp32"), model=network_without_kernel())
    predictor = edgetl.load(mixed)
    assert predictor.variant is not None and predictor.variant.name == "onnx-fp32"
    assert "onnx-fp16 cannot be loaded on this host, so onnx-fp32 is loaded instead: " in caplog.text
    assert "Could not find an implementation for AveragePool" in caplog.text
    with pytest.raises(EngineError, match="AveragePool"):
        edgetl.load(mixed, variant="onnx-fp16")
    with pytest.raises(EngineError, match="AveragePool"):
        edgetl.load(write_bundle(tmp_path / "one", 1, model=network_without_kernel()))


def test_predict_states_the_variant_and_why_it_is_not_the_first(tmp_path: Path) -> None:
    mixed = write_bundle(tmp_path / "mixed", 1, precisions=("fp16", "fp32"), model=network_without_kernel())
    done = command("predict", mixed, mixed / "golden/0.png", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["variant"] == "onnx-fp32"
    assert "onnx-fp16 cannot be loaded on this host" in done.stderr


def test_the_default_is_the_first_variant(bundle: Bundle) -> None:
    predictor = edgetl.load(bundle)
    assert predictor.variant == bundle.manifest.variants[0]


def test_an_unknown_variant_is_an_error_that_lists_the_variants(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no variant 'onnx-int4'. Its variants: .*onnx-int8"):
        edgetl.load(bundle, variant="onnx-int4")


def test_a_changed_model_file_is_not_loaded(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    for file in ("onnx-fp32/1/model.onnx", "openvino-fp32/1/model.bin"):
        data = bytearray((copy / file).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / file).write_bytes(data)
        with pytest.raises(IntegrityError, match=r"differs from the manifest \(SHA-256\)"):
            edgetl.load(copy, variant=file.split("/")[0])


def test_loading_a_run_is_an_error_with_the_export_command(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BundleError, match=r"is a run, not a bundle\. Export it: edgetl export"):
        edgetl.load(tmp_path)


@pytest.mark.parametrize(
    ("format_", "files"),
    [("onnx", [b"not a model"]), ("onnx", [b""]), ("openvino", [b"<html></html>", b""]), ("openvino", [b"", b"x"])],
)
def test_an_invalid_file_is_an_error_of_one_line(format_: str, files: list[bytes]) -> None:
    with pytest.raises(EngineError, match="damaged or malicious") as caught:
        load_engine(format_, files, threads=1)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_a_batch_of_the_wrong_shape_is_an_error(bundle: Bundle, variant: str) -> None:
    predictor = edgetl.load(bundle, variant=variant)
    with pytest.raises(EngineError, match=r"batch of shape \[1, 4, 48, 48\]"):
        predictor.logits(np.zeros((1, 4, 48, 48), np.float32))


def test_a_model_with_another_number_of_classes_is_an_error() -> None:
    predictor = edgetl.Predictor(FixedEngine([1.0, 2.0]), ["a", "b", "c"], PreprocessSpec(input_size=(16, 16)))
    with pytest.raises(EngineError, match=r"shape \[1, 2\].*3 outputs"):
        predictor.predict(np.zeros((16, 16, 3), np.uint8))


def test_zero_threads_are_an_error(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="--threads 0"):
        edgetl.load(bundle, threads=0)


def test_the_fixed_engine_works_in_a_predictor() -> None:
    predictor = edgetl.Predictor(FixedEngine([0.0, 9.0]), ["cat", "dog"], PreprocessSpec(input_size=(16, 16)))
    assert predictor.predict(np.zeros((16, 16, 3), np.uint8)).label == "dog"


def test_an_invalid_image_of_a_list_is_named(bundle: Bundle, image_path: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("hello")
    with pytest.raises(ImageError, match=r"bad\.png"):
        edgetl.load(bundle).predict([image_path, bad])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prediction_imports_no_library_of_training_and_export(bundle: Bundle, image_path: Path, variant: str) -> None:
    code = f"""
import sys, edgetl
print(edgetl.load({str(bundle.path)!r}, variant={variant!r}).predict({str(image_path)!r}).label)
heavy = {{"torch", "torchvision", "timm", "lightning_fabric", "onnx", "nncf", "sklearn", "matplotlib", "pickletools", "typer", "rich"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr


@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_signals_are_handled_after_predictors_are_deleted(bundle: Bundle, image_path: Path, variant: str) -> None:
    code = f"""
import os, signal, edgetl
first, second = (edgetl.load({str(bundle.path)!r}, variant={variant!r}) for _ in range(2))
first.predict({str(image_path)!r}), second.predict({str(image_path)!r})
del first
third = edgetl.load({str(bundle.path)!r}, variant={variant!r})
del second, third
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
