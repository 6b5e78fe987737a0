"""Configuration of the HTTP server: address, workers, limits of requests, access."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Self

from pydantic import model_validator

from edgetl.core.config import StrictModel
from edgetl.core.options import COMMON, option_field
from edgetl.core.system.host import available_cores
from edgetl.errors import ConfigError

_common = partial(option_field, panel=COMMON)
_workers = partial(option_field, panel="Workers")
_limits = partial(option_field, panel="Request limits")
_security = partial(option_field, panel="Security")
_operation = partial(option_field, panel="Operation")

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServeConfig(StrictModel):
    """Options of ``edgetl serve``."""

    host: str = _common(
        "127.0.0.1",
        "Address to listen on. 0.0.0.0 accepts other hosts and needs a token and TLS, or --insecure.",
        metavar="ADDRESS",
    )
    port: int = _common(8000, "TCP port to listen on.", ge=1, le=65535)
    variant: str | None = _common(
        None,
        "Variant of each bundle to run, such as onnx-int8. Default: the tuned one of a store, or the first with an installed engine.",
        metavar="NAME",
    )
    processes: int = _workers(1, "Worker processes. Each one loads every bundle.", ge=1)
    threads: int | None = _workers(
        None,
        "Requests that each worker computes at the same time. Default: CPU cores / --processes, divided by the tuned threads of a store.",
        ge=1,
    )
    batch: int = _workers(
        0,
        "Largest batch of waiting images from different requests, 0..64. 1 is off; 0 measures at the start whether batches are faster.",
        ge=0,
        le=64,
    )
    queue: int = _limits(64, "Requests that can wait for a worker. Further requests are rejected with HTTP status 503.", ge=0)
    deadline_s: float = _limits(10.0, "Longest wait of a request, seconds. Then it is rejected with HTTP status 504.", ge=0.001)
    hang_s: float = _limits(30.0, "Longest computation of a request, seconds. Then the worker process is replaced.", ge=0.1)
    max_body_mb: float = _limits(16.0, "Largest request body, MB (10^6 bytes), before and after decompression.", ge=0.001, le=1000)
    token_file: Path | None = _security(None, "File with the bearer token that clients must send.")
    tls_cert: Path | None = _security(None, "TLS certificate chain, PEM. Needs --tls-key.")
    tls_key: Path | None = _security(None, "Private key of --tls-cert, PEM.")
    insecure: bool = _security(False, "Accept other hosts without a token or without TLS, for instance behind a gateway.")
    watch: bool = _operation(
        False,
        "Reload a bundle when its manifest or gallery changes, or a store has a new release or tuning. The signal SIGHUP reloads once.",
    )
    access_log: bool = _operation(True, "Access log on standard output: one line of JSON per request.")

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key need each other. Add the missing one.")
        protection = {"--token-file": self.token_file, "--tls-cert with --tls-key": self.tls_cert}
        missing = " and ".join(option for option, value in protection.items() if value is None)
        if missing and self.host not in LOOPBACK and not self.insecure:
            raise ConfigError(
                f"--host {self.host} lets other hosts connect. Add {missing}, or add --insecure (behind a gateway that checks clients)."
            )
        return self

    def worker_threads(self, inference_threads: int = 1) -> int:
        """Return the number of requests that each worker computes at the same time, each with ``inference_threads`` threads."""
        return self.threads or max(1, available_cores() // (self.processes * inference_threads))

    def max_requests(self, worker_threads: int) -> int:
        """Return the largest number of admitted requests: computed and waiting."""
        return self.processes * worker_threads + self.queue

    @property
    def max_body_bytes(self) -> int:
        """Largest request body, bytes."""
        return int(self.max_body_mb * 1e6)

    @property
    def url(self) -> str:
        """Address of the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls_cert else ''}://{host}:{self.port}"
