"""What a file in `libraries/` says about itself, and what a loaded peer can do.

It knows no library: every process of the benchmark reads all the peer files, and a peer's own
libraries are installed in its own environment only. So peer files import those when loading.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "libraries"
FIRST = ("sentence-transformers", "millpond auto", "millpond float32")
Precision = Literal["float32", "bfloat16", "int8"]


class Embedder:
    """A loaded model. Its calls may come from many threads at once."""

    def embed(self, texts: list[str]) -> Any:
        """Vectors `[n, dim]`, in one call for ingestion."""
        raise NotImplementedError

    def query(self, text: str) -> Any:
        """One vector `[dim]`, for somebody who waits."""
        raise NotImplementedError

    async def aembed(self, texts: list[str]) -> Any:
        """`embed` from an event loop; in a thread where the library has nothing better."""
        return await _in_thread(partial(self.embed, texts))

    async def aquery(self, text: str) -> Any:
        """`query` from an event loop; in a thread where the library has nothing better."""
        return await _in_thread(partial(self.query, text))

    def index(self, texts: list[str]) -> Any:
        """A vector index over the texts, where the library is one that builds them."""
        raise NotImplementedError

    def closest(self, texts: list[str], queries: list[str], count: int) -> list[list[int]]:
        """The numbers of the texts that an index finds for each query, best first."""
        raise NotImplementedError

    def tokens(self) -> tuple[int, int] | None:
        """Tokens of texts and tokens computed since loading; None where it cannot be counted."""
        return None

    def close(self) -> None:
        """Give the model back."""


async def _in_thread(call: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, call)


@dataclass(frozen=True)
class Peer:
    """One column of the results."""

    name: str
    load: Callable[[Path], Embedder]
    """From the folder that `model.py` prepares."""
    about: str
    """What is called, and with which settings."""
    precision: Precision = "float32"
    """That of the matrix products; decides what its vectors are held to."""
    environment: str = "common"
    """The file in `requirements/` that lists what it needs."""
    in_full_run: bool = True
    """Whether `run.py` measures it; `adapters.py` measures every peer of its files."""


def read(path: Path) -> tuple[Peer, ...]:
    """The peers of one file."""
    spec = importlib.util.spec_from_file_location(f"benchmark_peer_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(module.PEERS)


def read_all(folder: Path = FOLDER) -> dict[str, tuple[Peer, Path]]:
    """Every peer by name, with the file it is in; the reference first, Millpond next."""
    found = {peer.name: (peer, path) for path in sorted(folder.glob("*.py")) for peer in read(path)}
    first = [name for name in FIRST if name in found]
    return {name: found[name] for name in dict.fromkeys([*first, *found])}
