"""Commands for unlabeled images: ``edgetl label`` and ``edgetl cluster``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.options import build, given, need_extra, options_of, part
from edgetl.cli.session import JsonOption, VerboseOption, out, print_json, working
from edgetl.cli.tables import plain_table
from edgetl.core.files.names import printable
from edgetl.core.output.folders import check_output_file, write_file
from edgetl.data.folder import check_folder
from edgetl.data.table.to_fill import table_of_names, table_to_fill
from edgetl.errors import DataError
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import check_file
from edgetl.train.config.unlabeled.clustering import ClusteringConfig, ClusteringReport
from edgetl.train.config.unlabeled.labeling import LabelingConfig, LabelingReport

BACKBONE = ("backbone", "weights", "weights_dir", "device", "seed")
ImagesArgument = Annotated[Path, typer.Argument(help="Folder of images. Folders in it have no meaning.")]
_SHOWN, _EXAMPLES = 10, 3


@options_of(TrainConfig, only=BACKBONE)
@options_of(LabelingConfig)
def label_command(
    context: typer.Context,
    data: ImagesArgument,
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="Table to write (CSV), with empty labels to fill in.")],
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Choose the images whose labels help most (active learning).

    The first images are those that represent the folder best. With --labels, they are those whose prediction is uncertain.
    """
    need_extra("train")
    own = build(LabelingConfig, **given(LabelingConfig, context, part(LabelingConfig, options)))
    config = build(TrainConfig, **given(TrainConfig, context, part(TrainConfig, options)))
    check_folder(data, holds="images")
    check_file(own.labels, "--labels", DataError, "Give a table of labels.")
    inputs = {} if own.labels is None else {"--labels": Path(own.labels)}
    check_output_file(out_file, "--out", is_own=_is_own, inputs=inputs)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.unlabeled.labeling import choose_images_to_label

        report = choose_images_to_label(data, config, own, progress=progress)
        files = [item.file for item in report.chosen]
        write_file(out_file, table_to_fill(files, None if own.labels is None else Path(own.labels)).encode())
    print_json(report) if json_output else _show_labeling(report, data, out_file)


@options_of(TrainConfig, only=BACKBONE)
@options_of(ClusteringConfig)
def cluster_command(
    context: typer.Context,
    data: ImagesArgument,
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="Table to write (CSV): file, and cluster as label.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="HTML page to write, with typical images of each cluster.")] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Find groups of similar images, to name them instead of single images.

    Replace the names of the clusters in the table by class names, then train on it.
    """
    need_extra("train")
    own = build(ClusteringConfig, **given(ClusteringConfig, context, part(ClusteringConfig, options)))
    config = build(TrainConfig, **given(TrainConfig, context, part(TrainConfig, options)))
    check_folder(data, holds="images")
    check_output_file(out_file, "--out", is_own=_is_own)
    if html is not None:
        from edgetl.report.clusters.page import is_cluster_page

        check_output_file(html, "--html", is_own=is_cluster_page)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.unlabeled.clustering import cluster_images

        report = cluster_images(data, config, own, progress=progress)
        write_file(out_file, table_of_names([(file, item.name) for item in report.clusters for file in item.files]).encode())
        if html is not None:
            from edgetl.report.clusters.page import write_cluster_page

            write_cluster_page(report, data, html)
    print_json(report) if json_output else _show_clusters(report, data, out_file, html)


def _is_own(_: Path) -> bool:
    """Return false: a person edits these tables, so no call replaces one."""
    return False


def _show_labeling(report: LabelingReport, data: Path, out_file: Path) -> None:
    out.print(
        f"{report.images} images, {report.labeled} with a label; {len(report.chosen)} chosen by {report.rule}, {report.seconds:.0f} s",
        soft_wrap=True,
    )
    table = plain_table("", "image", *(() if report.rule == "diversity" else ("prediction", "margin")))
    for item in report.chosen[:_SHOWN]:
        cells = (escape(printable(item.suggested)), f"{item.margin:.3f}") if item.margin is not None else ()
        table.add_row(escape(printable(item.file)), *cells)
    out.print(table)
    if (hidden := len(report.chosen) - _SHOWN) > 0:
        out.print(f"{hidden} more are in the table")
    out.print(
        f"table written to {escape(str(out_file))}. Fill in the column of labels. Next: edgetl train {escape(str(data))} "
        f"--labels {escape(str(out_file))} --out RUN, or more images: edgetl label {escape(str(data))} --labels {escape(str(out_file))} "
        "--out MORE",
        soft_wrap=True,
    )


def _show_clusters(report: ClusteringReport, data: Path, out_file: Path, html: Path | None) -> None:
    out.print(f"{report.images} images, features of {escape(report.backbone)}, {report.seconds:.0f} s", soft_wrap=True)
    table = plain_table("", "cluster", "images")
    table.add_column("typical images", overflow="fold")
    for item in report.clusters:
        table.add_row(item.name, str(len(item.files)), escape("; ".join(map(printable, item.files[:_EXAMPLES]))))
    out.print(table)
    page = f"page written to {escape(str(html))}; " if html else ""
    out.print(
        f"{page}table written to {escape(str(out_file))}. Replace the names of the clusters by class names. Next: edgetl train "
        f"{escape(str(data))} --labels {escape(str(out_file))} --out RUN",
        soft_wrap=True,
    )
