"""Commands on a bundle or a run: ``edgetl verify`` and ``inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.options import build, given, need_extra, options_of
from edgetl.cli.session import JsonOption, LabelsOption, VerboseOption, out, print_json, working
from edgetl.cli.tables import (
    attempt_lines,
    busy_lines,
    facts_grid,
    figures_line,
    input_size_lines,
    outcomes_table,
    setting_lines,
    signature_text,
    target_lines,
    variants_table,
)
from edgetl.core.bundle import is_run, open_bundle
from edgetl.core.images.intensity import FULL_RANGE
from edgetl.core.lineage import describe_parent
from edgetl.core.manifest import Manifest
from edgetl.device.config import TrustConfig
from edgetl.runtime.evaluation import EvaluationConfig, EvaluationReport, evaluate_bundle
from edgetl.runtime.verify import VerifyReport, verify

if TYPE_CHECKING:
    from edgetl.train.artifacts.record import RunRecord


@options_of(TrustConfig)
def verify_command(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="Bundle: the folder that `edgetl export` wrote, or a file of `edgetl pack`.")],
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder of labeled images. Also measures the metrics of each variant on them.")
    ] = None,
    labels: LabelsOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Check the signature, file hashes and golden predictions of a bundle on this host.

    The signature is checked first, if --key or --trust is given. Exit codes: 9 damaged file, 20 invalid signature, 21 unsigned, 22 unknown
    key, 23 revoked key.
    """
    config = build(TrustConfig, **given(TrustConfig, context, options))
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.device.signature import configured_trust, describe_signature, verified_bundle
        from edgetl.device.transport import unpacked

        trust = configured_trust(config)
        with unpacked(bundle, trust=trust) as folder:
            opened, key = verified_bundle(folder, trust)
            state = describe_signature(opened, key)
            report = verify(opened, progress=progress).model_copy(update={"bundle": str(bundle)})
            evaluations = []
            if data is not None:
                for check in report.checked:
                    chosen = EvaluationConfig(labels=labels, variant=check.variant)
                    evaluations.append(evaluate_bundle(opened, data, chosen, progress=progress))
    if json_output:
        signature, rows = state.model_dump(mode="json"), [item.model_dump(mode="json") for item in evaluations]
        print_json({**report.model_dump(mode="json"), "signature": signature, "evaluations": rows})
        return
    out.print(f"signature: {escape(signature_text(state))}", soft_wrap=True)
    _show_verification(report, evaluations)


def _show_verification(report: VerifyReport, evaluations: Sequence[EvaluationReport]) -> None:
    out.print(f"{report.files} files match the hashes of the manifest")
    for check in report.checked:
        out.print(
            f"{check.variant}: {check.images} golden images, largest score difference {check.largest_difference:.1e} "
            f"(tolerance {check.tolerance:g})",
            soft_wrap=True,
        )
    for name in report.skipped:
        out.print(f"[yellow]{name}: not checked, because its inference engine is not installed[/]", soft_wrap=True)
    for evaluation in evaluations:
        out.print(
            f"{evaluation.variant}: {figures_line(evaluation.result)}; {evaluation.left_out} images of training and validation left out",
            soft_wrap=True,
        )


def inspect_command(
    path: Annotated[Path, typer.Argument(help="Folder of a run or a bundle, or a file of `edgetl pack`.")],
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show the contents of a run or a bundle."""
    with working(json_output=True, verbose=verbose):
        if is_run(path):
            from edgetl.cli.commands.train import show_run

            need_extra("train")
            from edgetl.train.artifacts.run import open_run

            run = open_run(path)
            sizes = run.sizes()
            if json_output:
                print_json({**run.record.model_dump(mode="json"), "sizes": sizes})
                return
            show_run(run)
            _show_run_facts(run.record, sizes)
            return
        from edgetl.device.signature import describe_signature
        from edgetl.device.transport import unpacked

        with unpacked(path) as folder:
            bundle = open_bundle(folder)
            state = describe_signature(bundle, None)
    if json_output:
        print_json({**bundle.manifest.model_dump(mode="json"), "signature": state.model_dump(mode="json")})
        return
    _show_manifest(bundle.manifest, signature_text(state), verbose=verbose)


def _show_run_facts(record: RunRecord, sizes: dict[str, int | None]) -> None:
    """Print the strategy, numbers of images and files of a run."""
    facts, spec = facts_grid(), record.preprocess
    files = [f"{name} {'is missing' if size is None else f'{size:,} bytes'}" for name, size in sizes.items()]
    for title, value in (
        ("task", record.task),
        ("labels", ", ".join(record.labels)),
        *([("scores", scores)] if (scores := record.decision_rule.describe_scores()) else []),
        ("strategy", f"{record.plan.strategy} ({record.plan.reason}), {record.plan.steps} steps"),
        ("images", ", ".join(f"{record.images[part]} {part}" for part in ("train", "val", "test"))),
        ("validated by", f"{record.validation_name} of the training images" if record.folds else "validation images"),
        ("input", spec.describe()),
        ("backbone", f"{record.backbone.name} ({record.backbone.architecture})"),
        ("created", record.created),
        ("files", "\n".join(files)),
    ):
        facts.add_row(title, escape(value))
    out.print(facts)


def _show_manifest(manifest: Manifest, signature: str, *, verbose: bool) -> None:
    out.print(variants_table(manifest))
    for line in (*target_lines(manifest), *attempt_lines(manifest), *setting_lines(manifest)):
        out.print(escape(line), soft_wrap=True)
    facts = facts_grid()
    lineage, spec = manifest.lineage, manifest.preprocess
    for title, value in (
        ("task", manifest.task),
        ("labels", _labels(manifest)),
        *([("scores", scores)] if (scores := manifest.decision_rule.describe_scores()) else []),
        ("input", spec.describe()),
        *([] if spec.intensity == FULL_RANGE else [("intensity rule", spec.intensity.describe())]),
        ("model input", _input_forms(manifest)),
        ("backbone", f"{lineage.architecture}, {lineage.strategy}, {lineage.train_images} training images"),
        ("license", lineage.license or "not stated"),
        ("calibration", f"{manifest.calibration.n} {manifest.calibration.source} images" if manifest.calibration else "none"),
        ("accuracy gate", f"{manifest.score_name} on {manifest.trained.n} {manifest.gate_images}"),
        *_contract(manifest),
        ("golden images", str(len(manifest.golden))),
        ("release", str(manifest.release)),
        ("signature", signature),
        ("created", f"{manifest.created} on {manifest.host.get('cpu', 'an unknown host')}"),
    ):
        facts.add_row(title, escape(value))
    for parent in lineage.parents:
        facts.add_row("made from", escape(describe_parent(parent)))
    for item in manifest.rejected:
        facts.add_row("left out", escape(f"{item.name}: {item.reason}"))
    out.print(facts)
    if manifest.outcomes:
        out.print(outcomes_table(manifest.outcomes, manifest.contract.contract if manifest.contract else None))
    for line in input_size_lines(manifest):
        out.print(escape(line), soft_wrap=True)
    for line in busy_lines(manifest, verbose=verbose):
        out.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)


def _contract(manifest: Manifest) -> list[tuple[str, str]]:
    if manifest.contract is None:
        return []
    chosen = manifest.contract.chosen
    return [("contract", f"{chosen.variant} on {chosen.threads} thread(s): {', '.join(clause.describe() for clause in chosen.clauses)}")]


def _input_forms(manifest: Manifest) -> str:
    forms = {"float": "float32 [batch, 3, H, W], normalized", "uint8": "uint8 [batch, H, W, 3], resized and cropped RGB pixels"}
    return "; ".join(sorted({forms[variant.input_form] for variant in manifest.variants}))


def _labels(manifest: Manifest) -> str:
    """Format the labels with their thresholds, or with the ordinal levels."""
    decision_rule = manifest.decision_rule
    if manifest.task == "multi-label":
        return ", ".join(f"{label} (threshold {limit:.3f})" for label, limit in zip(manifest.labels, decision_rule.thresholds, strict=True))
    levels = f", levels {decision_rule.ordinal_levels[0]} to {decision_rule.ordinal_levels[1]}" if decision_rule.ordinal_levels else ""
    return ", ".join(manifest.labels) + levels
