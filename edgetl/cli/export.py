"""``edgetl export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from edgetl.cli.session import JsonOption, OverwriteOption, SeedOption, VerboseOption, choices, out, print_json, working
from edgetl.cli.tables import certainty_lines, ladder_lines, variants_table
from edgetl.cli.train import explain, need_extra
from edgetl.core.bundle import Bundle
from edgetl.errors import ConfigError
from edgetl.export.formats import check_formats


def export_command(
    run: Annotated[Path, typer.Argument(help="The folder that `edgetl train` wrote.")],
    out_: Annotated[Path, typer.Option("--out", "-o", help="The bundle folder to write.")],
    format_: Annotated[str, typer.Option("--format", help="onnx, openvino, or both.")] = "onnx,openvino",
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 (weights and activations), or several.")] = "fp32,int8",
    data: Annotated[Path | None, typer.Option(help="Where the run's images are now (default: where they were).")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name (default: the run's).")] = None,
    max_drop: Annotated[float, typer.Option(help="Largest loss of validation accuracy of a quantized variant, 0..1.")] = 0.01,
    strict: Annotated[bool, typer.Option("--strict", help="Ask --max-drop of the loss's one-sided 95 % bound.")] = False,
    num_samples: Annotated[int, typer.Option(help="Training images to calibrate int8 on.")] = 300,
    cpu: Annotated[str, typer.Option(help="here: quantize for this CPU. any: 7-bit weights, safe on x86 without VNNI.")] = "here",
    release: Annotated[int, typer.Option(help="The bundle's release counter; raise it with every shipment.")] = 1,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Keep the variants that passed when another failed.")] = False,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Export a run: every variant is checked against the trained model, in the engine that the device uses, or left out."""
    formats = check_formats(tuple(dict.fromkeys(part.strip() for part in format_.split(",") if part.strip())))
    precisions = choices(precision, ("fp32", "fp16", "int8"), "--precision")
    need_extra("export")
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.export.config import ExportConfig
        from edgetl.export.package import export_bundle

        try:
            config = ExportConfig.model_validate(
                {
                    "formats": formats, "precisions": precisions, "name": name, "max_drop": max_drop, "strict": strict,
                    "calibration_images": num_samples,
                    "cpu": cpu, "release": release, "allow_missing": allow_missing, "seed": seed,
                }
            )  # fmt: skip
        except ValidationError as error:
            raise ConfigError(explain(error)) from error
        bundle = export_bundle(run, config, out_, data=data, overwrite=overwrite, progress=progress)
    if json_output:
        print_json(bundle.manifest)
    else:
        show_bundle(bundle)


def show_bundle(bundle: Bundle) -> None:
    """The variants, what was left out, and what to do next."""
    out.print(variants_table(bundle.manifest))
    for line in (*ladder_lines(bundle.manifest), *certainty_lines(bundle.manifest)):
        out.print(escape(line), soft_wrap=True)
    for item in bundle.manifest.rejected:
        out.print(f"[yellow]left out[/] {item.name}: {escape(item.reason)}")
    out.print("ms: one image, one thread, this machine; `edgetl predict` loads the first.", soft_wrap=True)
    out.print(f"written to {escape(str(bundle.path))}; next: edgetl verify {escape(str(bundle.path))}", soft_wrap=True)
