"""The bundle's card, for people."""

from __future__ import annotations

from edgetl.core.manifest import Calibration, Rejected, Variant, describe_parent
from edgetl.core.results import Proportion
from edgetl.train.run import RunRecord


def write_card(
    name: str, record: RunRecord, variants: list[Variant], rejected: list[Rejected], trained: Proportion, calibration: Calibration | None
) -> str:
    """The card as Markdown."""
    backbone = record.backbone
    lines = [
        f"# {name}",
        "",
        f"Image classification, {len(record.labels)} classes: {', '.join(record.labels[:30])}{' …' if len(record.labels) > 30 else ''}.",
        "",
        f"- Backbone: {backbone.architecture} ({'pretrained' if backbone.pretrained else 'random weights'}), "
        f"licence of the weights: {backbone.licence or 'not stated'}",
        f"- Strategy: {record.plan.strategy}, seed {record.config.seed}, trained in {record.seconds:.0f} s",
        f"- Images: {record.images['train']} train, {record.images['val']} validation, {record.images['test']} test",
        f"- Input: {record.preprocess.input_size[0]} x {record.preprocess.input_size[1]} RGB, {record.preprocess.crop_mode} crop, "
        f"{record.preprocess.interpolation}, {record.preprocess.resize} resize",
        f"- Trained model on the validation images: {_share(trained)}",
        f"- Trained model on the test images: {_share(record.test.accuracy) if record.test else 'no test images'}",
        f"- Calibration: {f'{calibration.n} training images' if calibration else 'none (no int8 variant)'}",
        "",
        "| variant | size | validation | test | agreement | confident agreement | 1 image, 1 thread | how |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant in variants:
        how = variant.ladder[-1].method if variant.ladder else ""
        lines.append(
            f"| {variant.name} | {variant.size_bytes / 1e6:.2f} MB | {_share(variant.validation)} | "
            f"{_share(variant.test) if variant.test else 'none'} | {variant.agreement.top1:.3f} | {variant.agreement.confident_top1:.3f} | "
            f"{variant.median_ms:.1f} ms | {how} |"
        )
    if backbone.parents:
        lines += ["", "Made from, the oldest first:", ""]
        lines += [f"- {describe_parent(parent)}" for parent in backbone.parents]
    lines += [f"\nNot in the bundle: {item.name}: {item.reason}." for item in rejected]
    lines += ["", "Intervals are Wilson's, 95 %. Latency is of the machine that exported; measure yours with `edgetl bench`.", ""]
    return "\n".join(lines)


def _share(value: Proportion) -> str:
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f}, n = {value.n})"
