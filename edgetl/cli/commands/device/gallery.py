"""Command ``edgetl gallery``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from edgetl.cli.commands.device.keys import signing_key
from edgetl.cli.options import build, given, options_of, part
from edgetl.cli.session import JsonOption, VerboseOption, err, out, print_json, working
from edgetl.cli.tables import facts_grid, plain_table, signature_text
from edgetl.data.listing import find_images
from edgetl.device.config import GalleryConfig, TrustConfig
from edgetl.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from edgetl.core.progress import Progress
    from edgetl.device.gallery.place import Place
    from edgetl.device.gallery.result import GalleryChange, GalleryReport


@options_of(TrustConfig)
@options_of(GalleryConfig)
def gallery_command(
    context: typer.Context,
    action: Annotated[
        Literal["add", "remove", "list", "install"],
        typer.Argument(help="Add images, remove images, list the gallery, or install a gallery file of another host."),
    ],
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE|STORE", help="k-NN bundle, or a store.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="add: image files, or folders with images. remove: image files, or the first digits of their hashes. install: a gallery."
        ),
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Add classes or images to a k-NN bundle on a device, without training.

    The added images vote like training images. They are stored in a gallery file beside the bundle, which stays unchanged. Processes that
    load the bundle afterwards use the gallery, and name it in their results.
    """
    config = build(GalleryConfig, **given(GalleryConfig, context, part(GalleryConfig, options)))
    trusted = build(TrustConfig, **given(TrustConfig, context, part(TrustConfig, options)))
    _check(action, images or [], config)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.device.gallery.changes import list_gallery
        from edgetl.device.gallery.place import open_place
        from edgetl.device.gallery.result import GalleryChange
        from edgetl.device.signature import configured_trust

        key = signing_key(config.sign_key, config.passphrase_file) if config.sign_key else None
        place = open_place(bundle, configured_trust(trusted), key)
        found: GalleryReport | GalleryChange
        found = list_gallery(place) if action == "list" else _change(place, action, images or [], config, progress)
    print_json(found) if json_output else _show(found, action)
    if isinstance(found, GalleryChange) and found.failed:
        raise typer.Exit(ImageError.exit_code)


def _change(place: Place, action: str, images: list[str], config: GalleryConfig, progress: Progress) -> GalleryChange:
    from edgetl.device.gallery.changes import add, install, remove, remove_all

    if action == "add":
        return add(place, _files(images), config.label or "", variant=config.variant, progress=progress)
    if action == "install":
        return install(place, Path(images[0]), overwrite=config.overwrite)
    return remove_all(place) if config.all else remove(place, images, config.label)


def _check(action: str, images: list[str], config: GalleryConfig) -> None:
    """Check that the arguments fit the action.

    Raises:
        ConfigError: an argument is missing, or is for another action.
    """
    if action == "add" and (not images or config.label is None or config.all):
        raise ConfigError("gallery add needs images and their class: edgetl gallery add BUNDLE IMAGE --label NAME")
    if action == "remove" and bool(images or config.label is not None) == config.all:
        raise ConfigError("gallery remove needs images, --label NAME or --all: edgetl gallery remove BUNDLE --label NAME")
    if action == "install" and (len(images) != 1 or config.label is not None or config.all):
        raise ConfigError("gallery install needs one gallery file: edgetl gallery install STORE FILE --trust FOLDER")
    if action == "list" and (images or config.label is not None or config.all):
        raise ConfigError("gallery list has no images and no --label or --all: edgetl gallery list BUNDLE")


def _files(images: list[str]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, images):
        found += find_images(path) if path.is_dir() else [path]
    if not found:
        raise ImageError(f"{', '.join(images[:3])} contains no JPEG, PNG, WebP, BMP or TIFF file.")
    return found


def _show(found: GalleryReport | GalleryChange, action: str) -> None:
    from edgetl.device.gallery.result import GalleryChange

    if isinstance(found, GalleryChange):
        done = {"add": "added", "install": "installed"}.get(action, "removed")
        for item in (*found.duplicates, *found.failed):
            err.print(f"[yellow]not {done}:[/] {escape(f'{item.image}: {item.reason}')}", soft_wrap=True)
        out.print(f"{done}: {found.changed} images")
        found = found.gallery
    title = f"{found.name}, release {found.release}"
    if found.file is None:
        out.print(f"{escape(title)} has no gallery.")
    else:
        facts = facts_grid()
        facts.add_row("gallery of", escape(title))
        facts.add_row("file", escape(f"{found.file} ({found.size_bytes / 1e6:.2f} MB)"))
        facts.add_row("SHA-256", found.sha256)
        facts.add_row("signature", escape(signature_text(found.signature, check="gallery list BUNDLE")))
        out.print(facts)
        table = plain_table("", "label", "images", "class")
        for row in found.labels:
            table.add_row(escape(row.label), str(row.images), "new" if row.new else "of the bundle")
        out.print(table)
    for path in found.unused:
        out.print(f"[yellow]kept, not used:[/] {escape(path)} belongs to another release. Add its images again.", soft_wrap=True)
