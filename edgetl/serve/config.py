"""Configuration of the HTTP server: address, workers, limits of requests, access."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from edgetl.core.config import StrictModel
from edgetl.core.system.host import available_cores
from edgetl.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServeConfig(StrictModel):
    """Options of ``edgetl serve``."""

    host: str = Field(
        default="127.0.0.1", description="Address to listen on. Other hosts can connect with a token and TLS, or with --insecure."
    )
    port: int = Field(default=8000, ge=1, le=65535, description="TCP port to listen on.")
    variant: str | None = Field(default=None, description="Variant of every bundle (default: the first whose engine is installed).")
    processes: int = Field(default=1, ge=1, description="Worker processes. Each loads every bundle.")
    threads: int | None = Field(default=None, ge=1, description="Requests computed at once per worker (default: cores / processes).")
    batch: int = Field(default=0, ge=0, le=64, description="Batch size under load. 0 measures at the start whether batches pay.")
    queue: int = Field(default=64, ge=0, description="Requests that may wait for a worker. More are rejected with 503.")
    deadline_s: float = Field(default=10.0, ge=0.001, description="Longest wait of a request, seconds, before it is rejected with 504.")
    hang_s: float = Field(default=30.0, ge=0.1, description="Longest computation, seconds, before the worker is replaced.")
    max_body_mb: float = Field(default=16.0, ge=0.001, le=1000, description="Largest body of a request, 10^6 bytes, also decompressed.")
    watch: bool = Field(default=False, description="Reload a bundle when its path leads to another manifest. SIGHUP reloads once.")
    token_file: Path | None = Field(default=None, description="File with the bearer token that clients must send.")
    tls_cert: Path | None = Field(default=None, description="TLS certificate chain, PEM. Needs --tls-key.")
    tls_key: Path | None = Field(default=None, description="Private key of --tls-cert, PEM.")
    insecure: bool = Field(default=False, description="Accept connections of other hosts without a token or without TLS.")
    access_log: bool = Field(default=True, description="Access log: one line of JSON per request on the standard output.")

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        """Other hosts get access on purpose only."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key are given together.")
        protection = {"--token-file": self.token_file, "--tls-cert with --tls-key": self.tls_cert}
        missing = " and ".join(option for option, value in protection.items() if value is None)
        if missing and self.host not in LOOPBACK and not self.insecure:
            raise ConfigError(
                f"--host {self.host} lets other hosts connect. Add {missing}, or add --insecure (behind a gateway that checks clients)."
            )
        return self

    @property
    def worker_threads(self) -> int:
        """Requests computed at once in each worker."""
        return self.threads or max(1, available_cores() // self.processes)

    @property
    def max_requests(self) -> int:
        """Requests admitted at once: those that are computed, and the queue."""
        return self.processes * self.worker_threads + self.queue

    @property
    def max_body_bytes(self) -> int:
        """Largest body, bytes."""
        return int(self.max_body_mb * 1e6)

    @property
    def url(self) -> str:
        """Address of the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls_cert else ''}://{host}:{self.port}"
