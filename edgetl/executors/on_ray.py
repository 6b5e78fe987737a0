"""Executor on a Ray cluster (Ray core): one task for each item, on any host of the cluster. Only this module imports ray."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgetl.core.system.host import versions
from edgetl.errors import ConfigError, EdgetlError, EngineError, MissingExtraError, error_of, first_line
from edgetl.executors.executor import RETRIES, Failure, Item, Result

_log = logging.getLogger(__name__)

# Interval between two readings of the cluster's size, seconds.
_POLL_S = 1.0


class Ray:
    """Executor on a Ray cluster (see ``Executor``). One CPU of the cluster is left free for the driver.

    A task whose host or process fails is run again, on another host if there is one. A task runs in the working directory of the driver:
    all hosts share a file system, and have the same version of edgetl. Usage statistics and the dashboard of Ray are off.

    Args:
        address: address of the cluster's head, ``HOST:PORT``; none starts Ray on this host for the duration of ``map``.
        cpus: CPUs of each task.
        retries: attempts after the first one.

    Raises:
        MissingExtraError: ray is not installed.
    """

    def __init__(self, address: str | None = None, *, cpus: int = 1, retries: int = RETRIES) -> None:
        if find_spec("ray") is None:
            raise MissingExtraError("ray", "ray")
        self._address, self._cpus, self._retries = address, cpus, retries

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], /, *, failed: Callable[[Item, EngineError], Result] | None = None
    ) -> Iterator[Result]:
        """Yield the results in the order of the items. Arguments and errors as in ``Executor.map``.

        Raises:
            ConfigError: the cluster cannot be reached, or none of its hosts has the CPUs of a task.
        """
        with _connected(self._address, self._retries) as ray:
            self._check_hosts(ray)
            options = {"num_cpus": self._cpus, "max_retries": self._retries, "retry_exceptions": True, "scheduling_strategy": "SPREAD"}
            run = ray.remote(**options)(_outcome)
            driver = str(Path.cwd()), versions()["edgetl"]
            waiting = deque(range(len(items)))
            running: dict[Any, int] = {}
            results: dict[int, Any] = {}
            for index in range(len(items)):
                while index not in results:
                    # Hosts join and fail meanwhile.
                    while waiting and len(running) < max(1, (int(ray.cluster_resources().get("CPU", 0)) - 1) // self._cpus):
                        place = waiting.popleft()
                        running[run.remote([ray.put((function, items[place]))], *driver)] = place
                    finished, _ = ray.wait(list(running), timeout=_POLL_S)
                    for reference in finished:
                        place = running.pop(reference)
                        try:
                            results[place] = self._result(ray, reference)
                        except EngineError as error:
                            if failed is None:
                                raise
                            results[place] = failed(items[place], error)
                yield results.pop(index)

    def _check_hosts(self, ray: Any) -> None:
        """Check that a task can start. One with one CPU waits for hosts that join later.

        Raises:
            ConfigError: all hosts have too few CPUs.
        """
        largest = max((int(host["Resources"].get("CPU", 0)) for host in ray.nodes() if host["Alive"]), default=0)
        if not largest:
            _log.warning("the Ray cluster has no CPUs yet: the tasks start when a host joins")
        if 0 < largest < self._cpus:
            raise ConfigError(f"--cpus-per-task {self._cpus}: the largest host of the Ray cluster has {largest} CPUs. Lower the number.")

    def _result(self, ray: Any, reference: Any) -> Any:
        try:
            outcome = ray.get(reference)
        except ray.exceptions.RayError as error:
            raise EngineError(
                f"a task failed {self._retries + 1} times on the Ray cluster: {first_line(error)} Look at the logs of the cluster."
            ) from error
        if isinstance(outcome, Failure):
            raise error_of(outcome.kind, outcome.message)
        return outcome


def _outcome(task: list[Any], folder: str, version: str) -> Any:
    """Run a task on a worker, in the working directory of the driver.

    Args:
        task: reference to the function and the item. Ray resolves arguments before the call, but not references in a list, so that
            the version is checked first: another version may have other classes.
        folder: working directory of the driver.
        version: version of edgetl of the driver.
    """
    if unsuitable := _enter(folder, version):
        return unsuitable
    try:
        function, item = importlib.import_module("ray").get(task[0])
        return function(item)
    except EdgetlError as error:
        return Failure(type(error).__name__, f"host {socket.gethostname()}: {error}")


def _enter(folder: str, version: str) -> Failure | None:
    """Check the version of this host, and change to ``folder``. Return the reason if one of both is not possible."""
    host, found = socket.gethostname(), versions()["edgetl"]
    if found != version:
        return Failure(
            ConfigError.__name__, f"the host {host} has edgetl {found}, and this host {version}. Install the same version on all hosts."
        )
    try:
        os.chdir(folder)
    except OSError as error:
        return Failure(
            ConfigError.__name__,
            f"the host {host} cannot use the working directory {folder}: {error.strerror}. Start the command in a folder that all hosts "
            f"share, with the images and --out.",
        )
    return None


@contextmanager
def _connected(address: str | None, retries: int) -> Iterator[Any]:
    """Connect to a cluster, or start Ray on this host. Yield the module ``ray``. At the end, running tasks are stopped.

    Raises:
        ConfigError: the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # By default, Ray repeats a task without end if it needs more memory than a host has.
    os.environ.setdefault("RAY_task_oom_retries", str(retries))
    ray = importlib.import_module("ray")
    options = {} if address else {"include_dashboard": False}
    # Ray prints messages about failed hosts, the last ones in shutdown, on the standard output, which has the result.
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the Ray cluster at {address} cannot be reached: {first_line(error)} Start it with ray start --head, and give the address "
                f"of its head: --on ray:10.0.0.1:6379."
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()
