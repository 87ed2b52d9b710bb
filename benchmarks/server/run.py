"""What the server costs: requests over HTTP beside the same calls of an engine in this process.

    python -m benchmarks.server.run                       # uses wrk where it is: apt install wrk

Figures, each the median over rounds of server ÷ engine, the two in turn within every round:

- 64 connections, one short text a request; at least 60 % is wanted. wrk asks the server, or a
  client in Python where there is no wrk; 64 tasks of one event loop ask the engine. Who asks takes
  a share of the same processors.
- one request of 256 texts at a time, as JSON floats and as base64; at least 90 %.

Before anything is timed the server's vectors are compared with the engine's, in the same dtype.
Writes `server.md` and `server.json` into the machine's folder of results. Exit status 1 where an
aim is missed. Flags it does not know go to the server.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from millpond import Engine

from ..cpu.workloads import passages, queries
from ..peers.agreement import Agreement, compare
from ..report.aims import Aim
from ..report.machine import default_folder, machine
from .http_load import GENERATOR, requests_per_second

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DTYPES = ("float32", "bfloat16")
CONNECTIONS = 64
TEXTS = 256
MANY, FLOATS, BASE64 = (
    f"{CONNECTIONS} connections, a short text each",
    f"{TEXTS} texts a request, floats",
    f"{TEXTS} texts a request, base64",
)
AIMS = {MANY: Aim(0.6, unit="%"), FLOATS: Aim(0.9, unit="%"), BASE64: Aim(0.9, unit="%")}
READY = "ready at "


@contextmanager
def server(*flags: str) -> Iterator[str]:
    """The address of a server process that is ready."""
    command = [sys.executable, "-m", "millpond.server", "--port", "0", *flags]
    process = subprocess.Popen([*command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = next((line for line in process.stderr if READY in line), None)
        if line is None:
            sys.exit("the server did not start")
        # Its log goes where a log goes: to a file that somebody else reads.
        subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        yield line.strip().partition(READY)[2]
    finally:
        process.terminate()
        process.wait()


class Client:
    """One connection that is kept open."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc)

    def post(self, body: bytes) -> bytes:
        """The whole answer, unread."""
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/embeddings", body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            sys.exit(f"the server answered {answer.status}: {content!r}")
        return content


def body_of(texts: str | list[str], **options: Any) -> bytes:
    return json.dumps({"input": texts, **options}).encode()


@dataclass(frozen=True)
class Round:
    """One figure, both sides, a few seconds each."""

    server: float
    """Requests a second."""
    engine: float
    """Calls a second."""

    @property
    def ratio(self) -> float:
        return self.server / self.engine


def check_agreement(client: Client, engine: Engine, texts: list[str]) -> Agreement:
    """Raises `Disagrees` where the server's vectors are not the engine's."""
    answer = json.loads(client.post(body_of(texts)))
    found = [item["embedding"] for item in answer["data"]]
    return compare(found, engine.embed(texts), engine.info().dtype)


def engine_calls_per_second(engine: Engine, texts: list[str], seconds: int) -> float:
    calls = 0

    async def caller(place: int, end_s: float) -> None:
        nonlocal calls
        while time.perf_counter() < end_s:
            await engine.aembed(texts[place % len(texts)])
            place += CONNECTIONS
            calls += 1

    async def all_callers() -> None:
        end_s = time.perf_counter() + seconds
        await asyncio.gather(*(caller(place, end_s) for place in range(CONNECTIONS)))

    started_s = time.perf_counter()
    asyncio.run(all_callers())
    return calls / (time.perf_counter() - started_s)


def per_second(call: Callable[[], object], seconds: int) -> float:
    """How often a second, one after the other."""
    calls, started_s = 0, time.perf_counter()
    while (passed_s := time.perf_counter() - started_s) < seconds:
        call()
        calls += 1
    return calls / passed_s


def measure(options: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    """Every figure in every round, with what they are of."""
    seconds: int = options.seconds
    short, long = queries(2000), passages(TEXTS)
    bodies = [body_of(text) for text in short]
    rounds: dict[str, list[Round]] = {}
    with (
        server("--dtype", options.dtype, *flags) as address,
        Engine(MODEL, dtype=options.dtype) as engine,
    ):
        client = Client(address)
        agreement = check_agreement(client, engine, [*short[:100], *long])
        print(f"the server's vectors are the engine's: {agreement}", flush=True)
        pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
            MANY: (
                lambda: requests_per_second(
                    address, bodies, connections=CONNECTIONS, seconds=seconds
                ),
                lambda: engine_calls_per_second(engine, short, seconds),
            ),
            FLOATS: (
                lambda: per_second(lambda: client.post(body_of(long)), seconds),
                lambda: per_second(lambda: engine.embed(long), seconds),
            ),
            BASE64: (
                lambda: per_second(
                    lambda: client.post(body_of(long, encoding_format="base64")), seconds
                ),
                lambda: per_second(lambda: engine.embed(long), seconds),
            ),
        }
        for turn in range(-1, options.rounds):  # the first warms up and does not count
            for name, (over_http, in_process) in pairs.items():
                found = Round(over_http(), in_process())
                if turn >= 0:
                    rounds.setdefault(name, []).append(found)
        dtype = engine.info().dtype
    return {
        "machine": machine(),
        "torch": torch.__version__,
        "dtype": dtype,
        "load_from": GENERATOR,
        "flags": list(flags),
        "seconds": seconds,
        "load_average": os.getloadavg(),
        "agreement": vars(agreement),
        "rounds": {name: [vars(one) for one in found] for name, found in rounds.items()},
    }


def ratio(found: Sequence[dict[str, float]]) -> float:
    """The median of the rounds' own."""
    return statistics.median(Round(**one).ratio for one in found)


def is_reached(results: dict[str, Any]) -> bool:
    """Whether every figure is where it is wanted."""
    return all(ratio(found) >= AIMS[name].limit for name, found in results["rounds"].items())


def table(results: dict[str, Any]) -> str:
    rows = [
        ("a second", "server", "engine", "server ÷ engine", "rounds", "wanted", ""),
        ("---",) * 7,
    ]
    for name, found in results["rounds"].items():
        ratios = [Round(**one).ratio for one in found]
        aim, median = AIMS[name], ratio(found)
        over_http, in_process = (
            f"{statistics.median(one[side] for one in found):.4g}" for side in ("server", "engine")
        )
        spread = f"{min(ratios):.0%} to {max(ratios):.0%}"
        share, judged = aim.written(median), aim.judged(median)
        rows.append((name, over_http, in_process, share, spread, str(aim), judged))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page(results: dict[str, Any]) -> str:
    """The table, and what it is of."""
    facts = results["machine"]
    count = len(results["rounds"][MANY])
    load = ", ".join(f"{value:.1f}" for value in results["load_average"])
    return (
        "# The server beside the engine\n\n"
        f"{facts['processor']}, {facts['cores']} cores; {facts['date']}; {facts['system']}, Python "
        f"{facts['python']}, torch {results['torch']}. all-MiniLM-L6-v2 in {results['dtype']}; "
        f"load from {results['load_from']}. Medians of {count} rounds of {results['seconds']} s; "
        f"load average at the end: {load}.\n\n{table(results)}\n"
    )


def write(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "server.md").write_text(page(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of both sides")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each figure in each round")
    parser.add_argument("--out", type=Path, help="a folder, instead of the machine's own")
    options, flags = parser.parse_known_args()
    print(f"load from {GENERATOR}", flush=True)
    results = measure(options, flags)
    folder = options.out or default_folder()
    write(results, folder)
    print(f"{table(results)}\n\nwritten to {folder}")
    sys.exit(0 if is_reached(results) else 1)


if __name__ == "__main__":
    main()
