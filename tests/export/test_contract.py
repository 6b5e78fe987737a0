from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.cli.tables import busy_lines
from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.contract import Clause, Contract, Offer, Outcome
from edgetl.core.manifest import Precision
from edgetl.core.progress import silent
from edgetl.core.system import host_state
from edgetl.core.system.host_load import HostLoad
from edgetl.data.folder import scan
from edgetl.errors import ConfigError, ContractError
from edgetl.export import contract_search, package
from edgetl.export.backbone_search import costs, fit
from edgetl.export.config import ExportConfig, FitConfig
from edgetl.export.contract_search import ContractSearch, explain, export_under_contract
from edgetl.measure.config import BenchConfig
from edgetl.measure.device_profile import on_device
from edgetl.measure.latency import percentiles
from edgetl.measure.report import LatencyReport
from edgetl.measure.stages import measure_bundle
from edgetl.runtime.engine import default_threads
from edgetl.runtime.predictor import load
from edgetl.runtime.verify import verify
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import Run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.ranking import RankConfig
from tests.command import edgetl

CONFIG = ExportConfig(max_drop=0.02, calibration_images=60, gate_images=200)


def test_a_bundle_contains_only_variants_that_meet_the_contract(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    sizes = {item.name: item.size_bytes / 1e6 for item in bundle.manifest.variants}
    limit = (sizes["openvino-int8"] + sizes["openvino-fp32"]) / 2
    exported = export_under_contract(run.path, CONFIG, Contract(max_size_mb=limit, max_latency_ms=1000, threads=1), tmp_path / "bundle")
    assert {item.name for item in exported.manifest.variants} <= {"onnx-int8", "openvino-int8"}
    record = exported.manifest.contract
    assert record is not None and record.source == "measured" and record.chosen.variant == exported.manifest.variants[0].name
    assert {clause.name for clause in record.chosen.clauses} == {"latency", "size", "drop"}
    assert record.chosen.threads == 1 and all(clause.kept for clause in record.chosen.clauses)
    assert {path.name for path in exported.path.iterdir() if path.is_dir()} == {item.name for item in exported.manifest.variants} | {
        "golden"
    }
    assert verify(exported.path).checked and load(exported.path).predict(run.samples("test")[0].path).label in exported.manifest.labels
    assert open_bundle(exported.path).manifest.contract == record


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (
            Contract(max_size_mb=0.01),
            r"size \d\.\d+ MB \(limit 0.01 MB, \d+ % over\).*Smaller inputs were not tried, because they hardly change the size.*"
            r"To accept this variant, set --max-size-mb",
        ),
        (Contract(memory_mb=5), r"memory \d+\.\d+ MB \(limit 5 MB.*To accept this variant, set --memory-mb"),
        (
            Contract(max_latency_ms=0.001),
            r"latency \d+\.\d+ ms \(limit 0.001 ms.*network \d.*resizing alone exceed.*The network alone also exceeds the limit.*"
            r"An input of 32 px was not tried, because its latency is estimated at \d",
        ),
    ],
)
def test_an_unmet_contract_is_an_error_that_names_the_limit(run: Run, tmp_path: Path, contract: Contract, message: str) -> None:
    config = CONFIG.model_copy(update={"formats": ("onnx",), "precisions": ("fp32",)})
    with pytest.raises(ContractError, match=message) as caught:
        export_under_contract(run.path, config, contract, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    rows = [Outcome.model_validate(row) for row in caught.value.rows]
    assert {row.variant for row in rows} == {"onnx-fp32"} and {row.result for row in rows} == {"contract"}
    assert all(row.offer is not None and "(limit" in row.reason for row in rows)


@pytest.mark.slow
def test_every_attempted_variant_has_a_row_and_rejected_ones_keep_their_record(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    sizes = {item.name: item.size_bytes / 1e6 for item in bundle.manifest.variants}
    config = CONFIG.model_copy(update={"formats": ("onnx",), "explain": True})
    limit = sizes["onnx-int8"] / 2 + sizes["onnx-fp32"] / 2
    manifest = export_under_contract(run.path, config, Contract(max_size_mb=limit, threads=1), tmp_path / "small").manifest
    assert {row.variant: row.result for row in manifest.outcomes} == {"onnx-int8": "kept", "onnx-fp32": "contract"}
    assert "fp32 | 48 px | 1 |" in (tmp_path / "small/card.md").read_text()

    # The int8 file passed the gate. This profile makes it exceed the latency limit.
    report = measure_bundle(
        bundle.path,
        BenchConfig(
            variants=(
                "onnx-fp32",
                "onnx-int8",
            ),
            runs=80,
            max_seconds=2.0,
            threads=1,
        ),
    )
    slow = [
        row.model_copy(update={"reference_ms": (row.reference_ms or 0) / (1e6 if row.variant == "onnx-int8" else 1)})
        for row in report.variants
    ]
    profile = tmp_path / "device.json"
    profile.write_text(report.model_copy(update={"variants": tuple(slow)}).model_dump_json())
    manifest = export_under_contract(
        run.path, config.model_copy(update={"profile": profile}), Contract(max_latency_ms=1000), tmp_path / "fast"
    ).manifest
    (rejected,) = manifest.rejected
    assert (rejected.name, rejected.by) == ("onnx-int8", "contract") and "latency" in rejected.reason and "limit 1000 ms" in rejected.reason
    assert rejected.attempts[-1].passed and rejected.sensitivities, "--explain records the sensitivities"
    assert {row.variant: row.result for row in manifest.outcomes} == {"onnx-fp32": "kept", "onnx-int8": "contract"}


def test_latencies_of_a_busy_host_are_marked_and_do_not_sort_variants(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter(HostLoad(others=0.5, stolen=0.0, waiting=amount / 10) for amount in range(9, 0, -1))
    monkeypatch.setattr(host_state, "load_between", lambda *_: next(loads))
    monkeypatch.setattr(package, "load_between", lambda *_: HostLoad(others=0.5, stolen=0.0, waiting=0.0))
    config = CONFIG.model_copy(update={"formats": ("onnx",), "precisions": ("fp16", "fp32")})
    manifest = export_under_contract(run.path, config, Contract(max_latency_ms=1000, threads=1), tmp_path / "bundle").manifest
    assert manifest.sorted_by == "accuracy" and [item.name for item in manifest.variants] == ["onnx-fp16", "onnx-fp32"], (
        "the smaller variant is first"
    )
    assert all(row.offer is not None and row.offer.busy for row in manifest.outcomes)
    assert [row.offer.load.waiting for row in manifest.outcomes if row.offer and row.offer.load] == [0.5, 0.4], (
        "the third of three measurements"
    )
    assert "sorted by accuracy, not by latency" in busy_lines(manifest)[0]
    assert load(tmp_path / "bundle").variant is not None and open_bundle(tmp_path / "bundle").manifest == manifest


@pytest.mark.slow
def test_a_smaller_input_that_costs_too_much_accuracy_is_rejected(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the smaller input meets the latency limit, and its accuracy drop exceeds the limit."""
    monkeypatch.setattr(contract_search, "measure_bundle", _measure_with_fixed_latency)
    config = CONFIG.model_copy(update={"formats": ("onnx",), "precisions": ("fp32",), "max_drop": 0.0})
    with pytest.raises(ContractError, match=r"At 32 px: the input size of 32 pixels lowers .*: accuracy drops by 0\.\d+"):
        export_under_contract(run.path, config, Contract(max_latency_ms=7, latency_of="infer", threads=1), tmp_path / "bundle")


def test_a_given_input_size_is_the_reason_that_smaller_ones_are_not_tried(run: Run, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"formats": ("onnx",), "precisions": ("fp32",), "input_size": 48})
    with pytest.raises(ContractError, match="Smaller inputs were not tried, because --input-size sets the size"):
        export_under_contract(run.path, config, Contract(max_size_mb=0.01, threads=1), tmp_path / "bundle")


def _measure_with_fixed_latency(path: Path, config: BenchConfig, **options: Any) -> LatencyReport:
    """Measure a bundle, and replace the latency of the network by 10 ms at 48 px, proportional to the number of pixels."""
    report = measure_bundle(path, config, **options)
    milliseconds = 10 * (open_bundle(path).manifest.preprocess.input_size[0] / 48) ** 2
    infer = percentiles(np.full(100, milliseconds))
    return report.model_copy(update={"variants": tuple(row.model_copy(update={"infer": infer}) for row in report.variants)})


def test_another_input_size_is_recorded_with_both_scores(run: Run, tmp_path: Path) -> None:
    config = ExportConfig(formats=("onnx",), precisions=("fp32",), input_size=32, max_drop=1.0)
    from edgetl.export.package import export_bundle

    manifest = export_bundle(run.path, config, tmp_path / "bundle").manifest
    assert manifest.preprocess.input_size == (32, 32) and manifest.trained_at_run_size is not None
    assert manifest.trained.value < manifest.trained_at_run_size.value
    assert "(trained at 48 x 48)" in (tmp_path / "bundle/card.md").read_text()


@pytest.mark.slow
def test_a_device_profile_scales_the_latencies(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    report = measure_bundle(bundle.path, BenchConfig(runs=40, max_seconds=3.0, threads=1))
    slow = report.model_copy(
        update={"variants": tuple(row.model_copy(update={"reference_ms": (row.reference_ms or 0) / 10}) for row in report.variants)}
    )
    row = report.variants[0]
    estimated = on_device(row, bundle.variant(row.variant), slow)
    assert estimated.infer.mean_ms == pytest.approx(10 * row.infer.mean_ms)
    assert estimated.decode == row.decode and estimated.whole.mean_ms > estimated.infer.mean_ms

    profile = tmp_path / "device.json"
    profile.write_text(report.model_dump_json())
    config = CONFIG.model_copy(update={"precisions": ("fp32",), "profile": profile})
    exported = export_under_contract(run.path, config, Contract(max_latency_ms=1000), tmp_path / "bundle")
    assert exported.manifest.contract is not None and exported.manifest.contract.source == "profile"
    changed = json.loads(profile.read_text()) | {"reference_cpu": "Another 4000"}
    profile.write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=r"compares the device with Another 4000, but this host is .*Export a bundle on this host"):
        export_under_contract(run.path, config, Contract(max_latency_ms=1000), tmp_path / "other")


def test_a_contract_without_a_limit_is_an_error(run: Run, colors: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the deployment contract has no limit"):
        export_under_contract(run.path, CONFIG, Contract(threads=1), tmp_path / "bundle")
    with pytest.raises(ConfigError, match="the deployment contract has no limit"):
        fit(colors, _fit_config(Contract(threads=1)), tmp_path / "fit")
    for option in (("--threads", "1"), ("--latency-of", "infer"), ("--profile", "device.json")):
        done = edgetl("export", run.path, "--out", tmp_path / "bundle", *option)
        assert done.returncode == 3 and "belong to a limit" in done.stderr


@pytest.mark.slow
def test_all_variants_meet_the_contract_with_the_same_thread_count(run: Run, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"precisions": ("fp32",)})
    exported = export_under_contract(run.path, config, Contract(max_latency_ms=1000), tmp_path / "bundle")
    record = exported.manifest.contract
    assert record is not None and default_threads(exported.manifest) == record.chosen.threads
    report = measure_bundle(exported.path, BenchConfig(runs=10, max_seconds=1.0))
    assert report.threads == record.chosen.threads, "bench uses the thread count of predict"


def test_a_profile_limits_the_thread_count_and_the_formats(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    report = measure_bundle(
        bundle.path,
        BenchConfig(
            variants=(
                "onnx-fp32",
                "onnx-int8",
            ),
            runs=80,
            max_seconds=2.0,
            threads=2,
        ),
    )
    profile = tmp_path / "device.json"
    profile.write_text(report.model_dump_json())
    config = CONFIG.model_copy(update={"precisions": ("fp32",)})
    exported = export_under_contract(
        run.path, config.model_copy(update={"profile": profile}), Contract(max_latency_ms=1000), tmp_path / "bundle"
    )
    assert exported.manifest.contract is not None and exported.manifest.contract.chosen.threads == 2
    assert [item.name for item in exported.manifest.variants] == ["onnx-fp32"], "the device has one engine"
    assert [(item.name, item.by) for item in exported.manifest.rejected] == [("openvino-fp32", "export")]
    assert any(row.variant == "openvino-fp32" and "--profile has no measurement" in row.reason for row in exported.manifest.outcomes)
    with pytest.raises(ConfigError, match=r"measured with 2 thread\(s\), but --threads is 1"):
        export_under_contract(
            run.path, config.model_copy(update={"profile": profile}), Contract(max_latency_ms=1000, threads=1), tmp_path / "other"
        )


@pytest.mark.slow
def test_the_size_of_a_backbone_is_measured_in_the_requested_precision(colors: Path) -> None:
    samples = list(scan(colors).samples[:4])
    backbone = load_backbone(TrainConfig.from_options(backbone="edgetl_small").backbone, 3)

    def size(requested: Precision) -> float:
        config = _fit_config(Contract(max_size_mb=1))
        export = config.export.model_copy(update={"formats": ("onnx",), "precisions": (requested,)})
        return costs(backbone, config.model_copy(update={"export": export}), samples)[0].found

    whole = size("fp32")
    assert size("fp16") < 0.6 * whole and size("int8") < 0.45 * whole


@pytest.mark.parametrize(
    ("stages", "present", "absent"),
    [
        ((2.0, 1.0, 1.5), "The network alone also exceeds the limit", "--latency-of infer"),
        ((2.0, 1.0, 0.5), "or limit only the network with --latency-of infer", "edgetl fit"),
        ((0.2, 0.1, 1.5), "run `edgetl fit DATA`", "smaller image files"),
    ],
    ids=["both-too-slow", "slow-images", "slow-network"],
)
def test_remedies_for_a_latency_limit_follow_from_the_measurement(stages: tuple[float, float, float], present: str, absent: str) -> None:
    clause = Clause(name="latency", limit=1.0, found=sum(stages))
    offer = Offer(
        variant="onnx-fp32",
        threads=1,
        side=128,
        latency_ms=clause.found,
        stages_ms=stages,
        size_mb=1.0,
        memory_mb=200.0,
        accuracy=0.9,
        drop=0.0,
        clauses=(clause,),
    )
    text = explain(ContractSearch(Contract(max_latency_ms=1.0), 0.01, [], None, silent, offers=[offer]))
    assert present in text and absent not in text and "set --max-latency-ms" in text


def test_a_clause_describes_how_much_it_exceeds_the_limit() -> None:
    clause = Clause(name="latency", limit=8, found=9.1)
    assert clause.describe() == "latency 9.10 ms (limit 8 ms, 14 % over)" and not clause.kept
    assert clause.remedy() == "--max-latency-ms 9.29"
    assert Clause(name="size", limit=4, found=4).kept


def _fit_config(contract: Contract) -> FitConfig:
    return FitConfig(
        rank=RankConfig(candidates=("edgetl_small", "random:edgetl_small"), images=60),
        train=TrainConfig.from_options(strategy="probe", augmented_views=1, input_size=(64, 64)),
        export=ExportConfig(formats=("onnx",), precisions=("fp32",), gate_images=60),
        contract=contract,
    )


@pytest.mark.slow
def test_fit_trains_and_exports_a_backbone_that_meets_the_contract(colors: Path, tmp_path: Path) -> None:
    fitted = fit(colors, _fit_config(Contract(max_size_mb=4, max_latency_ms=1000)), tmp_path / "fit")
    assert {path.name for path in (tmp_path / "fit").iterdir()} == {"run", "bundle", "fit.json"}
    assert [item.outcome for item in fitted.record.tried] == ["chosen"]
    assert fitted.bundle.manifest.contract is not None and load(fitted.bundle).predict(next(colors.rglob("*.png"))).score > 0.3


def test_fit_fails_before_training_if_no_backbone_can_meet_the_contract(colors: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ContractError, match=r"edgetl_small: before training: size 2\.\d+ MB \(limit 0.1 MB, \d+ % over\).*Smallest values found"
    ):
        fit(colors, _fit_config(Contract(max_size_mb=0.1)), tmp_path / "fit")
    assert not (tmp_path / "fit").exists()


@pytest.mark.slow
def test_fit_uses_the_options_of_the_command_line(colors: Path, tmp_path: Path) -> None:
    options = ["--candidates", "edgetl_small,random:edgetl_small", "--max-size-mb", "0.1", "--format", "onnx", "--precision", "fp32"]
    done = edgetl("fit", colors, "--out", tmp_path / "fit", *options, "--exclude", "*_mask.png", "--strategy", "probe", "--tries", "1")
    assert done.returncode == 17 and "edgetl_small: before training: size" in done.stderr, done.stderr


def test_an_invalid_option_of_fit_is_named(colors: Path, tmp_path: Path) -> None:
    done = edgetl("fit", colors, "--out", tmp_path / "fit", "--max-size-mb", "1", "--strategy", "magic")
    assert done.returncode == 2 and "'--strategy'" in done.stderr and "is not one of: auto, probe" in done.stderr, done.stderr


@pytest.mark.slow
def test_export_reports_the_contract_on_the_command_line(run: Run, tmp_path: Path) -> None:
    options = ["--format", "onnx", "--precision", "fp32", "--max-latency-ms", "1000"]
    done = edgetl("export", run.path, "--out", tmp_path / "bundle", *options)
    assert done.returncode == 0 and "contract kept by onnx-fp32 at 48 px" in done.stdout, done.stderr
    done = edgetl("export", run.path, "--out", tmp_path / "other", *options, "--max-size-mb", "0.001")
    assert done.returncode == 17 and "error: no variant meets the deployment contract" in done.stderr and "Traceback" not in done.stderr
    assert "attempted variants" in done.stderr and "rejected by the contract" in done.stderr
    done = edgetl("export", run.path, "--out", tmp_path / "other", *options, "--max-size-mb", "0.001", "--json")
    assert {row["result"] for row in json.loads(done.stdout)["error"]["variants"]} == {"contract"}
