"""Plan of batch scoring: ``edgetl plan predict``."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from edgetl.cli.session import out, print_json
from edgetl.cli.tables import facts_grid
from edgetl.core.config import StrictModel
from edgetl.core.options import option_field
from edgetl.errors import ConfigError
from edgetl.scoring.cost import ScoringPlan, plan_scoring

# Panel of the options in ``edgetl plan --help``.
_PANEL = "Batch scoring (edgetl plan predict)"


class ScoringPlanConfig(StrictModel):
    """Options of ``edgetl plan predict``."""

    images: float | None = option_field(None, "Number of images to predict, such as 1e9.", panel=_PANEL, ge=1, le=1e15)
    cores: int | None = option_field(None, "Number of cores of all hosts.", panel=_PANEL, ge=1)
    measured: Path | None = option_field(
        None, "Output folder of `edgetl predict --out` on one of these hosts.", panel=_PANEL, metavar="DIR"
    )


def show_scoring_plan(data: Path, config: ScoringPlanConfig, *, json_output: bool) -> None:
    """Print the estimate of a job.

    Raises:
        ConfigError: an option is missing, or the first argument is not ``predict``.
    """
    images, cores, measured = config.images, config.cores, config.measured
    if str(data) != "predict" or images is None or cores is None or measured is None:
        raise ConfigError("--images, --cores and --measured belong together: edgetl plan predict --images 1e9 --cores 1000 --measured DIR.")
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
