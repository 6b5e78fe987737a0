"""Tables at 80 columns: long paths, class names and reasons are folded, not truncated."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.markup import escape

from edgetl.cli.commands.bench import cold_table, latency_table
from edgetl.cli.tables import (
    attempt_lines,
    bench_lines,
    busy_lines,
    certainty_lines,
    classes_table,
    facts_grid,
    failed_attempt_lines,
    input_size_lines,
    order_line,
    outcomes_table,
    plain_table,
    reference_lines,
    variants_table,
    with_interval,
)
from edgetl.core.bundle import Bundle
from edgetl.core.contract import Clause, Contract, ContractRecord, Offer, Outcome
from edgetl.core.results import AccuracyDrop, Attempt, ClassScore, Evaluation, Proportion, wilson
from edgetl.core.system.host_load import HostLoad
from edgetl.measure.latency import Percentiles
from edgetl.measure.report import ColdStart, LatencyReport, VariantReport
from tests.core.bundles import write_files

LONG_NAME = "scratch deeper than one tenth of a millimeter across_the_weld_seam_of_the_left_door_of_the_car"
LONG_PATH = "/data/production_line_in_hall_number_seven/photographs_of_components/first_quarter/run_with_all_images"


def _printed(table: RenderableType) -> str:
    """Return the lines of a table on a terminal of 80 columns; none is longer or truncated."""
    stream = io.StringIO()
    Console(file=stream, width=80, highlight=False).print(table)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in stream.getvalue()
    return "\n".join(lines)


def _first_column(printed: str) -> str:
    """Return the text of the first column, without line breaks and spaces."""
    return "".join(line.strip().split("  ")[0] for line in printed.splitlines()).replace(" ", "")


def _evaluation() -> Evaluation:
    classes = (
        ClassScore(label=LONG_NAME, n=1200, precision=0.912, recall=0.834, f1=0.871),
        ClassScore(label="ok", n=7, precision=1.0, recall=1.0, f1=1.0),
    )
    accuracy = Proportion(value=0.9, n=1207, low=0.88, high=0.92)
    return Evaluation(accuracy=accuracy, macro_f1=0.9, classes=classes, confusion=((1000, 200), (0, 7)))


def test_a_long_class_name_is_folded_beside_its_numbers() -> None:
    printed = _printed(classes_table(_evaluation(), "test images"))
    assert LONG_NAME.replace(" ", "") in _first_column(printed)
    assert all(number in printed for number in ("1200", "0.912", "0.834", "0.871"))


def test_a_long_path_in_a_title_or_a_grid_is_folded() -> None:
    table = plain_table(escape(f"{LONG_PATH}: latency of one image"), "variant", "decode", "infer")
    table.add_row("onnx-fp32", "1.00", "2.00")
    assert LONG_PATH in _first_column(_printed(table))
    grid = facts_grid()
    grid.add_row("path", LONG_PATH)
    assert LONG_PATH in _printed(grid).replace("\n", "").replace(" ", "")


BUSY = HostLoad(others=0.8, stolen=0.0, waiting=1.6)


def _offer() -> Offer:
    return Offer(
        variant="onnx-fp32",
        threads=1,
        side=128,
        latency_ms=9.0,
        stages_ms=(1.0, 1.0, 1.0),
        size_mb=1.0,
        memory_mb=200.0,
        accuracy=0.9,
        drop=0.0,
        clauses=(),
        load=BUSY,
    )


def test_a_variant_that_passed_without_a_bundle_is_not_kept() -> None:
    printed = _printed(outcomes_table([Outcome(variant="onnx-fp32", side=128, result="passed", reason="")]))
    assert "passed" in printed and "kept" not in printed


def test_attempts_of_a_failed_export_are_printed_with_their_input_size() -> None:
    attempts = (
        Attempt(method="8-bit weights", reason="no file"),
        Attempt(method="head re-fitted", accuracy=0.9, drop=0.02, confident_agreement=1.0, reason="accuracy drops by 0.02"),
    )
    row = Outcome(variant="onnx-int8", side=128, result="gate", reason="accuracy", attempts=attempts)
    assert failed_attempt_lines([row]) == [
        "onnx-int8: 8-bit weights: failed: no file",
        "onnx-int8: head re-fitted: score 0.9000 (drop +0.0200), confident agreement 1.000: rejected: accuracy drops by 0.02",
    ]
    other = row.model_copy(update={"side": 96, "attempts": attempts[:1]})
    assert failed_attempt_lines([row, other])[-1] == "onnx-int8 at 96 px: 8-bit weights: failed: no file"


def test_a_variant_without_a_search_has_a_line_with_its_figures(tmp_path: Path) -> None:
    manifest = write_files(tmp_path)
    assert attempt_lines(manifest) == []
    half = manifest.variants[0].model_copy(update={"precision": "fp16", "name": "onnx-fp16"})
    (line,) = attempt_lines(manifest.model_copy(update={"variants": (half,)}))
    assert line.startswith("onnx-fp16: half precision, no search: accuracy ") and line.endswith(": passed")


def test_the_order_of_the_variants_is_explained(tmp_path: Path) -> None:
    manifest = write_files(tmp_path)
    assert "order of the variants: network ms, the fastest first." in order_line(manifest)
    assert "validation accuracy, then file size" in order_line(manifest.model_copy(update={"sorted_by": "accuracy"}))
    record = ContractRecord(contract=Contract(max_latency_ms=9), chosen=_offer(), host="CPU", source="measured")
    assert "validation accuracy, then latency." in order_line(manifest.model_copy(update={"contract": record}))


def test_too_few_images_are_reported_with_the_number_that_is_needed(tmp_path: Path) -> None:
    manifest = write_files(tmp_path)
    drop = AccuracyDrop(value=0.0, low=-0.1, high=0.1, bound=0.0313, n=50)
    int8 = manifest.variants[0].model_copy(update={"precision": "int8", "accuracy_drop": drop})
    line = certainty_lines(manifest.model_copy(update={"variants": (int8,)}))[-1]
    assert "above 0.03 (fixed limit of this warning)" in line and "onnx-fp32 0.0313. At least 53 images" in line
    sure = int8.model_copy(update={"accuracy_drop": drop.model_copy(update={"bound": 0.03})})
    assert not any("too few" in line for line in certainty_lines(manifest.model_copy(update={"variants": (sure,)})))


@pytest.mark.parametrize(("part", "heading"), [("whole", "whole"), ("infer", "network")])
def test_the_latency_of_attempted_variants_is_of_the_limited_part(part: Any, heading: str) -> None:
    row = Outcome(variant="onnx-fp32", side=128, result="kept", reason="", offer=_offer())
    assert heading in _printed(outcomes_table([row], Contract(latency_of=part)))
    assert "of the whole prediction, or of the network" in " ".join(_printed(outcomes_table([row])).split())


@pytest.mark.parametrize(("source", "place"), [("measured", "Repeat on an idle host"), ("profile", "Profile of the device: Other")])
def test_a_busy_host_or_device_is_a_warning_with_details_on_request(tmp_path: Path, source: Any, place: str) -> None:
    record = ContractRecord(contract=Contract(max_latency_ms=9), chosen=_offer(), host="CPU", source=source)
    row = Outcome(variant="onnx-fp32", side=128, result="kept", reason="", offer=_offer())
    manifest = write_files(tmp_path).model_copy(update={"contract": record, "outcomes": (row,)})
    (line,) = busy_lines(manifest)
    assert "ther programs used 80 % of the CPU, so latencies marked * are too high. Repeat" in line and place in line
    assert "s per second" in busy_lines(manifest, verbose=True)[0] and "s per second" not in line


def test_a_smaller_input_size_is_reported_with_both_scores(tmp_path: Path) -> None:
    manifest = write_files(tmp_path)
    assert input_size_lines(manifest) == []
    spec = manifest.preprocess.model_copy(update={"input_size": (96, 96)})
    row = Outcome(variant="onnx-fp32", side=128, result="contract", reason="latency")
    before = Proportion(value=0.95, n=40, low=0.8, high=1.0)
    trained = manifest.trained.model_copy(update={"value": 0.9})
    changed = {"preprocess": spec, "trained": trained, "trained_at_run_size": before, "outcomes": (row,)}
    (line,) = input_size_lines(manifest.model_copy(update=changed))
    assert "reduced from 128 x 128 to 96 x 96" in line and "from 0.9500 to 0.9000" in line
    (line,) = input_size_lines(manifest.model_copy(update={**changed, "outcomes": ()}))
    assert "96 x 96 (--input-size)" in line


def test_a_long_reason_of_a_rejected_variant_is_folded() -> None:
    clause = Clause(name="latency", limit=8.0, found=9.1)
    offer = Offer(
        variant="openvino-int8",
        threads=16,
        side=224,
        latency_ms=1234.5,
        stages_ms=(1.0, 1.0, 1.0),
        size_mb=123.45,
        memory_mb=200.0,
        accuracy=0.9,
        drop=0.0,
        clauses=(clause,),
    )
    outcome = Outcome(
        variant="openvino-int8-weights",
        side=1024,
        result="contract",
        reason=clause.describe(),
        offer=offer,
        backbone="tf_efficientnetv2_b0.in1k_with_a_long_tag",
    )
    printed = _printed(outcomes_table([outcome]))
    assert all(value in printed for value in ("1024", "1234.50", "123.45"))
    assert "tf_efficientnetv2_b0.in1k_with_a_long_tag" in _first_column(printed)


def test_the_numbers_of_variants_and_latencies_stay_on_one_line(tmp_path: Path) -> None:
    manifest = write_files(tmp_path)
    printed = _printed(variants_table(manifest.model_copy(update={"name": LONG_NAME})))
    assert "onnx-fp32" in printed and "openvino-int8" in printed and "agreement" in printed
    times = Percentiles(n=700, mean_ms=1234.5, min_ms=1.0, p50_ms=1234.56, p90_ms=2345.67, p99_ms=3456.78)
    cold = ColdStart(load_ms=12345.0, first_prediction_ms=23456.0, peak_rss_mb=1234.0)
    row = VariantReport(
        variant="openvino-int8-weights", size_bytes=10**9, cold=cold, decode=times, preprocess=times, infer=times, whole=times
    )
    report = LatencyReport(
        bundle="bundle",
        created="",
        threads=16,
        images=1,
        image_source="",
        load_average=0.0,
        host={},
        versions={},
        variants=(row,),
        skipped=(),
    )
    busy = report.model_copy(update={"variants": (row.model_copy(update={"load": BUSY}),)})
    assert _printed(latency_table(busy)).count("1234.56*") == 4
    assert bench_lines(busy)[0].startswith("Other programs used 80 % of the CPU, so latencies marked * are too high.")
    assert "load average was 3.00" in bench_lines(report.model_copy(update={"load_average": 3.0, "host": {"cores": "2"}}))[0]
    assert bench_lines(report.model_copy(update={"host": {"cores": "2"}})) == []
    for table in (latency_table(report), cold_table(report)):
        assert "openvino-int8-weights" in _first_column(_printed(table))
    assert _printed(latency_table(report)).count("1234.56") == 4 and "3456.78" in _printed(latency_table(report))


@pytest.mark.parametrize("name", ["[bold]", "[/]", "a [red] b"])
def test_brackets_in_a_class_name_are_printed(name: str) -> None:
    evaluation = _evaluation()
    first = evaluation.classes[0].model_copy(update={"label": name})
    printed = _printed(classes_table(evaluation.model_copy(update={"classes": (first, evaluation.classes[1])}), "test images"))
    assert name in printed


def test_a_bundle_without_a_monitoring_reference_has_a_line_with_the_reason(bundle: Bundle) -> None:
    assert reference_lines(bundle.manifest) == []
    few = bundle.manifest.model_copy(update={"reference": None, "trained": bundle.manifest.trained.model_copy(update={"n": 8})})
    assert reference_lines(few) == ["no drift detection (--drift of serve and run): 8 validation images, fewer than 50."]


def test_a_ratio_of_no_images_is_not_a_number() -> None:
    assert with_interval(wilson(0, 0)) == "none (no images)"
    assert with_interval(wilson(1, 2)) == "0.5000 (0.095 to 0.905, n = 2)"
