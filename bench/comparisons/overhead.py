"""Overhead of ``Predictor`` over the raw call of the engine on a ready tensor, each in its best setting.

``python -m bench.comparisons.overhead BUNDLE [--variant NAME] [--threads N]``. The raw calls use every setting that is known to help:
static batch, bfloat16, and the hints of ``benchmark_app``; for ONNX Runtime, I/O binding and both execution modes. All are timed in turn,
the fastest raw call and the fastest setting of the predictor are kept, and both are compared in rounds with a 99 % interval and an A/A
control.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import openvino as ov

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.manifest import Variant
from edgetl.core.preprocess import Batch
from edgetl.core.system.host import describe_host, versions
from edgetl.core.system.host_state import read_host, record_between
from edgetl.measure.comparison import paired_ratio, time_in_turn
from edgetl.runtime.engine import read_variant, supported_settings
from edgetl.runtime.predictor import load_variant

Call = Callable[[int], object]
CHOOSING_S, MEASURING_S = 10.0, 20.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.comparisons.overhead", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", action="append", help="[default: all]")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print(f"{given.threads} thread(s), one image")
    print("| variant | raw call, best setting | ms | Predictor, best setting | ms | ratio | 99 % | valid |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in bundle.manifest.variants:
        if not given.variant or variant.name in given.variant:
            print(_row(bundle, variant, given.threads), flush=True)


def _row(bundle: Bundle, variant: Variant, threads: int) -> str:
    predictor = load_variant(bundle, variant, threads=threads)
    tensor = predictor.prepare(predictor.read(bundle.read(bundle.manifest.golden[0].image)))
    raw = _raw_ort(bundle, variant, threads, tensor) if variant.format == "onnx" else _raw_ov(bundle, variant, threads, tensor)
    own = _own(bundle, variant, threads, tensor)
    raw_name, raw_call = _fastest(raw)
    own_name, own_call = _fastest(own)
    control = raw[raw_name]()
    before = read_host()
    times = time_in_turn([own_call, raw_call, control], runs=5000, max_seconds=MEASURING_S)
    problems = list(record_between(before, read_host()).problems())
    found, same = paired_ratio("predictor", times[:, 0], times[:, 1]), paired_ratio("control", times[:, 2], times[:, 1])
    if same.result != "same":
        problems.append(f"A/A control {same.low:.3f} to {same.high:.3f}")
    return (
        f"| {variant.name} | {raw_name} | {found.reference_ms:.3f} | {own_name} | {found.ms:.3f} | {found.ratio:.3f} | "
        f"{found.low:.3f} to {found.high:.3f} | {'; '.join(problems) or 'yes'} |"
    )


def _fastest(makers: Mapping[str, Callable[[], Call]]) -> tuple[str, Call]:
    """Return the fastest of several calls, timed in turn."""
    calls = {name: make() for name, make in makers.items()}
    times = time_in_turn(list(calls.values()), runs=200, max_seconds=CHOOSING_S)
    medians = np.median(times, axis=(0, 2))
    name = list(calls)[int(medians.argmin())]
    return name, calls[name]


def _own(bundle: Bundle, variant: Variant, threads: int, tensor: Batch) -> dict[str, Callable[[], Call]]:
    """Return the predictor in each setting that the accuracy gate kept and this host supports."""

    def make(setting_index: int) -> Call:
        predictor = load_variant(bundle, variant, threads=threads, setting=settings[setting_index])
        return lambda _: predictor.logits(tensor)

    supported = supported_settings(variant.format)
    kept = [setting for setting in variant.kept_settings() if setting in supported]
    static = [item.model_copy(update={"static_batch": True}) for item in kept] if variant.format == "openvino" else []
    settings = [*kept, *static]
    return {setting.describe(): lambda index=index: make(index) for index, setting in enumerate(settings)}  # type: ignore[misc]


def _raw_ov(bundle: Bundle, variant: Variant, threads: int, tensor: Batch) -> dict[str, Callable[[], Call]]:
    core, files = ov.Core(), read_variant(bundle, variant)
    capable = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def make(precision: str, static: bool, hint: str) -> Call:
        model = core.read_model(files[0], files[1])
        if static:
            shape = model.inputs[0].get_partial_shape()
            shape[0] = 1
            model.reshape(shape)
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
        hints |= {"NUM_STREAMS": 1} if hint == "1 stream" else {"PERFORMANCE_HINT": hint}
        request = core.compile_model(model, "CPU", hints).create_infer_request()

        def call(_: int) -> object:
            request.infer([tensor], share_inputs=True)
            return request.get_output_tensor().data

        return call

    options = product(("f32", "bf16") if capable else ("f32",), (False, True), ("LATENCY", "THROUGHPUT", "1 stream"))
    return {
        f"{precision}, {'batch 1' if static else 'dynamic'}, {hint}": lambda values=(precision, static, hint): make(*values)  # type: ignore[misc]
        for precision, static, hint in options
    }


def _raw_ort(bundle: Bundle, variant: Variant, threads: int, tensor: Batch) -> dict[str, Callable[[], Call]]:
    (data,) = read_variant(bundle, variant)

    def make(mode: str, bound: bool) -> Call:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.execution_mode = getattr(onnxruntime.ExecutionMode, mode)
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        if not bound:
            return lambda _: session.run([variant.output], {variant.input: tensor})[0]
        binding = session.io_binding()

        def call(_: int) -> object:
            binding.bind_cpu_input(variant.input, tensor)
            binding.bind_output(variant.output)
            session.run_with_iobinding(binding)
            return binding.copy_outputs_to_cpu()[0]

        return call

    return {
        f"{mode.removeprefix('ORT_').lower()}{', binding' if bound else ''}": lambda values=(mode, bound): make(*values)  # type: ignore[misc]
        for mode, bound in product(("ORT_SEQUENTIAL", "ORT_PARALLEL"), (False, True))
    }


if __name__ == "__main__":
    main()
