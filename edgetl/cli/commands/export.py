"""``edgetl export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from edgetl.cli.charts import draw_sensitivities, need_matplotlib
from edgetl.cli.options import build, need_extra
from edgetl.cli.session import (
    ContractThreadsOption,
    JsonOption,
    LatencyOfOption,
    LatencyOption,
    MemoryOption,
    OverwriteOption,
    SeedOption,
    SizeOption,
    VerboseOption,
    choices,
    out,
    print_json,
    working,
)
from edgetl.cli.tables import (
    agreement_lines,
    busy_lines,
    certainty_lines,
    ladder_lines,
    outcomes_table,
    sensitive_lines,
    slower_lines,
    variants_table,
)
from edgetl.core.bundle import Bundle, check_run_folder
from edgetl.core.contract import ContractRecord
from edgetl.core.output.folders import check_output, check_picture
from edgetl.data.folder import check_folder
from edgetl.errors import ConfigError
from edgetl.export.convert.formats import check_formats
from edgetl.train.config.paths import check_file


def export_command(
    run: Annotated[Path, typer.Argument(help="The folder that `edgetl train` wrote.")],
    out_: Annotated[Path, typer.Option("--out", "-o", help="The bundle folder to write.")],
    format_: Annotated[str, typer.Option("--format", help="onnx, openvino, or both.")] = "onnx,openvino",
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 (weights and activations), int8-weights, or several.")] = "fp32,int8",
    data: Annotated[Path | None, typer.Option(help="Where the run's images are now (default: where they were).")] = None,
    unlabeled: Annotated[
        Path | None,
        typer.Option(help="Folder of unlabeled images. The accuracy gate also measures agreement with the trained model on them."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name (default: the run's).")] = None,
    max_drop: Annotated[float, typer.Option(help="Largest loss of validation accuracy of a quantized variant, 0..1.")] = 0.01,
    strict: Annotated[bool, typer.Option("--strict", help="Compare --max-drop with the one-sided 95 % bound of the loss.")] = False,
    num_samples: Annotated[int, typer.Option(help="Training images to calibrate int8 on.")] = 300,
    cpu: Annotated[str, typer.Option(help="here: quantize for this CPU. any: 7-bit weights, safe on x86 without VNNI.")] = "here",
    release: Annotated[int, typer.Option(help="The bundle's release counter; raise it with every shipment.")] = 1,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Keep the variants that passed when another failed.")] = False,
    input_: Annotated[
        str, typer.Option("--input", help="float, or uint8: files take resized pixels [batch, H, W, 3] and normalise them.")
    ] = "float",
    input_size: Annotated[int | None, typer.Option(help="Height and width of the input, pixels (default: the run's).")] = None,
    explain_: Annotated[
        Path | None, typer.Option("--explain", help="Measure what quantizing each operation costs, and draw it as PNG.")
    ] = None,
    max_latency_ms: LatencyOption = None,
    latency_of: LatencyOfOption = "whole",
    max_size_mb: SizeOption = None,
    memory_mb: MemoryOption = None,
    threads: ContractThreadsOption = None,
    profile: Annotated[
        Path | None, typer.Option(help="`edgetl bench --json` taken on the device; --max-latency-ms then holds there.")
    ] = None,
    qat: Annotated[int, typer.Option(help="Where no int8 passes, so many steps of quantization-aware training (about 200).")] = 0,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Export a run: every variant is checked against the trained model, in the engine that the device uses, or left out.

    With --max-latency-ms, --max-size-mb or --memory-mb only what keeps them is in the bundle, the most accurate first.
    """
    formats = check_formats(format_)
    precisions = choices(precision, ("fp32", "fp16", "int8", "int8-weights"), "--precision")
    need_extra("export")
    if explain_ is not None:
        need_matplotlib()
        if "int8" not in precisions:
            raise ConfigError("--explain measures int8 variants; ask for one with --precision int8.")
    if (max_latency_ms, max_size_mb, memory_mb) == (None, None, None) and (profile or threads or latency_of != "whole"):
        raise ConfigError("--profile, --threads and --latency-of belong to a limit: --max-latency-ms, --max-size-mb or --memory-mb.")
    inputs = {"the run": check_run_folder(run), **({"--data": check_folder(data, option="--data")} if data else {})}
    if unlabeled is not None:
        inputs["--unlabeled"] = check_folder(unlabeled, option="--unlabeled", holds="images, in any arrangement")
    check_file(profile, "--profile", ConfigError, "Give the output of `edgetl bench --json`.")
    check_output(out_, inputs=inputs, overwrite=overwrite)
    if explain_ is not None:
        check_picture(explain_, "--explain", inputs={**inputs, "--out": out_})
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.core.contract import Contract
        from edgetl.export.config import ExportConfig
        from edgetl.export.package import export_bundle
        from edgetl.export.under_contract import export_under_contract

        config = build(
            ExportConfig, formats=formats, precisions=precisions, name=name, max_drop=max_drop, strict=strict,
            calibration_images=num_samples, cpu=cpu, release=release, allow_missing=allow_missing, input=input_, input_size=input_size,
            explain=explain_ is not None, qat_steps=qat, seed=seed, unlabeled=unlabeled,
        )  # fmt: skip
        contract = build(
            Contract, max_latency_ms=max_latency_ms, latency_of=latency_of, max_size_mb=max_size_mb, memory_mb=memory_mb, threads=threads
        )
        if contract.limited:
            bundle = export_under_contract(run, config, contract, out_, data=data, profile=profile, overwrite=overwrite, progress=progress)
        else:
            bundle = export_bundle(run, config, out_, data=data, overwrite=overwrite, progress=progress)
    drawn = explain_ is not None and draw_sensitivities(bundle.manifest, explain_)
    if json_output:
        print_json(bundle.manifest)
        return
    show_bundle(bundle)
    if explain_ is not None:
        out.print(f"picture written to {escape(str(explain_))}" if drawn else "no picture: no operation of an int8 variant was measured")


def show_contract(record: ContractRecord) -> None:
    """What was promised, and what was found."""
    chosen = record.chosen
    where = f"estimated for {record.host} from its profile" if record.source == "profile" else f"measured on {record.host}"
    clauses = ", ".join(clause.describe() for clause in chosen.clauses)
    out.print(
        f"[green]contract kept[/] by {chosen.variant} at {chosen.side} px on {chosen.threads} thread(s), {escape(where)}: {clauses}",
        soft_wrap=True,
    )


def show_bundle(bundle: Bundle) -> None:
    """The variants, what was left out, and what to do next."""
    out.print(variants_table(bundle.manifest))
    manifest = bundle.manifest
    for line in (
        *ladder_lines(manifest),
        *sensitive_lines(manifest),
        *slower_lines(manifest),
        *agreement_lines(manifest),
        *certainty_lines(manifest),
    ):
        out.print(escape(line), soft_wrap=True)
    for item in bundle.manifest.rejected:
        out.print(f"[yellow]left out[/] {item.name}: {escape(item.reason)}")
    if manifest.contract is not None:
        out.print(outcomes_table(manifest.outcomes))
        show_contract(manifest.contract)
    for line in busy_lines(manifest):
        out.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
    out.print("ms: one image, one thread, this machine; `edgetl predict` loads the first.", soft_wrap=True)
    out.print(f"written to {escape(str(bundle.path))}; next: edgetl verify {escape(str(bundle.path))}", soft_wrap=True)
