"""Command ``edgetl serve``."""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.access_log import access_log
from edgetl.cli.options import build, given, options_of, part
from edgetl.cli.session import VerboseOption, err, working
from edgetl.device.monitoring.config import MonitorConfig
from edgetl.errors import ConfigError, MissingExtraError
from edgetl.serve.config import ServeConfig

if TYPE_CHECKING:
    from edgetl.serve.protocol.models import Models


@options_of(MonitorConfig)
@options_of(ServeConfig)
def serve_command(
    context: typer.Context,
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders. Each one is a model with the name and release of its manifest.")],
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Serve bundles over HTTP in the Open Inference Protocol (KServe v2).

    The server also has a web page to try each model. Every bundle is verified before the server accepts requests.
    """
    if os.name == "nt":
        raise ConfigError(
            "edgetl serve needs Linux or macOS, because it uses their signals and sockets. On Windows, run it in a container."
        )
    for library in ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client"):
        if find_spec(library) is None:
            raise MissingExtraError(library, "serve")
    config = build(ServeConfig, **given(ServeConfig, context, part(ServeConfig, options)))
    monitoring = build(MonitorConfig, **given(MonitorConfig, context, part(MonitorConfig, options)))
    with working(json_output=False, verbose=verbose):
        from edgetl.device.monitoring.monitor import Monitor
        from edgetl.serve.run import serve

        if config.tls_cert and config.tls_key:
            # Imported here, because it takes 8 MB of memory that a server without TLS does not need.
            from edgetl.serve.tls import check_certificate

            if warning := check_certificate(config.tls_cert, config.tls_key):
                err.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)

        def started(models: Models) -> None:
            for model in models.all():
                joined = f", batches of up to {model.batch}" if model.batch > 1 else ""
                err.print(f"serving {escape(model.name)} {model.version} ({model.variant_name}{joined})", soft_wrap=True)
            err.print(f"listening on {config.url}", soft_wrap=True)

        with access_log(on=config.access_log), Monitor(monitoring) if monitoring.on else nullcontext() as monitor:
            serve(bundles, config, started=started, monitor=monitor)
