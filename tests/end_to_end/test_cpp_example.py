"""C++ example: compile `examples/cpp` and compare its pixels and predictions with the Python package."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import openvino.utils
import pytest
from PIL import Image

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import PreprocessSpec, to_pixels
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.run import Run
from tests.command import edgetl

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[2] / "examples/cpp"
HEADERS = ("jpeglib.h", "stb/stb_image.h", "nlohmann/json.hpp")
ORIENTATION_TAG = 0x0112
VARIANTS = ("onnx-fp32", "openvino-fp32", "openvino-int8")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build folder with the compiled programs."""
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("the C++ example needs cmake and a C++ compiler")
    include = "".join(f"#include <{header}>\n" for header in ("cstdio", *HEADERS))
    probe = subprocess.run(
        ["c++", "-std=c++17", "-fsyntax-only", "-x", "c++", "-"], input=include, capture_output=True, text=True, check=False
    )
    if probe.returncode:
        pytest.skip("the C++ example needs Debian's libjpeg-dev, libstb-dev and nlohmann-json3-dev")
    build = tmp_path_factory.mktemp("cpp")
    configure = ["cmake", "-S", str(SOURCE), "-B", str(build), f"-DOpenVINO_DIR={openvino.utils.get_cmake_path()}"]
    for command in (configure, ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stderr
    return build


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Generated JPEG and PNG files: gray, color, transparent, wide, tall, small, and all EXIF orientations."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)

    def noise(height: int, width: int, channels: int) -> Image.Image:
        pixels = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
        return Image.fromarray(pixels.squeeze(axis=2) if channels == 1 else pixels)

    for (height, width), channels in itertools.product([(300, 420), (420, 300), (900, 200), (200, 900), (12, 9)], (1, 3, 4)):
        noise(height, width, channels).save(root / f"{height}x{width}x{channels}.png")
    noise(100, 140, 3).quantize(16).save(root / "palette.png")
    noise(300, 420, 1).save(root / "gray.jpg")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        noise(240, 330, 3).save(root / f"orientation{orientation}.jpg", exif=exif)
    noise(240, 330, 3).save(root / "progressive.jpg", progressive=True, quality=80)
    return sorted(root.iterdir())


def _write_manifest(folder: Path, spec: PreprocessSpec) -> Path:
    manifest = {"schema_version": 1, "task": "classification", "labels": ["a", "b"], "preprocess": spec.model_dump(mode="json")}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


def _cpp_pixels(programs: Path, bundle: Path, image: Path, out: Path) -> np.ndarray:
    done = subprocess.run([programs / "write_pixels", bundle, image, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(out) as pixels:
        return np.asarray(pixels).astype(int)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_cpp_pixels_equal_python_pixels_within_one_level(
    programs: Path, files: list[Path], tmp_path: Path, crop_mode: str, interpolation: str
) -> None:
    for size, resize in itertools.product([(64, 64), (224, 224), (96, 128)], ["fused", "two-step"]):
        settings = {"input_size": size, "crop_mode": crop_mode, "crop_pct": 0.875, "interpolation": interpolation, "resize": resize}
        spec = PreprocessSpec.model_validate(settings)
        bundle = _write_manifest(tmp_path, spec)
        for path in files:
            expected = np.asarray(to_pixels(load_image(path), spec)).astype(int)
            assert np.abs(_cpp_pixels(programs, bundle, path, tmp_path / "out.ppm") - expected).max() <= 1, (path.name, settings)


def _write_refused(root: Path) -> dict[str, tuple[Path, str]]:
    gray = Image.fromarray(np.full((40, 40), 90, np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    gray.convert("CMYK").save(root / "cmyk.jpg")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(root / "deep.png")
    gray.save(root / "turned.png", exif=exif)
    gray.save(root / "page.bmp")
    gray.resize((400, 400)).save(root / "whole.jpg")
    (root / "cut.jpg").write_bytes((root / "whole.jpg").read_bytes()[:900])
    return {
        "cmyk.jpg": (root / "cmyk.jpg", "CMYK is not supported"),
        "deep.png": (root / "deep.png", "16 bits per channel are not supported"),
        "turned.png": (root / "turned.png", "EXIF and XMP metadata in PNG files are not supported"),
        "page.bmp": (root / "page.bmp", "not a JPEG or PNG file"),
        "cut.jpg": (root / "cut.jpg", "cannot be decoded"),
        "absent.jpg": (root / "absent.jpg", "the file cannot be read"),
    }


def test_cpp_program_refuses_images_that_it_cannot_decode_exactly(programs: Path, tmp_path: Path) -> None:
    bundle = _write_manifest(tmp_path, PreprocessSpec(input_size=(64, 64)))
    for name, (path, message) in _write_refused(tmp_path).items():
        done = subprocess.run([programs / "write_pixels", bundle, path, tmp_path / "o.ppm"], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and message in done.stderr, (name, done.stderr)


@pytest.fixture(scope="module")
def pixel_bundle(photo_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Bundle of the photograph classifier with uint8 input."""
    out = tmp_path_factory.mktemp("photos") / "pixels"
    arguments = ("--out", out, "--input", "uint8", "--format", "onnx,openvino", "--precision", "fp32,int8")
    done = edgetl("export", photo_run.path, *arguments)
    assert done.returncode == 0, done.stderr
    return open_bundle(out)


@pytest.mark.shared
def test_cpp_predictions_equal_edgetl_predict_on_photographs(programs: Path, pixel_bundle: Bundle, shared: Path, tmp_path: Path) -> None:
    photos = sorted((shared / "data/trashnet").glob("*/*.jpg"))[::120][:20] + sorted((shared / "data/exif-orientation").glob("*.jpg"))
    assert len(photos) == 29
    spec = pixel_bundle.manifest.preprocess
    for path in photos:
        expected = np.asarray(to_pixels(load_image(path), spec)).astype(int)
        assert np.abs(_cpp_pixels(programs, pixel_bundle.path, path, tmp_path / "out.ppm") - expected).max() <= 1
    for variant in VARIANTS:
        python = json.loads(edgetl("predict", pixel_bundle.path, *photos, "--variant", variant, "--json").stdout)["predictions"]
        done = subprocess.run([programs / "classify", pixel_bundle.path, variant, *photos], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines = [line.split("\t") for line in done.stdout.splitlines()]
        assert [(path, label) for path, label, _ in lines] == [(str(path), row["label"]) for path, row in zip(photos, python, strict=True)]
        np.testing.assert_allclose([float(score) for _, _, score in lines], [row["score"] for row in python], atol=2e-3)


def test_cpp_program_applies_the_temperature_and_the_threshold_of_unknown_images(programs: Path, run: Run, tmp_path: Path) -> None:
    config = ExportConfig(input="uint8", formats=("openvino",), precisions=("fp32",))
    folder = export_bundle(run.path, config, tmp_path / "bundle").path
    manifest = json.loads((folder / "manifest.json").read_text())
    images = [sample.path for sample in run.samples("test")[:40]]
    manifest["decision_rule"]["temperature"] = 3.0
    (folder / "manifest.json").write_text(json.dumps(manifest) + "\n")
    low, high = sorted(item.score for item in load(folder).predict(images))[19:21]
    manifest["decision_rule"]["reject_below"] = (low + high) / 2
    (folder / "manifest.json").write_text(json.dumps(manifest) + "\n")
    expected = load(folder).predict(images)
    done = subprocess.run([programs / "classify", folder, "openvino-fp32", *images], capture_output=True, text=True, check=False)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [label for _, label, _ in lines] == [item.label or "unknown" for item in expected]
    assert {item.label is None for item in expected} == {True, False}
    np.testing.assert_allclose([float(score) for _, _, score in lines], [item.score for item in expected], atol=2e-3)


def test_cpp_program_refuses_a_bundle_with_float_input(programs: Path, bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(photo)
    arguments = [str(programs / "classify"), str(bundle.path), "openvino-fp32", str(tmp_path / "image.png")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Export the bundle with `--input uint8`" in done.stderr
