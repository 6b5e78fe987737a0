"""Command ``edgetl demo``: the whole pipeline on data of the package, without a network connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from edgetl.cli.commands.bench import show_report
from edgetl.cli.commands.export import show_bundle
from edgetl.cli.commands.train import show_run
from edgetl.cli.options import need_extra
from edgetl.cli.session import OverwriteOption, VerboseOption, out, working
from edgetl.cli.tables import plain_table
from edgetl.core.bundle import Bundle
from edgetl.core.files.atomic import write_text
from edgetl.core.output.folders import check_output, remove_side_folder, reserved
from edgetl.core.output.ownership import DEMO_RECORD_NAME
from edgetl.core.progress import Progress
from edgetl.measure.config import BenchConfig
from edgetl.measure.report import LatencyReport
from edgetl.measure.stages import measure_bundle
from edgetl.runtime.predictor import load
from edgetl.runtime.verify import verify

if TYPE_CHECKING:
    from edgetl.train.artifacts.run import Run


def demo_command(
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Folder to write: images, run, bundle and chart.")] = Path(
        "demo"
    ),
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run the whole pipeline on handwritten digits, without a download.

    The images are those of scikit-learn. The demo trains, exports, verifies, predicts and measures. It takes about a minute.
    """
    need_extra("train")
    need_extra("export")
    check_output(out_, overwrite=overwrite)
    # The folder is not written under a temporary name, because the run records the path of its images.
    with working(json_output=False, verbose=verbose) as progress, reserved(out_, overwrite=overwrite):
        remove_side_folder(out_)
        out_.mkdir(exist_ok=True)
        write_text(out_ / DEMO_RECORD_NAME, '{"schema_version": 1, "images": "digits"}\n')
        run, bundle = _train_and_export(out_, progress)
        report = _try_out(out_, bundle, progress)
        _draw(run, bundle, report, out_ / "demo.png")
    _show(bundle, report, out_)


def _train_and_export(root: Path, progress: Progress) -> tuple[Run, Bundle]:
    from edgetl.export.config import ExportConfig
    from edgetl.export.package import export_bundle
    from edgetl.train.config.options import TrainConfig
    from edgetl.train.inputs.digits import DEMO_CONFIG, write_digits
    from edgetl.train.workflows.train import train

    _step(f"1. {write_digits(root / 'digits')} images of handwritten digits written to {root}/digits")
    _step(f"2. edgetl train {root}/digits --backbone {DEMO_CONFIG['backbone']} … --out {root}/run")
    run = train(root / "digits", TrainConfig.from_options(**DEMO_CONFIG), root / "run", progress=progress)
    show_run(run)
    _step(f"3. edgetl export {root}/run --out {root}/bundle --name digits --allow-missing")
    bundle = export_bundle(root / "run", ExportConfig(name="digits", allow_missing=True), root / "bundle", progress=progress)
    show_bundle(bundle)
    return run, bundle


def _try_out(root: Path, bundle: Bundle, progress: Progress) -> LatencyReport:
    _step(f"4. edgetl verify {root}/bundle")
    checked = verify(bundle.path, progress=progress)
    out.print(f"{checked.files} files match their hashes, and {len(checked.checked)} variants predict the golden images as expected")
    _step(f"5. edgetl predict {root}/bundle {root}/digits/3")
    predictor = load(bundle)
    for path in sorted((root / "digits" / "3").iterdir())[:3]:
        found = predictor.predict(path)
        out.print(f"{escape(path.name)}: {found.label or 'unknown'} ({found.score:.3f})")
    _step(f"6. edgetl bench {root}/bundle --runs 200")
    return measure_bundle(bundle.path, BenchConfig(runs=200, max_seconds=4.0), progress=progress)


def _draw(run: Run, bundle: Bundle, report: LatencyReport, path: Path) -> None:
    from edgetl.cli.charts import draw_demo

    assert run.record.test is not None
    accuracies = {"trained": run.record.test.accuracy.value}
    accuracies |= {item.name: item.test.value for item in bundle.manifest.variants if item.test}
    draw_demo(run.record.test, report, accuracies, path)


def _show(bundle: Bundle, report: LatencyReport, shown: Path) -> None:
    show_report(report)
    table = plain_table("summary", "variant", "MB", "test accuracy", "latency ms")
    times = {row.variant: row.whole.mean_ms for row in report.variants}
    for variant in bundle.manifest.variants:
        accuracy = f"{variant.test.value:.4f}" if variant.test else "none"
        table.add_row(variant.name, f"{variant.size_bytes / 1e6:.2f}", accuracy, f"{times[variant.name]:.2f}")
    out.print(table)
    out.print(f"chart written to {escape(str(shown / 'demo.png'))}", soft_wrap=True)


def _step(text: str) -> None:
    out.print(f"\n[bold]{escape(text)}[/]", soft_wrap=True)
