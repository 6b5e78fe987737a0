"""Command line of edgetl. A command builds a configuration, calls one library function, and prints the result."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from types import FrameType
from typing import Annotated

import typer
from rich.markup import escape

from edgetl.cli.commands import bench, bundle, demo, export, fit, models, runs, serve, train
from edgetl.cli.commands.data import check, diagnosis, pack, unlabeled
from edgetl.cli.commands.device import gallery, keys, run, store, tune
from edgetl.cli.commands.evaluation import evaluate
from edgetl.cli.commands.scoring import merge, plan, predict
from edgetl.cli.commands.transfer import adapt, update
from edgetl.cli.examples import epilog
from edgetl.cli.help import HelpCommand, HelpGroup
from edgetl.cli.session import Interrupted, err, escape_unencodable, print_error
from edgetl.core.system.memory import is_out_of_memory, out_of_memory
from edgetl.errors import EdgetlError
from edgetl.runtime.engine import disable_telemetry

app = typer.Typer(
    name="edgetl",
    cls=HelpGroup,
    help="Fine-tune an image backbone on a folder of images, export it with an accuracy check, and run it on an edge device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Panels of `edgetl --help`.
COMMANDS = {
    "Data": (
        check.check_command,
        diagnosis.diagnose_command,
        diagnosis.distance_command,
        diagnosis.curve_command,
        unlabeled.label_command,
        unlabeled.cluster_command,
    ),
    "Train": (
        train.train_command,
        train.plan_command,
        adapt.adapt_command,
        update.update_command,
        models.rank_command,
        models.models_command,
        models.distill_command,
        models.pretrain_command,
        runs.calibrate_command,
        runs.prune_command,
    ),
    "Export": (export.export_command, fit.fit_command, runs.share_command),
    "Run": (
        predict.predict_command,
        plan.plan_predict_command,
        merge.merge_command,
        evaluate.evaluate_command,
        bundle.verify_command,
        bundle.inspect_command,
        bench.bench_command,
        runs.report_command,
        serve.serve_command,
    ),
    "Device": (
        keys.keygen_command,
        keys.sign_command,
        pack.pack_command,
        store.install_command,
        store.status_command,
        store.confirm_command,
        store.rollback_command,
        store.gc_command,
        tune.tune_command,
        gallery.gallery_command,
        run.run_command,
    ),
    "Other": (demo.demo_command,),
}


def command_name(function: Callable[..., None]) -> str:
    """Return the name of a command, such as ``plan predict`` of ``plan_predict_command``."""
    return function.__name__.removesuffix("_command").replace("_", " ")


for panel, commands in COMMANDS.items():
    for command in commands:
        name = command_name(command)
        # Shells complete single words.
        app.command(name, cls=HelpCommand, rich_help_panel=panel, epilog=epilog(name), hidden=" " in name)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgetl {version('edgetl')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")] = False,
) -> None:
    """Handle the options before the command."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 for success, 1 for a bug (traceback), 2 for a usage error, otherwise the code of the error class."""
    given = sys.argv[1:] if arguments is None else arguments
    disable_telemetry()
    escape_unencodable()
    # Child interpreters (multiprocessing loaders, the torch compiler) must not import modules from the current folder either.
    os.environ["PYTHONSAFEPATH"] = "1"
    for number in (signal.SIGINT, signal.SIGTERM):
        # The server has its own handler of SIGTERM, which finishes the open requests.
        if signal.getsignal(number) is not signal.SIG_IGN and not (number == signal.SIGTERM and given[:1] == ["serve"]):
            signal.signal(number, _interrupt)
    try:
        app(given, prog_name="edgetl")
    except EdgetlError as error:
        print_error(error, json_output="--json" in given)
        sys.exit(error.exit_code)
    except (MemoryError, ImportError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        shortage = out_of_memory(f"edgetl {given[0] if given else ''}".strip())
        print_error(shortage, json_output="--json" in given)
        sys.exit(shortage.exit_code)
    except Interrupted as stopped:
        err.print(f"interrupted{f'. {escape(stopped.saved)}' if stopped.saved else '; no incomplete output was kept.'}", soft_wrap=True)
        sys.exit(128 + stopped.number)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
    raise Interrupted(number)


if __name__ == "__main__":
    main()
