"""How fast texts are looked up in the prefix cache, on one core: no model and no tensors.

    python -m benchmarks.cpu.prefix_lookups

A text has 520 tokens, which is 32 blocks and a tail. Known texts are found in all their blocks;
new ones get blocks of their own, at first blank ones and then those of evicted texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from millpond.scheduler.prefix_cache import PrefixCache

TOKENS = 520
BLOCKS_A_TEXT = 32
TEXTS = 500
ROUNDS = 9
OWNER = object()

Texts = npt.NDArray[np.int32]


def texts(seed: int) -> Texts:
    """Random ids, int32 [TEXTS, TOKENS]."""
    return np.random.default_rng(seed).integers(0, 150_000, (TEXTS, TOKENS), dtype=np.int32)


def look_up(cache: PrefixCache, batch: Texts) -> None:
    """Every text by itself, from claim to release."""
    for ids in batch:
        claim = cache.claim(ids, owner=OWNER)
        cache.commit(claim)
        cache.release(claim)


def rate(run: Callable[[int], None], texts_a_round: int) -> float:
    """Texts a second in the best round; other processes ran beside the rest."""
    best = float("inf")
    for number in range(ROUNDS):
        started = time.perf_counter()
        run(number)
        best = min(best, time.perf_counter() - started)
    return texts_a_round / best


def known_texts() -> float:
    """Texts a second when all blocks are found."""
    batch = texts(0)
    cache = PrefixCache(TEXTS * BLOCKS_A_TEXT)
    look_up(cache, batch)
    found = rate(lambda number: look_up(cache, batch), TEXTS)
    assert cache.stats.hit_tokens == ROUNDS * TEXTS * BLOCKS_A_TEXT * cache.block_tokens
    return found


def new_texts() -> float:
    """Texts a second when no block is found and the pool has blank ones."""
    batch = texts(0)
    caches = [PrefixCache(TEXTS * BLOCKS_A_TEXT) for _ in range(ROUNDS)]
    return rate(lambda number: look_up(caches[number], batch), TEXTS)


def evicting_texts() -> float:
    """Texts a second when no block is found and every new one is some other text's."""
    batches = [texts(number) for number in range(ROUNDS)]
    cache = PrefixCache(TEXTS * BLOCKS_A_TEXT)
    look_up(cache, texts(ROUNDS))
    evicting = rate(lambda number: look_up(cache, batches[number]), TEXTS)
    assert cache.stats.evictions == ROUNDS * TEXTS * BLOCKS_A_TEXT
    return evicting


def idle_check_s() -> float:
    """Seconds for the check of a cache full of texts."""
    cache = PrefixCache(TEXTS * BLOCKS_A_TEXT)
    look_up(cache, texts(0))
    return 1 / rate(lambda number: cache.check(idle=True), 1)


def main() -> None:
    print(f"{TEXTS} texts of {TOKENS} tokens, {BLOCKS_A_TEXT} blocks each; best of {ROUNDS} rounds")
    print(f"known texts      {known_texts():8,.0f} look-ups/s")
    print(f"new texts        {new_texts():8,.0f} look-ups/s")
    print(f"  evicting       {evicting_texts():8,.0f} look-ups/s")
    print(f"integrity check  {1000 * idle_check_s():8.1f} ms for {TEXTS * BLOCKS_A_TEXT:,} blocks")


if __name__ == "__main__":
    main()
