"""``edgetl serve``."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from edgetl.cli.access_log import access_log
from edgetl.cli.session import VerboseOption, err, working
from edgetl.core.system.host import available_cores
from edgetl.errors import ConfigError, MissingExtraError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles; each is a model, its name and release as its manifest says.")],
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine with a token and TLS, or --insecure.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    variant: Annotated[str | None, typer.Option(help="Variant of every bundle (default: the first whose engine is installed).")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes; each loads every bundle.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Requests computed at once in each (default: cores / processes).")] = None,
    batch: Annotated[int, typer.Option(min=0, max=64, help="Images computed together under load; 0 measures whether it pays.")] = 0,
    queue_size: Annotated[int, typer.Option("--queue", min=0, help="Requests that may wait beside those; more get 503.")] = 64,
    deadline_s: Annotated[float, typer.Option(min=0.001, help="A request that waited longer than this gets 504.")] = 10.0,
    hang_s: Annotated[float, typer.Option(min=0.1, help="A worker that computes longer than this is replaced.")] = 30.0,
    max_body_mb: Annotated[float, typer.Option(min=0.001, max=1000, help="Largest body, 10^6 bytes.")] = 16.0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Load a bundle anew when its path leads to another (SIGHUP does it once).")
    ] = False,
    token_file: Annotated[Path | None, typer.Option(help="A file with the token that clients must send.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM; with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without a token or without TLS.")] = False,
    log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="A line of JSON for each request, on the standard output.")
    ] = True,
    verbose: VerboseOption = False,
) -> None:
    """Answer HTTP requests in the Open Inference Protocol (KServe v2), and show a page to try it. Bundles are proven before the first."""
    if os.name == "nt":
        raise ConfigError("edgetl serve needs Linux or macOS: it uses their signals and socket pairs. On Windows run it in a container.")
    for library in ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client"):
        if find_spec(library) is None:
            raise MissingExtraError(library, "serve")
    _guard(host, token=token_file is not None, tls=tls_cert is not None, insecure=insecure)
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("--tls-cert and --tls-key are given together.")
    with working(json_output=False, verbose=verbose):
        from edgetl.serve.connections.middleware import read_token
        from edgetl.serve.protocol.models import Models
        from edgetl.serve.routes import Limits
        from edgetl.serve.run import Address, serve
        from edgetl.serve.service import Staff
        from edgetl.serve.workers.worker import Order

        each = threads or max(1, available_cores() // processes)
        limits = Limits(max_body_bytes=int(max_body_mb * 1e6), requests=processes * each + queue_size, deadline_s=deadline_s)
        token = read_token(token_file) if token_file else None
        certificate = (tls_cert, tls_key) if tls_cert and tls_key else None
        if certificate:
            # Here and not above: it takes 8 MB that a server without TLS does without.
            from edgetl.serve.tls import check_certificate

            if warning := check_certificate(*certificate):
                err.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
        address = Address(host, port, token, certificate)

        def started(models: Models) -> None:
            for model in models.all():
                joined = f", waiting images computed {model.batch} at a time" if model.batch > 1 else ""
                err.print(f"serving {escape(model.name)} {model.version} ({model.variant_name}{joined})", soft_wrap=True)
            err.print(f"listening on {address.url}", soft_wrap=True)

        with access_log(on=log):
            order = Order(tuple(bundles), variant, each, batch, limits.max_body_bytes)
            serve(order, Staff(processes, hang_s), limits, address, watch=watch, started=started)


def _guard(host: str, *, token: bool, tls: bool, insecure: bool) -> None:
    """Nobody beyond this machine is let in by accident."""
    if host in LOOPBACK or insecure or (token and tls):
        return
    missing = " and ".join(name for name, given in (("--token-file", token), ("--tls-cert with --tls-key", tls)) if not given)
    raise ConfigError(
        f"--host {host} lets others than this machine in. Add {missing}, or say --insecure (as behind a gateway that checks who comes)."
    )
