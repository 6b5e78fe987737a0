"""``edgetl``: the command line. A command builds a config, calls one library function, and shows the result."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import click
import typer

from edgetl.cli import bench, demo, device, export, train
from edgetl.cli.session import err, print_error
from edgetl.errors import EdgetlError

INTERRUPTED = 130

app = typer.Typer(
    name="edgetl",
    help="From a folder of labelled images and a pretrained backbone to a small, checked bundle for a CPU or an edge device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    demo.demo_command,
    train.train_command,
    train.evaluate_command,
    export.export_command,
    device.verify_command,
    device.inspect_command,
    device.predict_command,
    bench.bench_command,
):
    app.command(command.__name__.removesuffix("_command"))(command)


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed_version

        typer.echo(f"edgetl {installed_version('edgetl')}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a bug (traceback), 2 usage, or the code of the error's class."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code: Any = app(given, standalone_mode=False)
    except EdgetlError as error:
        print_error(error, json_output="--json" in given)
        code = error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        err.print("interrupted; nothing half-written was kept.")
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output went away, for instance `| head`.
        sys.stderr.close()
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
