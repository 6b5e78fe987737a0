"""Executor of ``--on``: processes on this host, or a Ray cluster."""

from __future__ import annotations

import logging

from edgetl.core.system.host import available_cores
from edgetl.errors import ConfigError
from edgetl.executors.executor import Executor
from edgetl.executors.local import Local
from edgetl.executors.on_ray import Ray

LOCAL, RAY = "local", "ray"

_log = logging.getLogger(__name__)


def executor_on(on: str, processes: int | None, *, cpus: int = 1) -> Executor:
    """Return the executor. On this host, no more tasks run at the same time than its cores allow. The results are the same.

    Args:
        on: ``local``, ``ray`` for Ray on this host, or ``ray:HOST:PORT`` for a cluster.
        processes: number of processes on this host; none for a cluster.
        cpus: CPUs of each task.

    Raises:
        ConfigError: ``on`` has another value, a cluster has ``processes``, or this host has fewer cores than ``cpus``.
        MissingExtraError: ray is not installed.
    """
    name, _, address = on.partition(":")
    if on == LOCAL:
        return Local(_fitting(processes or 1, cpus))
    if name != RAY or on == f"{RAY}:":
        raise ConfigError(f"--on {on}: no such executor. Use local, ray, or ray:HOST:PORT with the address of a cluster.")
    if processes is not None:
        raise ConfigError("--processes is the number of processes on this host, but --on ray uses the CPUs of the cluster. Remove it.")
    return Ray(address or None, cpus=cpus)


def _fitting(processes: int, cpus: int) -> int:
    """Return the number of processes with ``cpus`` threads that the cores of this host allow, at most ``processes``."""
    cores = available_cores()
    if cpus > cores:
        raise ConfigError(f"--cpus-per-task {cpus}: this host has {cores} cores. Lower the number.")
    fitting = min(processes, cores // cpus)
    if fitting < processes:
        each = f" and tasks of {cpus} CPUs" if cpus > 1 else ""
        _log.warning("--processes %d: with %d cores%s, this host runs %d at the same time", processes, cores, each, fitting)
    return fitting
