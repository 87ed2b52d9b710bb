"""What a few bad clients cost the others: times of answers, and memory, with and without them.

    python benchmarks/server_bounds.py

200 connections ask for a query each, again and again, with pauses. In every second round 20
connections send a header that never ends and 4 send texts of 16 MiB, with pauses too; `--pause 0`
sends as many as the server takes. Exit status 1 where the
others' p99 is more than 3 times what it is without, where memory rises more than 1.5 GiB above
idle, or where a good request is not answered. Flags it does not know go to the server.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))
from workloads import queries

from server import MODEL, server

GOOD, ENDLESS, LARGE = 200, 20, 4
LARGE_BYTES = 16 * 2**20 - 100
MOST_RATIO = 3.0
MOST_MEMORY = 1.5 * 2**30
RESIDENT = b"\nprocess_resident_memory_bytes "
PAUSE_S = 2.0  # between two queries of a connection, on average


@dataclass
class Round:
    """What was measured in one round, in seconds and bytes."""

    answers_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    refused_headers: int = 0
    large: int = 0
    failed: list[str] = field(default_factory=list)

    def p99_s(self) -> float:
        return statistics.quantiles(self.answers_s, n=100)[98]

    def __str__(self) -> str:
        return (
            f"{len(self.answers_s)} answers, p50 {1000 * statistics.median(self.answers_s):.0f} ms,"
            f" p99 {1000 * self.p99_s():.0f} ms; /health at most "
            f"{1000 * max(self.health_s):.0f} ms; at most {max(self.resident) / 2**20:.0f} MiB; "
            f"{self.large} large texts, {self.refused_headers} headers refused, "
            f"{len(self.failed)} failed"
        )


class Client:
    """One connection that sends bytes and reads whole answers."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        answer = await reader.readuntil(b"\r\n\r\n")
        (length,) = (
            int(line.partition(b":")[2])
            for line in answer.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        return int(answer.split()[1]), await reader.readexactly(length)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def good(client: Client, bodies: list[bytes], seen: Round, end_s: float) -> None:
    chance = random.Random(id(client))
    while time.perf_counter() < end_s:
        await asyncio.sleep(chance.uniform(0, 2 * PAUSE_S))
        began_s = time.perf_counter()
        status, answer = await client.ask("POST", "/v1/embeddings", chance.choice(bodies))
        seen.answers_s.append(time.perf_counter() - began_s)
        if status != 200:
            seen.failed.append(answer.decode())


async def endless(host: str, port: int, seen: Round, end_s: float) -> None:
    """A header that grows until the server refuses it; then the next, a tenth of a second later."""
    while time.perf_counter() < end_s:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"GET /health HTTP/1.1\r\nX: ")
            reading = asyncio.ensure_future(reader.read(100))
            while not reading.done() and time.perf_counter() < end_s:
                writer.write(b"a" * 1024)
                await writer.drain()
                await asyncio.sleep(0.05)
            if reading.done() and b" 431 " in reading.result():
                seen.refused_headers += 1
            reading.cancel()
        except ConnectionError:
            pass
        finally:
            writer.close()
        await asyncio.sleep(0.1)


def large(host: str, port: int, seen: Round, end_s: float, pause_s: float) -> None:
    """On a thread, as sending from one takes the least of the machine that the server runs on."""
    text = ("the mill pond gathers water " * 2**20)[:LARGE_BYTES]
    bodies = {
        "/v1/embeddings": json.dumps({"input": text}).encode(),
        "/tokenize": json.dumps({"prompt": text}).encode(),
    }
    connection = http.client.HTTPConnection(host, port)
    while time.perf_counter() < end_s:
        for path, body in bodies.items():
            connection.request("POST", path, body)
            connection.getresponse().read()
            seen.large += 1
            time.sleep(pause_s)
    connection.close()


async def watch(client: Client, seen: Round, end_s: float) -> None:
    while time.perf_counter() < end_s:
        began_s = time.perf_counter()
        await client.ask("GET", "/health")
        seen.health_s.append(time.perf_counter() - began_s)
        seen.resident.append(await resident(client))
        await asyncio.sleep(0.2)


async def resident(client: Client) -> float:
    _, text = await client.ask("GET", "/metrics")
    return float(text.partition(RESIDENT)[2].split()[0])


async def good_clients(host: str, port: int, bodies: list[bytes], seconds: float) -> Round:
    seen, clients = Round(), [Client(host, port) for _ in range(GOOD + 1)]
    end_s = time.perf_counter() + seconds
    calls = [good(client, bodies, seen, end_s) for client in clients[:-1]]
    await asyncio.gather(*calls, watch(clients[-1], seen, end_s))
    for client in clients:
        client.close()
    return seen


async def bad_clients(host: str, port: int, seconds: float, pause_s: float) -> Round:
    seen, end_s = Round(), time.perf_counter() + seconds
    await asyncio.gather(
        *(endless(host, port, seen, end_s) for _ in range(ENDLESS)),
        *(asyncio.to_thread(large, host, port, seen, end_s, pause_s) for _ in range(LARGE)),
    )
    return seen


async def one_round(
    host: str, port: int, bodies: list[bytes], seconds: float, pause_s: float | None = None
) -> Round:
    """With bad clients where they have a pause. They are a process of their own, so that their work
    delays no good one."""
    command = [sys.executable, __file__, "--bad", host, str(port)]
    command += ["--seconds", str(seconds), "--pause", str(pause_s)]
    if pause_s is None:
        return await good_clients(host, port, bodies, seconds)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it begins
        seen = await good_clients(host, port, bodies, seconds)
        seen.large, seen.refused_headers = map(int, process.stdout.readline().split())
    return seen


async def run(address: str, rounds: int, seconds: float, pause_s: float) -> int:
    url = urlsplit(address)
    host, port = str(url.hostname), int(url.port or 80)
    bodies = [json.dumps({"input": text}).encode() for text in queries(256)]
    await one_round(host, port, bodies, seconds / 2)  # warms up
    idle = await resident(Client(host, port))
    without, with_bad = [], []
    for _ in range(rounds):
        for found, pause in ((without, None), (with_bad, pause_s)):
            found.append(await one_round(host, port, bodies, seconds, pause))
            name = "without" if pause is None else "with"
            print(f"{name} bad clients: {found[-1]}", flush=True)
    ratio = statistics.median(one.p99_s() for one in with_bad) / statistics.median(
        one.p99_s() for one in without
    )
    rise = max(max(one.resident) for one in with_bad) - idle
    failed = [message for one in (*without, *with_bad) for message in one.failed]
    print(f"p99 {ratio:.1f} times that without, memory {rise / 2**20:.0f} MiB above idle")
    print("\n".join(sorted(set(failed))[:5]))
    return int(ratio > MOST_RATIO or rise > MOST_MEMORY or bool(failed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of a round")
    parser.add_argument(
        "--pause", type=float, default=2.0, help="seconds between two large texts of a client"
    )
    parser.add_argument("--bad", nargs=2, metavar=("HOST", "PORT"), help=argparse.SUPPRESS)
    arguments, flags = parser.parse_known_args()
    if arguments.bad:
        host, port = arguments.bad
        print("begins", flush=True)
        seen = asyncio.run(bad_clients(host, int(port), arguments.seconds, arguments.pause))
        print(seen.large, seen.refused_headers)
        return
    with server(MODEL, *flags) as address:
        sys.exit(asyncio.run(run(address, arguments.rounds, arguments.seconds, arguments.pause)))


if __name__ == "__main__":
    main()
