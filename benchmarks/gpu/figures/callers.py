"""Many callers at a time, each asking again when answered: on an event loop, and in threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sentence_transformers import SentenceTransformer

CALLERS = 64
Ask = Callable[[str], Awaitable[Any]]


@dataclass(frozen=True)
class Asked:
    """What the callers saw."""

    per_second: float
    latencies_s: Sequence[float]


def _shares(queries: Sequence[str], callers: int = CALLERS) -> list[Sequence[str]]:
    return [queries[i::callers] for i in range(callers)]


def on_a_loop(queries: Sequence[str], ask: Ask, callers: int = CALLERS) -> Asked:
    """All callers as coroutines of one event loop."""
    latencies: list[float] = []

    async def call(mine: Sequence[str]) -> None:
        for query in mine:
            since = time.perf_counter()
            await ask(query)
            latencies.append(time.perf_counter() - since)

    async def everybody() -> float:
        since = time.perf_counter()
        await asyncio.gather(*map(call, _shares(queries, callers)))
        return time.perf_counter() - since

    return Asked(len(queries) / asyncio.run(everybody()), latencies)


def in_threads(queries: Sequence[str], embed: Callable[[str], Any]) -> Asked:
    """Every caller a thread of its own."""
    latencies: list[float] = []
    barrier = threading.Barrier(CALLERS + 1)

    def call(mine: Sequence[str]) -> None:
        barrier.wait()
        for query in mine:
            since = time.perf_counter()
            embed(query)
            latencies.append(time.perf_counter() - since)

    threads = [threading.Thread(target=call, args=(s,), daemon=True) for s in _shares(queries)]
    for thread in threads:
        thread.start()
    barrier.wait()
    since = time.perf_counter()
    for thread in threads:
        thread.join()
    return Asked(len(queries) / (time.perf_counter() - since), latencies)


def as_the_incumbents_ask(peer: SentenceTransformer) -> Ask:
    """What `aembed_query` of HuggingFaceEmbeddings and HuggingFaceEmbedding comes to: `encode` of
    one text in a thread of the event loop's own executor, and its vector as a list."""

    def encode(query: str) -> list[float]:
        vectors = peer.encode([query], show_progress_bar=False)
        found: list[float] = vectors[0].tolist()
        return found

    async def ask(query: str) -> list[float]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, partial(encode, query))

    return ask


def incumbents(folder: str, device: str, dtype: Any) -> tuple[dict[str, Ask], list[str]]:
    """The adapters themselves, by name, and why some of them are not here."""
    found: dict[str, Ask] = {}
    errors = []
    for name, load in (("HuggingFaceEmbeddings", _langchain), ("HuggingFaceEmbedding", _llama)):
        try:
            found[name] = load(folder, device, dtype)
        except Exception as error:  # not installed, or another version than this knows
            errors.append(f"{name}: {type(error).__name__}: {error}")
    return found, errors


def _langchain(folder: str, device: str, dtype: Any) -> Ask:
    from langchain_huggingface import HuggingFaceEmbeddings

    options = {"device": device, "model_kwargs": {"dtype": dtype}}
    adapter: Ask = HuggingFaceEmbeddings(model=folder, model_kwargs=options).aembed_query
    return adapter


def _llama(folder: str, device: str, dtype: Any) -> Ask:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    options = {"dtype": dtype}
    model = HuggingFaceEmbedding(model_name=folder, device=device, model_kwargs=options)
    adapter: Ask = model.aget_query_embedding
    return adapter
