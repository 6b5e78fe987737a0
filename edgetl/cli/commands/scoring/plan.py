"""Command ``edgetl plan predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from edgetl.cli.session import JsonOption, out, print_json
from edgetl.cli.tables import facts_grid
from edgetl.errors import ConfigError
from edgetl.scoring.cost import ScoringPlan, plan_scoring

# With fewer images, the start of the process and the first reads change the rate.
_ENOUGH = 1000


def plan_predict_command(
    images: Annotated[float, typer.Option(metavar="N", min=1, max=1e15, help="Number of images to predict, such as 1e9.")],
    cores: Annotated[int, typer.Option(metavar="N", min=1, help="Number of cores of all hosts.")],
    measured: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Output folder of `edgetl predict --out` on one of these hosts. Required.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Estimate time, shards and storage of batch scoring.

    The rate, the size of an image and the size of a row are measured: by a small job on one of the hosts.
    """
    if measured is None:
        raise ConfigError(
            f"--measured is missing: the rate of your hosts and the size of your images are not known. Measure some thousand images on one "
            f"of the hosts, then plan: edgetl predict BUNDLE IMAGES --out DIR; edgetl plan predict --images {images:g} --cores {cores} "
            f"--measured DIR."
        )
    plan = plan_scoring(measured, images=round(images), cores=cores)
    print_json(plan) if json_output else _show(plan)


def _show(plan: ScoringPlan) -> None:
    facts = facts_grid()
    for title, value in (
        ("measured", f"{plan.images_per_s_per_core:,.0f} images/s per core, on {plan.measured_images:,} images"),
        ("image, row", f"{plan.image_bytes / 1000:,.1f} kB, {plan.row_bytes:,.0f} bytes"),
        ("time", f"{plan.hours:,.1f} hours for {plan.images:,} images on {plan.cores:,} cores"),
        ("input", f"{plan.input_gb:,.0f} GB, {plan.input_mb_per_s:,.0f} MB/s from the storage"),
        ("shards", f"--shard I/{plan.cores}, at least {plan.files:,} .tar files of up to {plan.images_per_file:,} images"),
        ("output", f"{plan.output_gb:,.1f} GB"),
    ):
        facts.add_row(title, escape(value))
    out.print(facts)
    out.print("The time holds if the cores are equal to the measured one, and the storage delivers the input at this rate.", soft_wrap=True)
    if plan.measured_images < _ENOUGH:
        out.print(f"The measurement is short, so the rate is uncertain. Measure at least {_ENOUGH:,} images.", soft_wrap=True)
