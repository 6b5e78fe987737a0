"""Promotion gate: decide from paired predictions, and from the checks of the new labels, on the promotion of an updated model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from edgetl.core.results import images_that_may_change
from edgetl.train.config.update.options import UpdateConfig
from edgetl.train.config.update.result import Comparison, Promotion

# Level of McNemar's test. Few new images are available, and the gate has further conditions.
LEVEL = 0.1


def compare(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Comparison:
    """Compare two models on the same images by McNemar's exact test (McNemar 1947, doi:10.1007/BF02295996).

    Args:
        before: bool ``[n]``, true where the previous model is correct.
        after: bool ``[n]``, true where the updated model is correct.
    """
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    p = float(binomtest(gained, lost + gained, alternative="greater").pvalue) if lost + gained else 1.0
    first, second = (float(right.mean()) if len(right) else 0.0 for right in (before, after))
    return Comparison(n=len(before), before=first, after=second, lost=lost, gained=gained, p=p)


def decide(found: Promotion, config: UpdateConfig) -> Promotion:
    """Return ``found`` with the reasons of a rejection."""
    return found.model_copy(update={"reasons": tuple(_reasons(found, config))})


def _reasons(found: Promotion, config: UpdateConfig) -> Iterator[str]:
    new, previous, labels, trigger = found.new, found.previous.forgetting, found.contradicted, found.trigger
    if new.p > LEVEL:
        yield (
            f"the accuracy on {new.n} new images does not rise significantly: {new.before:.1%} before, {new.after:.1%} after "
            f"(McNemar p = {new.p:.2g}, limit {LEVEL:g})"
        )
    # On few images, one changed prediction alone would exceed the limit.
    if round(previous.drop * previous.images) > max(1, images_that_may_change(previous.images, config.max_drop)):
        yield (
            f"the accuracy on {previous.images} previous images falls from {previous.before:.1%} to {previous.after:.1%}, by more than "
            f"{config.max_drop:.1%} (--max-drop)"
        )
    if found.balanced.after <= found.balanced.before:
        yield f"the mean accuracy over all classes does not rise: {found.balanced.before:.1%} before, {found.balanced.after:.1%} after"
    if labels.rate > config.max_contradicted:
        yield (
            f"{labels.rate:.0%} of the new labels look wrong (limit {config.max_contradicted:.0%}, --max-contradicted), such as that of "
            f"{labels.files[0]}"
        )
    if trigger is not None:
        yield (
            f"{trigger.images} images of {trigger.label} have the same small area, and {trigger.contradicted:.0%} of them look like "
            f"another class (possible backdoor trigger)"
        )
