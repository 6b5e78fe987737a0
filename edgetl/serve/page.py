"""Web page at ``/``: static files of this package. A content security policy allows only these files."""

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
    # The browser revalidates every file, so after an upgrade of the server a new page never loads an old script.
    "Cache-Control": "no-cache",
}


def page_paths() -> frozenset[str]:
    """Return the paths of the page's files. They need no token."""
    return frozenset(route.path for route in page_routes())


def page_routes() -> list[Route]:
    """Return the routes of the page's files.

    They hold no data of the server. A client without the token can therefore load the page, which then prompts for the token.
    """
    folder = files("edgetl.serve") / "page_files"
    media_types = {file.name: _TYPES.get(file.name.rpartition(".")[2]) for file in folder.iterdir()}
    return [
        Route("/" if name == "index.html" else f"/{name}", _file_endpoint((folder / name).read_bytes(), media_type), methods=["GET"])
        for name, media_type in sorted(media_types.items())
        if media_type
    ]


def _file_endpoint(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def send(request: Request) -> Response:
        cached = {part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")}
        if cached & {tag, "*"}:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return send
