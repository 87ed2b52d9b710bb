"""`/docs`: the OpenAPI document as a self-contained page.

The document, the script and the style are inline, and the content security policy allows nothing
else to be loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse

__all__ = ["add_docs_page"]

_PAGE = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """The hashes of the page's inline elements, for the content security policy."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", _PAGE, flags=re.DOTALL)
    digests = [b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
    ),
    "referrer-policy": "no-referrer",
}


def add_docs_page(app: FastAPI, *, guarded: bool) -> None:
    """Serve the application's OpenAPI document as a page.

    A guarded document is not in the page, which asks for the key and then for the document.
    """

    async def docs(request: Request) -> HTMLResponse:
        document = "null" if guarded else _embedded(app.openapi())
        return HTMLResponse(_PAGE.replace("DOCUMENT", document), headers=_HEADERS)

    app.add_route("/docs", docs, include_in_schema=False)


def _embedded(document: dict[str, Any]) -> str:
    """JSON that cannot close the page's script element."""
    return json.dumps(document).replace("<", "\\u003c")
