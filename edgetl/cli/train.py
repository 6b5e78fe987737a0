"""``edgetl train`` and ``edgetl evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape

from edgetl.cli.session import (
    JsonOption,
    OverwriteOption,
    PolicyOption,
    SeedOption,
    ThreadsOption,
    VerboseOption,
    WeightsDirOption,
    numbers,
    out,
    print_json,
    working,
)  # fmt: skip
from edgetl.cli.tables import classes_table, share
from edgetl.core.bundle import RUN_RECORD_NAME
from edgetl.core.config import Model
from edgetl.core.manifest import describe_parent
from edgetl.errors import ConfigError, MissingExtraError
from edgetl.train.embedded import DEFAULT_BACKBONE

if TYPE_CHECKING:
    from edgetl.train.config import TrainConfig
    from edgetl.train.run import Run

BackboneOption = Annotated[str, typer.Option(help="Embedded name, run, timm name, torchvision:NAME, local-dir:PATH or hf-hub:ORG/NAME.")]
CropOption = Annotated[float | None, typer.Option(help="Share of the resized image that the crop keeps (default: the backbone's).")]


def train_command(
    data: Annotated[Path, typer.Argument(help="Folder with one folder of images for each class, or train/, val/, test/ of those.")],
    out_: Annotated[Path, typer.Option("--out", "-o", help="The run folder to write.")],
    backbone: BackboneOption = DEFAULT_BACKBONE,
    weights: Annotated[Path | None, typer.Option(help="A .safetensors or .pth file for the architecture that --backbone names.")] = None,
    weights_dir: WeightsDirOption = None,
    licence: Annotated[str | None, typer.Option("--licence", "--license", help="Of the weights, where they do not say it.")] = None,
    license_policy: PolicyOption = "any",
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Start from random weights (a control).")] = False,
    strategy: Annotated[str, typer.Option(help="auto (by the number of images), probe, partial, full, progressive or scratch.")] = "auto",
    unfreeze: Annotated[str | None, typer.Option(help="What tunes: a share of the stages (0.33), stage4 and after it, or first.")] = None,
    input_size: Annotated[str | None, typer.Option(help="Height and width, such as 224,224 (default: the backbone's).")] = None,
    mean: Annotated[str | None, typer.Option(help="Three numbers, RGB on 0..1 (default: the backbone's).")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers, RGB on 0..1 (default: the backbone's).")] = None,
    crop_pct: CropOption = None,
    resize: Annotated[str | None, typer.Option(help="fused (default), or two-step (bit-identical to timm's transform).")] = None,
    views: Annotated[int, typer.Option(help="Pictures of each image that the head is fitted on: 1 is the quickest.")] = 4,
    val: Annotated[float, typer.Option(help="Share for validation.")] = 0.15,
    test: Annotated[float, typer.Option(help="Share for the test.")] = 0.15,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images (default: steps by the number of images).")] = None,
    lr: Annotated[float | None, typer.Option(help="The head's learning rate (default: by the number of images).")] = None,
    trunk_lr: Annotated[float | None, typer.Option(help="The learning rate of the trunk's last stage.")] = None,
    lr_ratio: Annotated[float | None, typer.Option(help="The lowest tuned stage's learning rate relative to --trunk-lr.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    augment: Annotated[str, typer.Option(help="auto, none, light, medium or strong.")] = "auto",
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror images (default: unless class names forbid it).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fine-tune a backbone on a folder of labelled images."""
    config = build_config(
        backbone=backbone, weights=str(weights) if weights else None, weights_dir=str(weights_dir) if weights_dir else None,
        licence=licence, license_policy=license_policy, pretrained=not random_weights, strategy=strategy,
        input_size=_sides(input_size), mean=numbers(mean, 3, "--mean"), std=numbers(std, 3, "--std"), crop_pct=crop_pct, resize=resize,
        views=views, val=val, test=test, unfreeze=unfreeze, epochs=epochs, lr=lr, trunk_lr=trunk_lr, lr_ratio=lr_ratio,
        batch_size=batch_size, augment=augment, flip=flip, device=device, seed=seed,
    )  # fmt: skip
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.finetune import train

        run = train(data, config, out_, overwrite=overwrite, resume=resume, progress=progress)
    print_json(run.record) if json_output else show_run(run)


def evaluate_command(
    model: Annotated[Path, typer.Argument(help="A run or a bundle.")],
    data: Annotated[Path, typer.Argument(help="Folder with class folders named like the model's labels.")],
    variant: Annotated[str | None, typer.Option(help="Of a bundle, such as openvino-int8 (default: the fastest).")] = None,
    every_image: Annotated[bool, typer.Option("--all", help="Also score images that the model was trained or selected on.")] = False,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Accuracy, macro F1 and figures of each class, on images that the model has not seen."""
    with working(json_output=json_output, verbose=verbose) as progress:
        if (model / RUN_RECORD_NAME).is_file():
            if variant is not None:
                raise ConfigError(f"{model} is a run and has no variants; leave --variant out, or give a bundle.")
            need_extra("train")
            from edgetl.train.evaluation import evaluate_run

            report = evaluate_run(model, data, every_image=every_image, progress=progress)
        else:
            from edgetl.runtime.evaluation import evaluate_bundle

            report = evaluate_bundle(model, data, variant=variant, every_image=every_image, threads=threads, progress=progress)
    if json_output:
        print_json(report)
        return
    name = f"{report.model} {report.variant or '(trained model)'}"
    out.print(classes_table(report.result, escape(name)))
    out.print(f"accuracy {share(report.result.accuracy)}, macro F1 {report.result.macro_f1:.4f}")
    if report.left_out:
        out.print(f"{report.left_out} images were left out: the model was trained or selected on them (--all scores them too).")
    if report.broken:
        out.print(f"{report.broken} images were left out: they cannot be decoded.")


def build_config(**values: Any) -> TrainConfig:
    """A ``TrainConfig``; see ``build``."""
    from edgetl.train.config import TrainConfig

    need_extra("train")
    return build(TrainConfig, **values)


def build(model: type[Model], **values: Any) -> Model:
    """A configuration; several mistakes are reported together.

    Raises:
        ConfigError: naming each option.
        MissingExtraError: the train extra is not installed.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """Every mistake of a configuration, with the option that it belongs to."""
    return (
        "; ".join(f"--{'-'.join(str(part) for part in item['loc'][:1]).replace('_', '-')}: {item['msg']}" for item in error.errors()) + "."
    )


def need_extra(extra: str) -> None:
    """Refuse early, with the pip command, when the libraries of ``extra`` are not installed."""
    from importlib.util import find_spec

    libraries = {
        "train": ("torch", "torchvision", "timm", "lightning", "sklearn", "matplotlib"),
        "export": ("torch", "onnx", "onnxscript", "nncf"),
    }
    for library in libraries[extra]:
        if find_spec(library) is None:
            raise MissingExtraError(library, extra)


def show_run(run: Run) -> None:
    """The run as a table, and what to do next."""
    record = run.record
    shown = record.test or record.validation
    out.print(classes_table(shown, "test images" if record.test else "validation images"))
    out.print(f"validation accuracy {share(record.validation.accuracy)}")
    if record.test:
        out.print(f"test accuracy       {share(record.test.accuracy)}, macro F1 {record.test.macro_f1:.4f}")
    splits = run.splits()
    for title, items in (("cannot be decoded and were left out", splits.broken), ("share a picture under two labels", splits.conflicts)):
        if items:
            names = ", ".join(item if isinstance(item, str) else " = ".join(item) for item in items[:3])
            out.print(f"[yellow]{len(items)} images {title}[/]: {escape(names)}{' …' if len(items) > 3 else ''}")
    for alarm in record.alarms:
        out.print(f"[yellow]look:[/] {escape(alarm)}", soft_wrap=True)
    for parent in record.backbone.parents:
        out.print(f"made from {escape(describe_parent(parent))}", soft_wrap=True)
    licence = escape(record.backbone.licence or "not stated")
    out.print(f"licence of the weights: {licence}; {record.seconds:.0f} s; written to {escape(str(run.path))}", soft_wrap=True)
    out.print(f"next: edgetl export {escape(str(run.path))} --out BUNDLE", soft_wrap=True)


def _sides(text: str | None) -> tuple[int, int] | None:
    values = numbers(f"{text},{text}" if text and text.isdigit() else text, 2, "--input-size")
    return (int(values[0]), int(values[1])) if values else None
