"""What the server costs: requests over HTTP beside the same calls of an engine in this process.

    python benchmarks/server.py                       # needs wrk: apt install wrk

Two figures, each the median over rounds of server ÷ engine, the two in turn within every round:

- 64 connections, one short text a request. wrk asks the server; 64 tasks of one event loop ask the
  engine. wrk takes its share of the same processors.
- one request of 256 texts at a time, as JSON floats and as base64.

Before anything is timed the server's vectors are compared with the engine's.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from millpond import Engine

sys.path.insert(0, str(Path(__file__).parent))
from workloads import passages, queries

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
CONNECTIONS = 64
READY = "ready at "
WRK_SCRIPT = """
local bodies = {}
for line in io.lines("%s") do bodies[#bodies + 1] = line end
local headers = { ["Content-Type"] = "application/json" }
local turn = 0
request = function()
  turn = turn + 1
  return wrk.format("POST", "/v1/embeddings", headers, bodies[turn %% #bodies + 1])
end
"""


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


def check_agreement(client: Client, engine: Engine, texts: list[str]) -> None:
    answer = json.loads(client.post(body_of(texts)))
    found = np.array([item["embedding"] for item in answer["data"]], dtype=np.float32)
    worst = float(np.abs(found - engine.embed(texts)).max())
    if worst > 1e-6:
        sys.exit(f"the server's vectors differ from the engine's by {worst}")


def server_requests_per_second(address: str, script: Path, seconds: int) -> float:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), address]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in shown or "Socket errors" in shown:
        sys.exit(f"not every request was answered:\n{shown}")
    found = re.search(r"Requests/sec:\s*([\d.]+)", shown)
    assert found is not None, shown
    return float(found[1])


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


def measure(rounds: int, seconds: int, flags: list[str]) -> dict[str, list[dict[str, float]]]:
    short, long = queries(2000), passages(256)
    figures: dict[str, list[dict[str, float]]] = {}
    with (
        server(*flags) as address,
        Engine(MODEL) as engine,
        tempfile.TemporaryDirectory() as folder,
    ):
        client = Client(address)
        check_agreement(client, engine, [*short[:100], *long])
        lines = Path(folder, "bodies")
        lines.write_bytes(b"\n".join(map(body_of, short)))
        script = Path(folder, "ask.lua")
        script.write_text(WRK_SCRIPT % lines)
        floats, encoded = body_of(long), body_of(long, encoding_format="base64")
        pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
            f"{CONNECTIONS} connections, a short text each": (
                lambda: server_requests_per_second(address, script, seconds),
                lambda: engine_calls_per_second(engine, short, seconds),
            ),
            "256 texts a request, floats": (
                lambda: per_second(lambda: client.post(floats), seconds),
                lambda: per_second(lambda: engine.embed(long), seconds),
            ),
            "256 texts a request, base64": (
                lambda: per_second(lambda: client.post(encoded), seconds),
                lambda: per_second(lambda: engine.embed(long), seconds),
            ),
        }
        for turn in range(-1, rounds):  # the first warms up and does not count
            for name, (over_http, in_process) in pairs.items():
                figure = {"server": over_http(), "engine": in_process()}
                if turn >= 0:
                    figures.setdefault(name, []).append(figure)
    return figures


def table(figures: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| a second | server | engine | server ÷ engine |", "|---|---|---|---|"]
    for name, rounds in figures.items():
        over_http, in_process, ratio = (
            statistics.median(value(one) for one in rounds)
            for value in (
                lambda one: one["server"],
                lambda one: one["engine"],
                lambda one: one["server"] / one["engine"],
            )
        )
        lines.append(f"| {name} | {over_http:.4g} | {in_process:.4g} | {ratio:.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each figure in each round")
    parser.add_argument("--json", action="store_true", help="print the raw figures")
    options, flags = parser.parse_known_args()
    figures = measure(options.rounds, options.seconds, flags)
    print(json.dumps(figures, indent=2) if options.json else table(figures))


if __name__ == "__main__":
    main()
