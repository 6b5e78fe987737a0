"""``edgetl serve``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from edgetl.cli.session import VerboseOption, err, working
from edgetl.core.host import available_cores
from edgetl.errors import ConfigError, MissingExtraError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles; each is a model, its name and release as its manifest says.")],
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine only with --insecure.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    variant: Annotated[str | None, typer.Option(help="Of every bundle (default: the first whose engine is installed).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Requests inferred at once, one thread each (default: every core).")] = None,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait beside those; more get 503.")] = 64,
    deadline_s: Annotated[float, typer.Option(help="A request that waited longer than this gets 504.")] = 10.0,
    max_body_mb: Annotated[float, typer.Option(help="Largest body, 10^6 bytes.")] = 16.0,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine, without a token and TLS.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Answer HTTP requests in the Open Inference Protocol (KServe v2). Every bundle is verified before the first one."""
    for library in ("starlette", "uvicorn", "prometheus_client"):
        if find_spec(library) is None:
            raise MissingExtraError(library, "serve")
    if host not in LOOPBACK and not insecure:
        raise ConfigError(f"--host {host} lets others than this machine in, and there is no token. Say so with --insecure.")
    with working(json_output=False, verbose=verbose):
        from edgetl.serve.http import Limits, Server
        from edgetl.serve.lane import Lane
        from edgetl.serve.models import open_models
        from edgetl.serve.run import listen

        models = open_models(bundles, variant=variant, threads=1)
        lane = Lane(workers=workers or available_cores(), queue=queue)
        server = Server(models, lane, Limits(max_body_bytes=int(max_body_mb * 1e6), deadline_s=deadline_s))
        for name in models.names:
            err.print(f"serving {escape(name)} {', '.join(models.versions(name))}", soft_wrap=True)
        listen(server, lane, host, port, started=lambda: err.print(f"listening on http://{host}:{port}", soft_wrap=True))
