from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench.zoo.check import MIN_VARIATION, UselessError, check_logits
from bench.zoo.nets import Architecture, describe, random_images, randomize, smallest_of_each_kind
from bench.zoo.pool import Bounds, sweep
from bench.zoo.sweep import Choice, run
from bench.zoo.table import Row, libraries, read_rows, write_table
from edgetl.errors import ConfigError
from edgetl.train.networks.backbone import rebuild

TINY = ("test_efficientnet", "test_convnext")
FAMILIES = (
    "test_byobnet",
    "test_maxvit",
    "test_nfnet",
    "test_vit",
    "mobilenetv3_small_050",
    "starnet_s050",
    "regnetx_002",
    "edgenext_xx_small",
    "xcit_nano_12_p16_224",
    "repvit_m1",
)


def _described(*names: str) -> list[Architecture]:
    found = [describe(name) for name in names]
    return [item for item in found if item is not None]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Row]]]:
    """Folder and rows of a sweep over two tiny architectures."""
    out = tmp_path_factory.mktemp("sweep")
    yield out, run(_described(*TINY), Choice(), out, workers=1, bounds=Bounds())


def test_tiny_architectures_export_and_agree_in_both_engines(swept: tuple[Path, list[Row]]) -> None:
    _, rows = swept
    assert [row.architecture for row in rows] == sorted(TINY)
    for row in rows:
        assert row.passed and row.cause == "" and row.linear_head and row.side == 128
        assert row.onnx_difference is not None and 0 < row.onnx_difference < 1e-5
        assert row.variation is not None and row.variation > 0.1


def test_the_table_is_complete_and_can_be_read_back(swept: tuple[Path, list[Row]]) -> None:
    out, rows = swept
    assert sorted(path.name for path in out.iterdir()) == ["export-sweep.csv", "export-sweep.md"]
    assert [row.passed for row in read_rows(out / "export-sweep.csv").values()] == [True, True]
    text = (out / "export-sweep.md").read_text("utf-8")
    assert "2 architectures of timm" in text and "**2 (100.0 %)" in text and f"Versions: {libraries()}." in text
    assert all(f"| {row.architecture} |" in text for row in rows)


def test_a_continued_sweep_does_not_repeat_rows(swept: tuple[Path, list[Row]]) -> None:
    out, _ = swept
    before = (out / "export-sweep.csv").stat().st_mtime_ns
    # This limit is too short for a measurement, so a passing row was not measured again.
    again = run(_described(*TINY), Choice(), out, workers=1, bounds=Bounds(wall_seconds=0.01))
    assert [row.passed for row in again] == [True, True]
    assert (out / "export-sweep.csv").stat().st_mtime_ns == before


def test_rows_are_repeated_by_name_failure_and_library_versions() -> None:
    items = _described(*TINY, "test_resnet")
    good = Row(architecture=TINY[0], family="efficientnet", parameters=1, onnx="agrees", openvino="agrees", made_with=libraries())
    known = {TINY[0]: good, TINY[1]: good.model_copy(update={"architecture": TINY[1], "openvino": "differs"})}

    def names(choice: Choice, rows: dict[str, Row] = known) -> set[str]:
        return {item.name for item in choice.todo(items, rows)}

    assert names(Choice()) == {"test_resnet"}
    assert names(Choice(failed=True)) == {"test_resnet", TINY[1]}
    assert names(Choice(again=(TINY[0],), only="test_e*")) == {TINY[0]}
    assert names(Choice(limit=1), {}) < {item.name for item in items}
    assert names(Choice(), {TINY[0]: good.model_copy(update={"made_with": "torch 1.0"})}) == {item.name for item in items}


@pytest.mark.parametrize(
    ("bounds", "cause"),
    [(Bounds(cpu_seconds=0.1), "more than 0.1 s of CPU time"), (Bounds(wall_seconds=0.05), "not finished after 0.05 s")],
)
def test_an_architecture_that_exceeds_a_time_limit_is_recorded_with_the_limit(bounds: Bounds, cause: str) -> None:
    (row,) = sweep(_described("test_resnet"), workers=1, bounds=bounds)
    assert not row.passed and cause in row.cause
    assert not _children()


def test_a_child_without_memory_is_recorded_as_a_failure() -> None:
    (row,) = sweep(_described("test_resnet"), workers=1, bounds=Bounds(memory_gb=0.05))
    assert not row.passed and "the child did not start: the process" in row.cause
    assert not _children()


def _children() -> list[str]:
    """Return the commands of the worker processes of this process."""
    found = []
    for name in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        command = Path(f"/proc/{name}/cmdline").read_bytes().decode()
        found += [command] if "zoo_worker" in command else []
    return found


def test_every_parameter_of_a_randomized_network_varies() -> None:
    model = rebuild("test_resnet", {}, 5).eval()
    randomize(model, 64, seed=0)
    for name, parameter in model.named_parameters():
        assert float(parameter.detach().std()) > 0, name
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.training and module.momentum == 0.1
            assert module.running_mean is not None and float(module.running_mean.std()) > 0


def test_strong_weights_make_the_logits_of_a_transformer_depend_on_the_image() -> None:
    model, images = rebuild("test_vit3", {}, 5).eval(), random_images(4, 160, seed=0)
    randomize(model, 160, seed=0, strong=True)
    with torch.no_grad():
        logits = model(images)
    assert float((logits - logits.mean(dim=0)).abs().max()) > 0.3 * float(logits.abs().max())


def test_logits_that_do_not_depend_on_the_image_are_an_error() -> None:
    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(images), 20) + 1e-4 * images.mean(dim=(1, 2, 3))[:, None]

    images = random_images(5, 32, seed=0)
    logits = Constant()(images).numpy()
    with pytest.raises(UselessError, match="hardly vary"):
        check_logits(Constant(), images, logits)
    assert np.ptp(logits, axis=0).max() < MIN_VARIATION


def test_only_the_smallest_size_of_an_architecture_is_measured() -> None:
    found = _described(
        "mobilenetv2_100", "mobilenetv2_050", "starnet_s1", "starnet_s050", "mobilenetv4_conv_medium", "mobilenetv4_conv_small"
    )
    names = [item.name for item in smallest_of_each_kind(found)]
    assert names == ["mobilenetv2_050", "mobilenetv4_conv_medium", "mobilenetv4_conv_small", "starnet_s050"]


def test_a_large_architecture_is_skipped_without_building_it() -> None:
    assert describe("vit_large_patch16_224") is None


def test_a_file_that_is_not_a_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "export-sweep.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"export-sweep\.csv is not a table .* Move the file away"):
        read_rows(tmp_path / "export-sweep.csv")


def test_exceptions_are_listed_before_the_table_with_their_cause(tmp_path: Path) -> None:
    row = Row(architecture="odd", family="odd", parameters=1, onnx="failed", cause="ExportError: no such operator")
    write_table(tmp_path, [row], limit=1e-4, batches=(1, 2, 5))
    text = (tmp_path / "export-sweep.md").read_text("utf-8")
    assert "**0 (0.0 %)" in text and "- `odd` (odd): ExportError: no such operator" in text.split("## All architectures")[0]


def test_the_table_of_an_interrupted_sweep_has_the_number_of_missing_architectures(tmp_path: Path) -> None:
    row = Row(architecture="some", family="some", parameters=1, onnx="agrees", openvino="agrees")
    write_table(tmp_path, [row], limit=1e-4, batches=(1, 2, 5), left=7)
    assert "**7 architectures are not measured yet.**" in (tmp_path / "export-sweep.md").read_text("utf-8")


@pytest.mark.slow
def test_ten_families_export_and_agree(tmp_path: Path) -> None:
    rows = run(_described(*FAMILIES), Choice(), tmp_path, workers=1, bounds=Bounds())
    assert {row.architecture: row.cause for row in rows if not row.passed} == {}
