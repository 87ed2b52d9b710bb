"""`CrossOrigin`: pages of which origins may call, with refusals in OpenAI's shape."""

from __future__ import annotations

from fastapi import Response
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware

from ..errors import ApiError, error_response

__all__ = ["CrossOrigin"]

_KEPT = ("access-control-", "vary")


class CrossOrigin(CORSMiddleware):
    """Starlette's own, but for the body of a refused preflight."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        reason = bytes(answer.body).decode()
        return error_response(
            ApiError(
                400,
                f"{reason}: start the server with --cors-origin to let an origin's pages call",
                code="cors_refused",
                headers={
                    name: value
                    for name, value in answer.headers.items()
                    if name.lower().startswith(_KEPT)
                },
            )
        )
