"""Command ``edgetl export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.charts import draw_sensitivities, need_matplotlib
from edgetl.cli.commands.device.keys import optional_key
from edgetl.cli.options import build, need_extra, options_of, part
from edgetl.cli.session import JsonOption, OverwriteOption, VerboseOption, out, print_json, working
from edgetl.cli.tables import (
    agreement_lines,
    attempt_lines,
    busy_lines,
    certainty_lines,
    input_size_lines,
    order_line,
    outcomes_table,
    reference_lines,
    sensitive_lines,
    setting_lines,
    slower_lines,
    target_lines,
    variants_table,
)
from edgetl.core.bundle import Bundle, check_run_folder
from edgetl.core.contract import Contract, ContractRecord
from edgetl.core.output.folders import check_chart, check_output
from edgetl.data.folder import check_folder
from edgetl.device.config import SigningConfig
from edgetl.errors import ConfigError
from edgetl.export.config import ExportConfig
from edgetl.train.config.paths import check_file

ExplainOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        rich_help_panel="Quantization",
        help="Chart to write (PNG): sensitivity of each operation to quantization. Takes minutes.",
    ),
]


@options_of(ExportConfig, without=("explain", "min_agreement", "gate_images", "signed_by"))
@options_of(SigningConfig)
@options_of(Contract)
def export_command(
    run: Annotated[Path, typer.Argument(help="Run: the folder that `edgetl train` wrote.")],
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Bundle folder to write.")],
    explain: ExplainOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **values: Any,
) -> None:
    """Export a run to a bundle of verified ONNX and OpenVINO files.

    Each variant (format and precision) runs in its inference engine on this host and is compared with the trained model. A variant that
    differs too much is left out. With --max-latency-ms, --max-size-mb or --memory-mb, the bundle contains only variants that keep these
    limits, the most accurate first.
    """
    need_extra("export")
    contract = build(Contract, **part(Contract, values))
    key = optional_key(build(SigningConfig, **part(SigningConfig, values)))
    config = build(ExportConfig, explain=explain is not None, signed_by=key and key.public.fingerprint, **part(ExportConfig, values))
    if not contract.limited and (config.profile or contract.threads or contract.latency_of != "whole"):
        raise ConfigError("--profile, --threads and --latency-of belong to a limit. Add --max-latency-ms, --max-size-mb or --memory-mb.")
    _check_paths(run, config, out_, explain, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.device.signature import sign_bundle
        from edgetl.export.contract_search import export_under_contract
        from edgetl.export.package import export_bundle

        if contract.limited:
            bundle = export_under_contract(run, config, contract, out_, overwrite=overwrite, progress=progress)
        else:
            bundle = export_bundle(run, config, out_, overwrite=overwrite, progress=progress)
        bundle = sign_bundle(out_, key) if key else bundle
    drawn = explain is not None and draw_sensitivities(bundle.manifest, explain)
    if json_output:
        print_json(bundle.manifest)
        return
    show_bundle(bundle, verbose=verbose)
    if explain is not None:
        written = f"chart written to {escape(str(explain))}" if drawn else "no chart, because no operation of an int8 variant was measured"
        out.print(written, soft_wrap=True)


def _check_paths(run: Path, config: ExportConfig, out_: Path, explain: Path | None, *, overwrite: bool) -> None:
    """Check all paths before anything is loaded.

    Raises:
        EdgetlError: a path is missing or of the wrong kind.
    """
    inputs = {"the run": check_run_folder(run), **({"--data": check_folder(config.data, option="--data")} if config.data else {})}
    if config.unlabeled is not None:
        inputs["--unlabeled"] = check_folder(config.unlabeled, option="--unlabeled", holds="images, in any arrangement")
    check_file(config.profile, "--profile", ConfigError, "Give the output of `edgetl bench --json`.")
    check_output(out_, inputs=inputs, overwrite=overwrite)
    if explain is not None:
        need_matplotlib()
        if "int8" not in config.precisions:
            raise ConfigError("--explain measures int8 variants. Add int8 to --precision.")
        check_chart(explain, "--explain", inputs={**inputs, "--out": out_})


def show_contract(record: ContractRecord) -> None:
    """Print the limits of a contract and the measurements of the chosen variant."""
    chosen = record.chosen
    where = f"estimated for {record.host} with its profile" if record.source == "profile" else f"measured on {record.host}"
    clauses = ", ".join(clause.describe() for clause in chosen.clauses)
    out.print(
        f"[green]contract kept[/] by {chosen.variant} at {chosen.side} px on {chosen.threads} thread(s), {escape(where)}: {clauses}",
        soft_wrap=True,
    )


def show_bundle(bundle: Bundle, *, verbose: bool = False) -> None:
    """Print the variants, the reasons for rejected ones, and the next command."""
    manifest = bundle.manifest
    out.print(variants_table(manifest))
    for lines in (
        *(target_lines, attempt_lines, setting_lines, sensitive_lines),
        *(slower_lines, agreement_lines, certainty_lines, reference_lines),
    ):
        for line in lines(manifest):
            out.print(escape(line), soft_wrap=True)
    for item in manifest.rejected:
        out.print(f"[yellow]left out[/] {item.name}: {escape(item.reason)}", soft_wrap=True)
    if manifest.contract is not None:
        out.print(outcomes_table(manifest.outcomes, manifest.contract.contract))
        show_contract(manifest.contract)
    for line in input_size_lines(manifest):
        out.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
    for line in busy_lines(manifest, verbose=verbose):
        out.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
    out.print(
        "agreement: ratio of predictions equal to those of the trained model; confident: only where that model is confident.",
        soft_wrap=True,
    )
    out.print(
        "network ms: median latency of the network for one image on one thread of this host, without decoding and resizing.",
        soft_wrap=True,
    )
    out.print(order_line(manifest), soft_wrap=True)
    out.print(f"written to {escape(str(bundle.path))}", soft_wrap=True)
    out.print(f"next: edgetl verify {escape(str(bundle.path))}", soft_wrap=True)
