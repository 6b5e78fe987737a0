"""Command ``edgetl check``: data audit."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from pydantic import BeforeValidator, model_validator
from rich.markup import escape

from edgetl.cli.options import build, given, need_extra, options_of, part
from edgetl.cli.session import JsonOption, VerboseOption, out, print_json, print_notes, working
from edgetl.cli.tables import plain_table
from edgetl.core.bundle import check_run_folder
from edgetl.core.config import StrictModel
from edgetl.core.options import COMMON, option_field, words
from edgetl.core.output.folders import check_output_file, write_file
from edgetl.data.audit.dropped import KINDS, Drop
from edgetl.data.folder import ImageFolder, check_folder
from edgetl.errors import ConfigError, DataError
from edgetl.installation import install_command
from edgetl.train.config.anomaly.options import refuse_anomaly
from edgetl.train.config.options import BackboneConfig, DataConfig
from edgetl.train.config.paths import check_file
from edgetl.train.config.tasks import scan_images

if TYPE_CHECKING:
    from edgetl.core.progress import Progress
    from edgetl.data.audit.audit import Audit, FeatureFindings
    from edgetl.data.audit.copies import Pair
    from edgetl.data.audit.result import AuditReport, SimilarPair

_DATA_OPTIONS = ("labels", "task", "columns", "group", "include", "exclude")
_BACKBONE_OPTIONS = ("backbone", "weights", "weights_dir")
_FEATURE_CHECKS = "near-duplicates and label errors"
_SHOWN = 3


def _kinds(value: object) -> object:
    names = words(value)
    if isinstance(names, tuple) and (unknown := [name for name in names if name not in KINDS]):
        raise ValueError(f"{unknown[0]!r} is no kind of finding. Give one or more of {', '.join(KINDS)}, separated by commas")
    return names


class CheckConfig(StrictModel):
    """Options of ``edgetl check``."""

    html: str | None = option_field(None, "HTML page to write, with galleries of the findings.", panel=COMMON, metavar="FILE")
    keep: str | None = option_field(
        None,
        "Cleaned list to write (CSV): the images without copies and conflicts. `edgetl train DATA --labels FILE` reads it.",
        panel=COMMON,
        metavar="FILE",
    )
    drop: Annotated[tuple[Drop, ...], BeforeValidator(_kinds)] = option_field(
        (),
        f"Kinds of findings that --keep leaves out too, separated by commas: {', '.join(KINDS)}. Default: none: review them first.",
        panel=COMMON,
        metavar="KINDS",
    )
    features: bool = option_field(
        True,
        "Checks with frozen features of --backbone: near-duplicates and label errors. They need the extra train.",
        panel=COMMON,
    )
    run: str | None = option_field(
        None,
        "Run of an earlier training. Images that it or its ancestors used, and their copies, are reported.",
        panel=COMMON,
        metavar="PATH",
    )

    @model_validator(mode="after")
    def _writes_what_it_drops(self) -> Self:
        if self.drop and self.keep is None:
            raise ConfigError("--drop leaves findings out of the cleaned list. Add --keep FILE to write it.")
        return self


@options_of(CheckConfig)
@options_of(DataConfig, only=_DATA_OPTIONS)
@options_of(BackboneConfig, only=_BACKBONE_OPTIONS)
def check_command(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with one folder of images per class, or with train/, val/ and test/ folders of them, or the folder of "
            "the images in --labels."
        ),
    ],
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Check a folder of labeled images: duplicates, leakage, label errors, flaws.

    Nothing is changed or deleted. The findings are lists for a review. --html shows the images, and --keep writes a cleaned list.
    """
    config = build(CheckConfig, **given(CheckConfig, context, part(CheckConfig, options)))
    labels = build(DataConfig, **given(DataConfig, context, part(DataConfig, options)))
    backbone = build(BackboneConfig, **given(BackboneConfig, context, part(BackboneConfig, options)))
    refuse_anomaly(labels.task, "edgetl check compares images with their labels")
    _check_paths(data, config, labels)
    started = time.monotonic()
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.data.audit.audit import audit
        from edgetl.data.audit.copies import find_copies, find_identical

        folder = scan_images(data, labels, limits=False, progress=progress)
        copies = [*find_identical(folder.samples), *find_copies(folder.samples, progress=progress)]
        seen: list[int] = []
        if config.run is not None:
            from edgetl.train.artifacts.run import open_run

            seen = open_run(config.run).seen_images().find(folder.samples)
        found = audit(folder, copies, _features(folder, copies, config, backbone, progress), seen=seen, drop=config.drop)
        report = found.report.model_copy(update={"seconds": round(time.monotonic() - started, 1)})
        _write(folder, replace(found, report=report), config)
    print_json(report) if json_output else _show(report, config, folder)


def _check_paths(data: Path, config: CheckConfig, labels: DataConfig) -> None:
    """Check the inputs and outputs before any image is read.

    Raises:
        EdgetlError: a path is missing or of the wrong kind.
    """
    from edgetl.data.audit.cleaned import is_cleaned_list
    from edgetl.report.check.page import is_check_page

    check_folder(data)
    check_file(labels.labels, "--labels", DataError, "Give a table of labels.")
    inputs = {"the folder of images": data, **({"--labels": Path(labels.labels)} if labels.labels else {})}
    if config.run is not None:
        need_extra("train")
        inputs["--run"] = check_run_folder(Path(config.run))
    if config.html is not None:
        check_output_file(Path(config.html), "--html", is_own=is_check_page, inputs=inputs)
    if config.keep is not None:
        check_output_file(Path(config.keep), "--keep", is_own=is_cleaned_list, inputs=inputs)


def _features(
    folder: ImageFolder, copies: list[Pair], config: CheckConfig, backbone: BackboneConfig, progress: Progress
) -> FeatureFindings:
    """Return the findings of frozen features, or the reason why there are none."""
    from edgetl.data.audit.audit import FeatureFindings
    from edgetl.data.audit.result import LeftOutCheck

    reason = ""
    if not config.features:
        reason = "--no-features was given"
    elif any(find_spec(library) is None for library in ("torch", "timm", "sklearn")):
        reason = f"the training libraries are not installed. Install them with: {install_command('train')}"
    elif len(folder.samples) < 2:
        reason = "the folder has too few readable images"
    if reason:
        return FeatureFindings(left_out=(LeftOutCheck(check=_FEATURE_CHECKS, reason=reason),))
    from edgetl.train.workflows.audit.findings import find_by_features

    return find_by_features(folder, copies, backbone, progress=progress)


def _write(folder: ImageFolder, found: Audit, config: CheckConfig) -> None:
    from edgetl.data.audit.cleaned import cleaned_csv
    from edgetl.report.check.page import write_check_page

    if config.html is not None:
        write_check_page(found.report, folder, Path(config.html))
    if config.keep is not None:
        write_file(Path(config.keep), cleaned_csv(folder, found.removed, found.groups).encode())


def _show(report: AuditReport, config: CheckConfig, folder: ImageFolder) -> None:
    """Print a table of the findings, the leakage, and notes."""
    table = plain_table(f"{report.images} images, {report.distinct} different photos, {len(report.counts)} labels", "finding", "number")
    table.add_column("examples", overflow="fold")
    for name, number, examples in _rows(report):
        if number:
            table.add_row(name, str(number), escape("; ".join(examples[:_SHOWN])))
    out.print(table)
    for item in report.leakage:
        out.print(
            f"{item.part}, {item.images} images, leaked: {item.identical} identical (L0), {item.near_duplicates} near-duplicates (L1), "
            f"{item.same_group} of a group of training images (L2), {item.earlier_run} used by an earlier run or the pretraining (L3)",
            soft_wrap=True,
        )
    print_notes(report.notes)
    if report.imbalance > 1:
        out.print(
            f"imbalance: the most frequent label has {report.imbalance:g} times as many images as the rarest one with images",
            soft_wrap=True,
        )
    if report.empty_classes:
        out.print(f"labels without images: {escape(', '.join(report.empty_classes))}. Add images, or remove the label.", soft_wrap=True)
    if report.probe_accuracy is not None:
        out.print(
            f"label check: its probe predicts {report.probe_accuracy:.1%} of the labels. Its errors are among the possible label errors.",
            soft_wrap=True,
        )
    for left in report.left_out:
        out.print(f"[yellow]left out:[/] {left.check}: {escape(left.reason)}.", soft_wrap=True)
    features = f", features by {escape(report.backbone)}" if report.backbone else ""
    out.print(f"checked in {report.seconds:.0f} s{features}", soft_wrap=True)
    _show_files(report, config, folder)


def _show_files(report: AuditReport, config: CheckConfig, folder: ImageFolder) -> None:
    """Print the written files, what the cleaned list still contains, and the next command."""
    if config.html:
        out.print(f"page written to {escape(config.html)}", soft_wrap=True)
    else:
        out.print(f"next: edgetl check {escape(report.data)} --html check.html --keep keep.csv", soft_wrap=True)
    if config.keep:
        out.print(f"cleaned list written to {escape(config.keep)} without {len(report.removed)} images", soft_wrap=True)
        if report.remaining:
            left = ", ".join(f"{kind} ({count})" for kind, count in report.remaining.items())
            out.print(f"cleaned list still contains: {left}. Review them, or leave kinds out with --drop.", soft_wrap=True)
        out.print(f"next: edgetl train {escape(report.data)} --labels {escape(config.keep)} --task {folder.task} --out RUN", soft_wrap=True)


def _rows(report: AuditReport) -> list[tuple[str, int, list[str]]]:
    """Return the name, number and examples of each kind of finding."""
    sets = [(item, " = ".join(item.files[:3])) for item in report.copies]
    rows = [
        ("broken files", len(report.broken), [f"{item.file}: {item.reason.removesuffix('.')}" for item in report.broken]),
        ("label conflicts, sets", len(found := [text for item, text in sets if item.conflict]), found),
        ("possible label errors, strong", len(issues := _issues(report, strong=True)), issues),
        ("possible label errors, weak", len(issues := _issues(report, strong=False)), issues),
    ]
    for kind, name in (("identical", "identical images, sets"), ("copy", "copies, sets"), ("near-duplicate", "near-duplicates, sets")):
        texts = [text for item, text in sets if item.kind == kind and not item.conflict]
        rows.append((name, len(texts), texts))
    rows.append(("similar images, pairs", len(report.similar), [_pair(item) for item in report.similar]))
    for flaw in dict.fromkeys(item.flaw for item in report.flaws):
        texts = [f"{item.file} ({item.text})" for item in report.flaws if item.flaw == flaw]
        rows.append((f"{flaw} images" if flaw != "odd-size" else "odd sizes", len(texts), texts))
    rows.append(("images of the earlier run", len(report.seen), list(report.seen)))
    rows.append(("images of the pretraining", len(report.pretraining), list(report.pretraining)))
    rows.append(("uncertain labels", len(report.uncertain), [f"{item.file} ({item.probability:.2f})" for item in report.uncertain]))
    rows.append(("series", len(report.series), [f"{item.name} ({len(item.files)})" for item in report.series]))
    rows.append(("labels with few images", len(report.small_classes), list(report.small_classes)))
    return rows


def _issues(report: AuditReport, *, strong: bool) -> list[str]:
    return [f"{item.file} ({item.suggested}?)" for item in report.label_issues if item.strong == strong]


def _pair(item: SimilarPair) -> str:
    return " ~ ".join(item.files) + (f" (labels {' and '.join(item.labels)})" if item.labels[0] != item.labels[1] else "")
