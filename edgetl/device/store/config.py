"""Options of ``edgetl install``."""

from __future__ import annotations

from functools import partial

from edgetl.core.config import StrictModel
from edgetl.core.options import option_field
from edgetl.core.store.state import Probation

_health = partial(option_field, panel="Health of a new release")


class InstallConfig(StrictModel):
    """Configuration of an installation."""

    allow_downgrade: bool = option_field(
        False, "Accept a release that is older than the newest one of the store, or that was rolled back. It is recorded in the history."
    )
    allow_unsigned: bool = option_field(
        False,
        "Accept a release without trusted keys, although the store requires a signature. This ends the requirement, and is recorded in the "
        "history.",
    )
    allow_http: bool = option_field(False, "Accept http:// URLs of this host (127.0.0.1, localhost). For tests only.")
    tune: bool = option_field(
        True, "Choose the fastest variant, thread count and execution setting on this host before the activation. It takes at most 40 s."
    )
    max_latency_ms: float | None = _health(
        None, "Limit on the median latency of the network for one image, ms. Default: limit of the bundle's contract, if it has one.", gt=0
    )
    memory_mb: float | None = _health(
        None, "Limit on the memory of the self-test, MB (10^6 bytes). Default: 1074 MB and 8 times the size of the variant's files.", gt=0
    )
    tries: int = _health(3, "Number of crashes after which an unconfirmed release is rolled back.", ge=1, le=100)
    healthy_s: float = _health(60.0, "A release is confirmed when a process predicts this long after its start, seconds.", ge=0)
    healthy_predictions: int = _health(
        20, "A release is also confirmed after this number of predictions by processes that ended in order.", ge=1
    )

    def probation(self, max_latency_ms: float | None) -> Probation:
        """Return the probation of a new release."""
        return Probation(
            tries=self.tries, healthy_s=self.healthy_s, healthy_predictions=self.healthy_predictions, max_latency_ms=max_latency_ms
        )
