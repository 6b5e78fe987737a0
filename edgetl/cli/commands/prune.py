"""``edgetl prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from edgetl.cli.options import need_extra
from edgetl.cli.session import JsonOption, OverwriteOption, VerboseOption, out, print_json, working
from edgetl.cli.tables import share as shown
from edgetl.core.bundle import check_run_folder
from edgetl.core.output.folders import check_output
from edgetl.data.folder import check_folder


def prune_command(
    run: Annotated[Path, typer.Argument(help="The folder that `edgetl train` wrote.")],
    out_: Annotated[Path, typer.Option("--out", "-o", help="The run folder to write.")],
    ratio: Annotated[float, typer.Option(help="Pruning ratio: share of the channels to remove.")] = 0.3,
    data: Annotated[Path | None, typer.Option(help="Where the run's images are now (default: where they were).")] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Take whole channels out of a run's network: smaller and faster in every engine. It must be tuned afterwards."""
    need_extra("train")
    inputs = {"the run": check_run_folder(run), **({"--data": check_folder(data, option="--data")} if data else {})}
    check_output(out_, inputs=inputs, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.prune import prune_run

        pruned = prune_run(run, out_, ratio=ratio, data=data, overwrite=overwrite, progress=progress)
    record = pruned.run.record
    if json_output:
        print_json({"before": pruned.before.model_dump(), "after": pruned.after.model_dump(), "run": record.model_dump(mode="json")})
        return
    before, after = pruned.before, pruned.after
    out.print(
        f"{before.params_m:g} million parameters to {after.params_m:g}, {before.mmacs:g} million multiply-accumulates to {after.mmacs:g}; "
        f"validation, not tuned yet: {shown(record.validation.score)}",
        soft_wrap=True,
    )
    out.print(f"written to {escape(str(out_))}; next, tune it with the unpruned run as its teacher:")
    out.print(
        f"edgetl train {escape(str(data or pruned.run.splits().root))} --out TUNED --backbone {escape(str(out_))} --strategy full "
        f"--teacher {escape(str(run))}{'' if record.task == 'classification' else ' --labels … --task …, as that run was trained'}",
        soft_wrap=True,
    )
