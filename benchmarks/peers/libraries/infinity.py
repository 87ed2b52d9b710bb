"""infinity's engine inside the process, without its server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Embedder, Peer


class InfinityPeer(Embedder):
    """`SyncEngineArray` at its defaults on torch, with its own loop and queue."""

    def __init__(self, folder: Path) -> None:
        from infinity_emb import EngineArgs
        from infinity_emb.sync_engine import SyncEngineArray

        self._name = str(folder)
        self._engines = SyncEngineArray([self._arguments(EngineArgs)])

    def _arguments(self, make: Any) -> Any:
        # BetterTransformer needs an optimum of its time, which no longer installs beside the rest.
        return make(
            model_name_or_path=self._name,
            served_model_name=self._name,
            engine="torch",
            device="cpu",
            bettertransformer=False,
        )

    def embed(self, texts: list[str]) -> Any:
        vectors, _ = self._engines.embed(model=self._name, sentences=texts).result()
        return vectors

    def query(self, text: str) -> Any:
        return self.embed([text])[0]


PEERS = (
    Peer(
        "infinity_emb",
        InfinityPeer,
        '`SyncEngineArray`, `engine="torch"`, at its defaults but `bettertransformer=False`',
        environment="infinity",
    ),
)
