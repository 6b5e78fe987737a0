"""Commands on a store: ``edgetl install``, ``status``, ``confirm``, ``rollback`` and ``gc``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.options import build, given, options_of, part
from edgetl.cli.session import JsonOption, VerboseOption, err, out, print_json, working
from edgetl.cli.tables import facts_grid
from edgetl.core.store.state import KEPT_RELEASES
from edgetl.device.config import TrustConfig
from edgetl.device.store.config import InstallConfig
from edgetl.errors import IntegrityError, StoreError

if TYPE_CHECKING:
    from edgetl.device.store.install import Installation
    from edgetl.device.store.status import StoreStatus

# Folder of the state of services by the Filesystem Hierarchy Standard. systemd creates it with StateDirectory=edgetl.
DEFAULT_STORE = Path("/var/lib/edgetl")
_SHOWN_EVENTS = 5

StoreOption = Annotated[Path, typer.Option("--store", metavar="PATH", envvar="EDGETL_STORE", help="Folder of the store.")]


@options_of(TrustConfig)
@options_of(InstallConfig)
def install_command(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Folder of a bundle, file of `edgetl pack`, or https URL of such a file.")],
    store: StoreOption = DEFAULT_STORE,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Install a release of a bundle into a store, and activate it.

    The release is verified, tested and tuned before its activation. Afterwards the processes that use it observe its health: it is
    confirmed, or the previous release becomes active again. After an installation with trusted keys, the store requires a signature.
    """
    config = build(InstallConfig, **given(InstallConfig, context, part(InstallConfig, options)))
    trusted = build(TrustConfig, **given(TrustConfig, context, part(TrustConfig, options)))
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.device.signature import configured_trust
        from edgetl.device.store.install import install
        from edgetl.device.store.tuning_process import tune_release

        tune = partial(tune_release, progress=progress) if config.tune else None
        found = install(source, store, config, trust=configured_trust(trusted), tune=tune, progress=progress)
    print_json(found) if json_output else _show_installation(found)


def _show_installation(found: Installation) -> None:
    name = f"{escape(found.name)} release {found.release.release}"
    if found.unchanged:
        out.print(f"{name} is active already. It was not installed again.", soft_wrap=True)
        return
    for failure in found.failures:
        err.print(f"[yellow]not used:[/] {escape(failure)}", soft_wrap=True)
    if found.self_test is not None:
        test = found.self_test
        out.print(
            f"self-test passed: {test.variant}, {test.images} golden images, {test.median_ms:.2f} ms per image, "
            f"{test.peak_memory_mb:.0f} MB of memory",
            soft_wrap=True,
        )
    if found.tuning is not None:
        out.print(f"tuned: {found.tuning.chosen.describe()} ({found.tuning.seconds:.0f} s)", soft_wrap=True)
    before = "" if found.replaced is None else f", after release {found.replaced}"
    signer = f"signed by the key {found.release.key}" if found.release.key else "signature not checked"
    out.print(f"[green]active:[/] {name}{before} ({signer})", soft_wrap=True)
    if not found.confirmed:
        out.print("The release is not confirmed yet: its health is observed when it is used.", soft_wrap=True)
        out.print(f"next: edgetl status --store {escape(found.store)}", soft_wrap=True)


def status_command(store: StoreOption = DEFAULT_STORE, json_output: JsonOption = False) -> None:
    """Show the active release of a store, its health and the last changes.

    The files of all releases are verified. Exit codes: 9 a release is damaged, 26 no release is active.
    """
    from edgetl.device.store.status import read_status

    with working(json_output=json_output, verbose=False):
        found = read_status(store)
    print_json(found) if json_output else _show_status(found)
    if found.active is None:
        raise typer.Exit(StoreError.exit_code)
    if found.damaged:
        raise typer.Exit(IntegrityError.exit_code)


def confirm_command(store: StoreOption = DEFAULT_STORE, json_output: JsonOption = False) -> None:
    """Confirm the active release as healthy.

    It is no longer rolled back automatically.
    """
    from edgetl.device.store.status import confirm

    with working(json_output=json_output, verbose=False):
        found = confirm(store)
    print_json(found) if json_output else _show_status(found)


def rollback_command(store: StoreOption = DEFAULT_STORE, json_output: JsonOption = False) -> None:
    """Return to the previous release.

    The release that was active is not installed again, unless --allow-downgrade is given.
    """
    from edgetl.device.store.status import roll_back

    with working(json_output=json_output, verbose=False):
        found = roll_back(store)
    print_json(found) if json_output else _show_status(found)


def gc_command(
    store: StoreOption = DEFAULT_STORE,
    keep: Annotated[
        int, typer.Option(min=1, max=KEPT_RELEASES, help="Number of releases to keep, the active one included.")
    ] = KEPT_RELEASES,
    json_output: JsonOption = False,
) -> None:
    """Remove unused releases and unfinished downloads of a store."""
    from edgetl.device.store.cleanup import clean

    with working(json_output=json_output, verbose=False):
        found = clean(store, keep=keep)
    if json_output:
        print_json(found)
        return
    names = ", ".join(found.removed) or "no release"
    out.print(f"removed {escape(names)}: {found.freed_bytes / 1e6:.1f} MB. {found.kept} release(s) kept.", soft_wrap=True)


def _show_status(found: StoreStatus) -> None:
    facts = facts_grid()
    for title, value in _facts(found):
        facts.add_row(title, escape(value))
    out.print(facts)
    for problem in found.damaged:
        out.print(f"[red]damaged:[/] {escape(problem)}", soft_wrap=True)
    for event in found.history[-_SHOWN_EVENTS:]:
        out.print(f"{event.time}  {event.action} of release {event.release}  {escape(event.detail)}".rstrip(), soft_wrap=True)


def _facts(found: StoreStatus) -> Iterator[tuple[str, str]]:
    """Yield the titles and values of a status."""
    yield "store", found.store
    yield "bundle", found.name
    yield "state", found.state
    if found.active is not None:
        yield "active", f"release {found.active.release} ({found.active.id}), installed {found.active.installed or 'at an unknown time'}"
        yield "variant", found.active.variant or "the first with an installed engine"
        yield "tuning", _tuning_text(found)
        yield "key", found.active.key or "signature not checked"
    elif found.rejected:
        yield "reason", found.rejected[-1].reason
    if rules := found.probation:
        limit = "" if rules.max_latency_ms is None else f"; at most {rules.max_latency_ms:g} ms"
        yield "crashes", f"{rules.crashes} of {rules.tries}"
        yield (
            "confirmed after",
            (f"{rules.healthy_s:g} s in one process, or {rules.healthy_predictions} predictions ({rules.predictions} until now){limit}"),
        )
    yield "earlier", ", ".join(f"release {record.release}" for record in found.earlier) or "none"
    yield "high water", f"release {found.high_water}"
    yield "signature", "required" if found.signature_required else "not required"
    yield "size", f"{found.size_bytes / 1e6:.1f} MB"


def _tuning_text(found: StoreStatus) -> str:
    """Return the tuned choice, or the reason why there is none in use."""
    if found.tuned is not None and not found.tuning_problem:
        return found.tuned.describe()
    return f"not in use: {found.tuning_problem.rstrip('.')}. Tune the release: edgetl tune {found.store}"
