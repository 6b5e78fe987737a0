"""Command ``edgetl tune``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.options import build, given, options_of
from edgetl.cli.session import JsonOption, VerboseOption, out, print_json, working
from edgetl.cli.tables import tuning_table
from edgetl.core.bundle import open_bundle
from edgetl.core.config import read_json
from edgetl.core.files.atomic import write_text
from edgetl.core.store import active_release, is_store
from edgetl.core.system.execution import Tuning
from edgetl.data.listing import find_images
from edgetl.device.store.tuning_process import tune_release
from edgetl.device.tuning import TuneConfig, tune
from edgetl.errors import ConfigError, ImageError


@options_of(TuneConfig)
def tune_command(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE|STORE", help="Bundle folder, or a store. A store keeps the result.")],
    out_: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="PATH", help="File to write, for `edgetl predict --tuning`. Replaces an earlier one."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Image or folder of images of this device. Default: the golden images of the bundle."),
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Choose the fastest variant, thread count and execution setting on this host.

    Only settings that the accuracy gate kept at export are timed, and only if the golden scores on this host match the manifest. A store is
    tuned again only if its tuning is outdated: after a change of the release, the CPU, the available cores, or a library.
    """
    config = build(TuneConfig, **given(TuneConfig, context, options))
    if out_ is not None:
        _check_out(out_, bundle)
    with working(json_output=json_output, verbose=verbose) as progress:
        files = [] if images is None else find_images(images) if images.is_dir() else [images]
        if images is not None and not files:
            raise ImageError(f"--images {images} contains no JPEG, PNG, WebP, BMP or TIFF file.")
        if is_store(bundle):
            tuning = tune_release(active_release(bundle), config, images=files, progress=progress)
        else:
            tuning = tune(open_bundle(bundle), config, images=files, progress=progress)
        if out_ is not None:
            write_text(out_, tuning.model_dump_json(indent=1) + "\n")
    print_json(tuning) if json_output else show_tuning(tuning)
    if out_ is not None and not json_output:
        out.print(f"written to {escape(str(out_))}", soft_wrap=True)
        out.print(f"next: edgetl predict {escape(str(bundle))} IMAGE --tuning {escape(str(out_))}", soft_wrap=True)


def _check_out(path: Path, bundle: Path) -> None:
    """Check the output file before the choices are timed.

    Raises:
        ConfigError: it is inside the bundle or belongs to a store, or it exists and is not the result of a tuning.
    """
    if is_store(bundle):
        raise ConfigError(f"{bundle} is a store, which keeps the result itself. Omit --out.")
    if path.resolve().is_relative_to(bundle.resolve()):
        raise ConfigError(f"--out {path} is inside the bundle, which contains only the files of its manifest. Choose a path outside.")
    if os.path.lexists(path):
        try:
            read_json(path, Tuning, ConfigError)
        except ConfigError as error:
            raise ConfigError(f"--out {path} exists already, and `edgetl tune` did not write it. Choose another name.") from error


def show_tuning(tuning: Tuning) -> None:
    """Print the timed choices, the chosen one and the skipped ones."""
    out.print(tuning_table(tuning))
    out.print(
        f"[green]chosen[/] {tuning.chosen.describe()}. {tuning.images} different images ({tuning.image_source}), {tuning.seconds:.0f} s.",
        soft_wrap=True,
    )
    reasons: dict[str, dict[str, None]] = {}
    for item in tuning.skipped:
        name = f"{item.variant} ({item.setting.describe()})" if item.setting else item.variant
        reasons.setdefault(item.reason.rstrip("."), {})[name] = None
    for reason, names in reasons.items():
        out.print(f"[yellow]not timed[/] {', '.join(names)}: {escape(reason)}.", soft_wrap=True)
    if tuning.busy:
        out.print(f"[yellow]The host was busy ({tuning.busy}), so times marked * are too high. Repeat on an idle host.[/]", soft_wrap=True)
