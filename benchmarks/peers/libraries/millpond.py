"""`Engine.embed` with nothing set but the precision."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Embedder, Peer


class MillpondPeer(Embedder):
    """One engine; every caller uses it as it is meant to be used."""

    def __init__(self, folder: Path, *, dtype: Any) -> None:
        from millpond import Engine

        self._engine = Engine(folder, device="cpu", dtype=dtype)

    def embed(self, texts: list[str]) -> Any:
        return self._engine.embed(texts)

    def query(self, text: str) -> Any:
        return self._engine.embed(text)

    async def aembed(self, texts: list[str]) -> Any:
        return await self._engine.aembed(texts)

    async def aquery(self, text: str) -> Any:
        return await self._engine.aembed(text)

    def tokens(self) -> tuple[int, int] | None:
        stats = self._engine.stats()
        return stats.tokens, stats.tokens + stats.padded_tokens

    def close(self) -> None:
        self._engine.close()


PEERS = (
    Peer(
        "millpond auto",
        partial(MillpondPeer, dtype="auto"),
        "`Engine.embed` at its defaults: bfloat16 where the processor has it",
        precision="bfloat16",
    ),
    Peer(
        "millpond int8",
        partial(MillpondPeer, dtype="int8"),
        '`dtype="int8"`: linear layers in int8, the rest as with `auto`',
        precision="int8",
    ),
    Peer("millpond float32", partial(MillpondPeer, dtype="float32"), '`dtype="float32"`'),
)
