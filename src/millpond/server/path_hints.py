"""`meant_path`: our route for an unknown path, such as another server's."""

from __future__ import annotations

import difflib

__all__ = ["meant_path"]

_LONGEST_GUESSED = 200
_KNOWN = (
    "/v1/embeddings",
    "/v1/models",
    "/similarity",
    "/rerank",
    "/score",
    "/classify",
    "/predict",
    "/embed_sparse",
    "/tokenize",
    "/detokenize",
    "/health",
    "/metrics",
    "/info",
    "/version",
    "/docs",
    "/openapi.json",
)
# The last part of a path of another server -> our route.
_ELSEWHERE = {
    "embed": "/v1/embeddings",  # Ollama's
    "embed_all": "/v1/embeddings",
    "embedding": "/v1/embeddings",
    "embeddings": "/v1/embeddings",
    "encode": "/v1/embeddings",
    "pooling": "/v1/embeddings",
    "reranking": "/rerank",
    "rank": "/rerank",
    "models": "/v1/models",
    "tags": "/v1/models",
    "healthz": "/health",
    "livez": "/health",
    "readyz": "/health",
    "ping": "/health",
    "live": "/health",
    "ready": "/health",
    "redoc": "/docs",
}


def meant_path(path: str) -> str | None:
    """Our route for an unknown path, or None."""
    if len(path) > _LONGEST_GUESSED:
        return None
    last = path.lower().rstrip("/").rpartition("/")[2]
    for known in _KNOWN:
        if path.lower().endswith(known):
            return known
    close = difflib.get_close_matches(path.lower(), _KNOWN, n=1, cutoff=0.75)
    return _ELSEWHERE.get(last) or (close[0] if close else None)
