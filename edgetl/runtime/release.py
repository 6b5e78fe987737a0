"""Variants of a bundle and releases of a store that can be loaded: tuned choices, and the fallback to another variant or release."""

from __future__ import annotations

import logging
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgetl.core.bundle import Bundle
from edgetl.core.config import read_json
from edgetl.core.manifest import Variant
from edgetl.core.store import Release, Start, starts
from edgetl.core.system.execution import DEFAULT_SETTING, Choice, ExecutionSetting, Tuning
from edgetl.errors import BundleError, EdgetlError, EngineError, IntegrityError, OutOfMemoryError, StoreError
from edgetl.runtime.engine import candidates

_log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Selection:
    """Variant of a bundle to load.

    Attributes:
        variant: manifest entry.
        threads: threads per inference; none for the default.
        setting: execution setting.
    """

    variant: Variant
    threads: int | None = None
    setting: ExecutionSetting = DEFAULT_SETTING


def usable_variant(
    bundle: Bundle, load: Callable[[Bundle, Selection], Loaded], *, tuned: Choice | None = None, variant: str | None = None
) -> Loaded:
    """Load the tuned choice of a bundle, or a given ``variant``, which overrides it.

    Without both, load the first variant that can be loaded on this host. A warning is logged for each variant that cannot.

    Raises:
        BundleError: no variant has this name.
        MissingExtraError: no engine for the bundle is installed.
        EdgetlError: an error of ``load`` for the last of the variants.
    """
    variants = candidates(bundle, variant or (tuned.variant if tuned else None))
    for chosen, following in zip(variants, [*variants[1:], None], strict=True):
        selection = Selection(chosen, tuned.threads, tuned.setting) if tuned and tuned.variant == chosen.name else Selection(chosen)
        try:
            return load(bundle, selection)
        except EngineError as error:
            if following is None:
                raise
            _log.warning("%s cannot be loaded on this host, so %s is loaded instead: %s", chosen.name, following.name, error)
    raise AssertionError("there is at least one variant")


def usable_release(
    store: Path, load: Callable[[Bundle, Selection], Loaded], *, variant: str | None = None, skip: Set[str] = frozenset()
) -> tuple[Start, Bundle, Loaded]:
    """Load the active release of a store. If it cannot be loaded, roll it back and load an earlier release.

    Args:
        store: folder of the store.
        load: loads the selected variant of a release.
        variant: name of a variant. None selects the tuned one, or the one that passed the self-test.
        skip: ids of releases that failed before.

    Returns:
        the start, which observes the health of a release in probation, the bundle of the release, and the result of ``load``.

    Raises:
        StoreError: no release can be loaded.
        EdgetlError: an error that is no failure of the release, such as an unknown variant or a missing engine.
    """
    for start in starts(store, skip=skip):
        try:
            bundle = start.release.open()
        except BundleError as error:
            start.failed(str(error))
            continue
        tuned = _stored_choice(bundle, start.release)
        name = variant or (None if tuned else start.release.record.variant)
        try:
            return start, bundle, usable_variant(bundle, load, tuned=tuned, variant=name)
        except (IntegrityError, EngineError, OutOfMemoryError) as error:
            start.failed(str(error))
        except EdgetlError:
            start.close()
            raise
    raise AssertionError("the iteration over starts ends with an error")


def read_tuning(release: Release) -> tuple[Tuning | None, str]:
    """Return the tuning of a release, and the reason why it is not used on this host; empty if it is used."""
    if not release.tuning.exists():
        return None, "the release is not tuned"
    try:
        tuning = read_json(release.tuning, Tuning, StoreError)
    except StoreError as error:
        return None, str(error)
    return tuning, tuning.outdated(release.record.manifest_sha256)


def _stored_choice(bundle: Bundle, release: Release) -> Choice | None:
    """Return the choice of the tuning that a store keeps for a release; None without one, or if it does not apply."""
    tuning, reason = read_tuning(release)
    if tuning is not None:
        return tuned_choice(bundle, tuning)
    if release.tuning.exists():
        _log.warning("%s The tuning is not used. Repeat it with `edgetl tune`.", reason)
    return None


def tuned_choice(bundle: Bundle, tuning: Tuning) -> Choice | None:
    """Return the choice of a tuning. If it does not apply to the bundle on this host, log a warning and return None."""
    choice, reason = tuning.chosen, tuning.outdated(bundle.manifest_sha256)
    if not reason and not any(item.name == choice.variant and item.allows(choice.setting) for item in bundle.manifest.variants):
        reason = f"the bundle does not allow {choice.describe()}"
    if reason:
        _log.warning("the tuning of %s is outdated and is not used: %s. Repeat it with `edgetl tune`.", bundle.path, reason)
    return None if reason else choice
