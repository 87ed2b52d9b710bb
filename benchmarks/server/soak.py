"""A minute of load on the server: no error, no lost or swapped answer, and level memory.

    python -m benchmarks.server.soak

200 connections send requests of mixed sizes one after the other, and every vector of every answer
is compared with the one the engine in this process has for the same text, in the same dtype. Exit
status 1 where anything is wrong. Flags it does not know go to the server.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import numpy as np
import numpy.typing as npt

from millpond import Engine

from ..cpu.workloads import passages, queries
from ..peers.agreement import Disagrees, compare
from ..peers.peer import Precision
from .run import DTYPES, MODEL, server

SIZES = (1,) * 12 + (2, 3, 5, 8, 16, 32)  # texts of a request, drawn at random
LEVEL = 0.10  # what memory may grow by from the middle to the end
PATIENCE_S = 120.0
RESIDENT = "process_resident_memory_bytes "


@dataclass
class Load:
    """What is sent, what must come back, and what came."""

    address: str
    texts: list[str]
    vectors: npt.NDArray[np.float32]
    precision: Precision
    seconds: float
    answers: Counter[str] = field(default_factory=Counter)
    texts_answered: int = 0
    resident: list[tuple[float, float]] = field(
        default_factory=list
    )  # seconds since the start, bytes

    async def run(self, connections: int) -> None:
        limits = httpx.Limits(max_connections=connections + 1)
        async with httpx.AsyncClient(
            base_url=self.address, limits=limits, timeout=PATIENCE_S
        ) as client:
            started_s = time.perf_counter()
            watching = asyncio.ensure_future(self._watch(client, started_s))
            await asyncio.gather(
                *(self._ask(client, seed, started_s) for seed in range(connections))
            )
            watching.cancel()

    async def _ask(self, client: httpx.AsyncClient, seed: int, started_s: float) -> None:
        draw = random.Random(seed)
        while time.perf_counter() - started_s < self.seconds:
            places = draw.sample(range(len(self.texts)), draw.choice(SIZES))
            self.answers[await self._outcome(client, places, draw)] += 1
            self.texts_answered += len(places)

    async def _outcome(
        self, client: httpx.AsyncClient, places: list[int], draw: random.Random
    ) -> str:
        body = {"input": [self.texts[place] for place in places]}
        try:
            answer = await client.post("/v1/embeddings", json=body)
        except httpx.HTTPError as error:
            return type(error).__name__
        if answer.status_code != 200:
            return str(answer.status_code)
        data = answer.json()["data"]
        found = np.array([item["embedding"] for item in data], dtype=np.float32)
        if found.shape != self.vectors[places].shape:
            return "lost"
        try:
            compare(found, self.vectors[places], self.precision)
        except Disagrees:
            return "swapped or wrong"
        return "right"

    async def _watch(self, client: httpx.AsyncClient, started_s: float) -> None:
        while True:
            lines = (await client.get("/metrics")).text.splitlines()
            resident = next(line for line in lines if line.startswith(RESIDENT))
            now_s = time.perf_counter() - started_s
            self.resident.append((now_s, float(resident.removeprefix(RESIDENT))))
            await asyncio.sleep(0.5)

    def resident_around(self, share: float) -> float:
        """Median resident bytes in the sixth of the time that ends or lies around `share` of it."""
        start_s, stop_s = (share - 1 / 12) * self.seconds, (share + 1 / 12) * self.seconds
        return statistics.median(b for at_s, b in self.resident if start_s <= at_s <= stop_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of both sides")
    options, flags = parser.parse_known_args()
    texts = list(dict.fromkeys([*queries(800), *passages(100)]))
    with Engine(MODEL, dtype=options.dtype) as engine:
        vectors, precision = engine.embed(texts), engine.info().dtype
    with server("--dtype", options.dtype, *flags) as address:
        load = Load(address, texts, vectors, precision, options.seconds)
        asyncio.run(load.run(options.connections))
    middle, end = load.resident_around(0.5), load.resident_around(11 / 12)
    growth = end / middle - 1
    print(f"{sum(load.answers.values())} answers, {load.texts_answered} texts: {load.answers}")
    print(f"memory: {middle / 2**20:.0f} MiB in the middle, {end / 2**20:.0f} at the end")
    print(f"growth {growth:+.1%}")
    if set(load.answers) != {"right"} or growth > LEVEL:
        sys.exit(1)


if __name__ == "__main__":
    main()
