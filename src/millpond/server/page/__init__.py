"""The page at `/`: a form to try the models, and meters. Plain files, of this folder alone.

It holds nothing of the server: what it shows it asks the routes for, with the key that it is given.
"""

from __future__ import annotations

import html
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response

__all__ = ["PAGES", "add_page"]

_FOLDER = Path(__file__).parent
_ROOT = "ROOT"  # in the page, the prefix under which a proxy publishes the server
_TYPES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
PAGES = ("/", *(f"/static/{name}" for name in _TYPES))
"""The paths of the page, which need no key."""
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def add_page(app: FastAPI, root_path: str) -> None:
    """Serve the page and its files."""
    page = (_FOLDER / "index.html").read_text(encoding="utf-8")
    _add_file(app, "/", page.replace(_ROOT, html.escape(root_path)), "text/html")
    for name, media_type in _TYPES.items():
        _add_file(app, f"/static/{name}", (_FOLDER / name).read_text(encoding="utf-8"), media_type)


def _add_file(app: FastAPI, path: str, content: str, media_type: str) -> None:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    app.add_route(path, answer, methods=["GET"], include_in_schema=False)
