"""Virtual clock for measurements: it advances only by ``sleep`` and ``wait_until``."""

from __future__ import annotations


class VirtualClock:
    """Clock of a measurement (``edgetl.measure.latency.Clock``) without real time."""

    def __init__(self) -> None:
        self._now_ns = 0

    def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        self._now_ns += round(seconds * 1e9)

    def now_ns(self) -> int:
        """Return the virtual time, ns."""
        return self._now_ns

    def wait_until(self, moment_ns: int) -> None:
        """Advance the clock to ``moment_ns``, if it has not passed."""
        self._now_ns = max(self._now_ns, moment_ns)
