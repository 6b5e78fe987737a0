"""Executor of ``--on``: processes on this host, or a Ray cluster."""

from __future__ import annotations

from edgetl.errors import ConfigError
from edgetl.executors.executor import Executor
from edgetl.executors.local import Local
from edgetl.executors.on_ray import Ray

LOCAL, RAY = "local", "ray"


def executor_on(on: str, processes: int | None, *, cpus: int = 1) -> Executor:
    """Return the executor.

    Args:
        on: ``local``, ``ray`` for Ray on this host, or ``ray:HOST:PORT`` for a cluster.
        processes: number of processes on this host; none for a cluster.
        cpus: CPUs of each task on a cluster.

    Raises:
        ConfigError: ``on`` has another value, or a cluster has ``processes``.
        MissingExtraError: ray is not installed.
    """
    name, _, address = on.partition(":")
    if on == LOCAL:
        return Local(processes or 1)
    if name != RAY or on == f"{RAY}:":
        raise ConfigError(f"--on {on}: no such executor. Use local, ray, or ray:HOST:PORT with the address of a cluster.")
    if processes is not None:
        raise ConfigError("--processes is the number of processes on this host, but --on ray uses the CPUs of the cluster. Remove it.")
    return Ray(address or None, cpus=cpus)
