"""Command ``edgetl pack``: a bundle as one file for transport, or labeled images as shards for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.options import build, given, options_of, part
from edgetl.cli.session import JsonOption, OverwriteOption, VerboseOption, out, print_json, working
from edgetl.core.bundle import is_run
from edgetl.core.config import StrictModel
from edgetl.core.manifest import MANIFEST_NAME
from edgetl.core.options import option_field
from edgetl.core.output.folders import check_output
from edgetl.data.folder import check_folder
from edgetl.data.packing.shards import IMAGES_PER_SHARD, pack_shards
from edgetl.errors import ConfigError, DataError
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import check_file
from edgetl.train.config.tasks import scan_images

if TYPE_CHECKING:
    from edgetl.core.progress import Progress
    from edgetl.data.shards.index import ShardIndex

_SUFFIX = ".edgetl"
_DATA = ("labels", "columns", "group", "include", "exclude")


class Packing(StrictModel):
    """Options of shards."""

    images_per_shard: int = option_field(
        IMAGES_PER_SHARD,
        "Images in each shard. Shards of 100 MB to 1 GB are typical. Training reads up to 32 shards at once.",
        panel="Images and labels",
        ge=1,
    )


@options_of(Packing)
@options_of(TrainConfig, only=_DATA)
def pack_command(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="Bundle that `edgetl export` wrote, or folder of labeled images.", metavar="BUNDLE|DATA")],
    out_: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="File to write, such as pets.edgetl, or folder for the shards of images.")
    ],
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Pack a bundle into one file for transport, or labeled images into shards for training.

    The file of a bundle is an uncompressed zip. Shards are tar archives in the WebDataset layout, with an index, shards.json. The same
    input always gives the same bytes. A signature is included, and image files are not changed.
    """
    packing, data = given(Packing, context, part(Packing, options)), given(TrainConfig, context, part(TrainConfig, options))
    if _is_bundle(source, out_):
        if names := [f"--{name.replace('_', '-')}" for name in (*packing, *data)]:
            raise ConfigError(f"{', '.join(names)}: only for a folder of images, and {source} is packed as a bundle. Remove the options.")
        _pack_bundle(source, out_, overwrite=overwrite, json_output=json_output, verbose=verbose)
        return
    config = build(TrainConfig, **data)
    check_file(config.data.labels, "--labels", DataError, "Give a table of labels.")
    inputs = {"the folder of images": check_folder(source)}
    check_output(out_, inputs=inputs, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose) as progress:
        index = _pack_images(source, config, out_, build(Packing, **packing), overwrite=overwrite, progress=progress)
    print_json(index) if json_output else _show_shards(index, out_)


def _is_bundle(source: Path, out_: Path) -> bool:
    """Return true for a bundle, a run, a path that is not a folder, and any source of a transport file."""
    return (source / MANIFEST_NAME).exists() or is_run(source) or not source.is_dir() or out_.suffix == _SUFFIX


def _pack_images(source: Path, config: TrainConfig, out_: Path, packing: Packing, *, overwrite: bool, progress: Progress) -> ShardIndex:
    inputs = {"the folder of images": source}
    folder = scan_images(source, config.data, progress=progress)
    count = packing.images_per_shard
    return pack_shards(folder, out_, images_per_shard=count, inputs=inputs, overwrite=overwrite, progress=progress)


def _show_shards(index: ShardIndex, out_: Path) -> None:
    size, images = sum(shard.size_bytes for shard in index.shards), sum(shard.images for shard in index.shards)
    counts = f"{len(index.shards):,} shards, {images:,} images of {len(index.labels)} classes, {size / 1e6:.2f} MB"
    out.print(f"written to {escape(str(out_))}: {counts}", soft_wrap=True)
    out.print(f"next: edgetl train {escape(str(out_))} --out RUN", soft_wrap=True)


def _pack_bundle(bundle: Path, out_: Path, *, overwrite: bool, json_output: bool, verbose: bool) -> None:
    with working(json_output=json_output, verbose=verbose):
        from edgetl.core.bundle import open_bundle
        from edgetl.device.signature import describe_signature
        from edgetl.device.transport import pack

        state = describe_signature(open_bundle(bundle), None)
        pack(bundle, out_, overwrite=overwrite)
    size = out_.stat().st_size
    if json_output:
        print_json({"bundle": str(bundle), "file": str(out_), "size_bytes": size, "signature": state.model_dump(mode="json")})
        return
    signed = "unsigned" if state.key_id is None else f"signed by the key {state.key_id}"
    out.print(f"written to {escape(str(out_))}: {size / 1e6:.2f} MB, {signed}", soft_wrap=True)
