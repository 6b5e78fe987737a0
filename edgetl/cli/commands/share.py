"""``edgetl share``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from edgetl.cli.options import need_extra
from edgetl.cli.session import JsonOption, OverwriteOption, VerboseOption, out, print_json, working
from edgetl.core.bundle import check_run_folder
from edgetl.core.output.folders import check_output


def share_command(
    run: Annotated[Path, typer.Argument(help="The folder that `edgetl train` wrote.")],
    out_: Annotated[Path, typer.Option("--out", "-o", help="The Hugging Face folder to write.")],
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a run as a folder that timm, transformers and the Hugging Face hub take. Nothing is uploaded."""
    need_extra("train")
    check_output(out_, inputs={"the run": check_run_folder(run)}, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose):
        from edgetl.export.to_hub import share_run

        files = share_run(run, out_, overwrite=overwrite)
    if json_output:
        print_json({"files": [str(path) for path in files]})
        return
    for path in files:
        out.print(f"{escape(str(path))}  {path.stat().st_size / 1e6:.2f} MB", soft_wrap=True)
    out.print(f"look at {escape(str(files[-1]))}; next: hf upload OWNER/NAME {escape(str(out_))}", soft_wrap=True)
