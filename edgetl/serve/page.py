"""The page for people at ``/``: plain files of this package, read once, under a policy that lets nothing else in."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    # Kept, but asked about each time: after an upgrade of the server no old script meets a new page.
    "Cache-Control": "no-cache",
}


def page_paths() -> frozenset[str]:
    """The addresses of the page and of what it loads, which ask for no token."""
    return frozenset(route.path for route in page_routes())


def page_routes() -> list[Route]:
    """The page and what it loads. It holds no data of the server's, so that whoever may not ask the server still sees its question for the
    token."""
    folder = files("edgetl.serve") / "page_files"
    kinds = {file.name: _TYPES.get(file.name.rpartition(".")[2]) for file in folder.iterdir()}
    return [
        Route("/" if name == "index.html" else f"/{name}", _sends((folder / name).read_bytes(), kind), methods=["GET"])
        for name, kind in sorted(kinds.items())
        if kind
    ]


def _sends(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def send(request: Request) -> Response:
        known = {part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")}
        if known & {tag, "*"}:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return send
