"""Executor of ``--on``: processes on this host, or a Ray cluster."""

from __future__ import annotations

from edgetl.errors import ConfigError
from edgetl.executors.executor import Executor
from edgetl.executors.local import Local
from edgetl.executors.on_ray import Ray

LOCAL, RAY = "local", "ray"


def executor_on(on: str, processes: int) -> Executor:
    """Return the executor.

    Args:
        on: ``local``, ``ray`` for Ray on this host, or ``ray:HOST:PORT`` for a cluster.
        processes: number of processes on this host.

    Raises:
        ConfigError: ``on`` has another value.
    """
    name, _, address = on.partition(":")
    if on == LOCAL:
        return Local(processes)
    if name == RAY:
        return Ray(address or None)
    raise ConfigError(f"--on {on}: no such executor. Use local, ray, or ray:HOST:PORT with the address of a cluster.")
