"""What large and endless requests cost the others: response times, and memory.

    python -m benchmarks.server.bounds
    python -m benchmarks.server.bounds --bulk

200 connections send a query each, again and again, with pauses. In every second round 20
connections send a header that never ends and 4 send texts of 16 MiB, with pauses too; `--pause 0`
sends as many as the server takes. Exit status 1 where the others' p99 is more than 3 times what it
is without, where memory rises more than 1.5 GiB above idle, or where a query is not answered.

With `--bulk` one connection sends short texts all the time: 2,048 a request in every second round,
and 64 in the others. Both keep the engine equally busy, so the difference is what large bodies and
large answers cost the queries. Unknown flags are passed to the server.
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
from urllib.parse import urlsplit

from ..cpu.workloads import queries
from .run import MODEL, server

GOOD, ENDLESS, LARGE = 200, 20, 4
LARGE_BYTES = 16 * 2**20 - 100
MOST_RATIO = 3.0
MOST_MEMORY = 1.5 * 2**30
RESIDENT = b"\nprocess_resident_memory_bytes "
PAUSE_S = 2.0  # between two queries of a connection, on average
FEW, MANY = 64, 2048  # texts a request


@dataclass
class Round:
    """What was measured in one round, in seconds and bytes."""

    answers_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    refused_headers: int = 0
    large: int = 0
    bulk_texts: int = 0
    failed: list[str] = field(default_factory=list)

    def p99_s(self) -> float:
        return statistics.quantiles(self.answers_s, n=100)[98]

    def __str__(self) -> str:
        return (
            f"{len(self.answers_s)} answers, p50 {1000 * statistics.median(self.answers_s):.0f} ms,"
            f" p99 {1000 * self.p99_s():.0f} ms; /health at most "
            f"{1000 * max(self.health_s):.0f} ms; at most {max(self.resident) / 2**20:.0f} MiB; "
            f"{self.large} large texts, {self.refused_headers} headers refused, "
            f"{self.bulk_texts} bulk texts, {len(self.failed)} failed"
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


def bulk(host: str, port: int, seen: Round, end_s: float, count: int) -> None:
    """Different texts in every request, so that none is deduplicated."""
    texts, connection = queries(MANY), http.client.HTTPConnection(host, port)
    while time.perf_counter() < end_s:
        start = seen.bulk_texts % MANY
        body = {"input": [f"{seen.bulk_texts} {text}" for text in texts[start : start + count]]}
        connection.request("POST", "/v1/embeddings", json.dumps(body).encode())
        answer = connection.getresponse()
        if answer.status != 200 or not answer.read():
            raise OSError(f"the server answered {answer.status}")
        seen.bulk_texts += count
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


async def other_clients(host: str, port: int, seconds: float, kind: str) -> Round:
    """Of a kind: a pause of those that send endless headers and large texts, or texts a request."""
    seen, end_s = Round(), time.perf_counter() + seconds
    name, _, number = kind.partition("=")
    if name == "bulk":
        await asyncio.to_thread(bulk, host, port, seen, end_s, int(number))
        return seen
    pause_s = float(number)
    await asyncio.gather(
        *(endless(host, port, seen, end_s) for _ in range(ENDLESS)),
        *(asyncio.to_thread(large, host, port, seen, end_s, pause_s) for _ in range(LARGE)),
    )
    return seen


async def one_round(
    host: str, port: int, bodies: list[bytes], seconds: float, kind: str = ""
) -> Round:
    """With other clients of that kind. They are a process of their own, so that their work does not
    delay the queries' client."""
    command = [sys.executable, "-m", __spec__.name, "--others", host, str(port), kind]
    command += ["--seconds", str(seconds)]
    if not kind:
        return await good_clients(host, port, bodies, seconds)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it begins
        seen = await good_clients(host, port, bodies, seconds)
        counts = map(int, process.stdout.readline().split())
        seen.large, seen.refused_headers, seen.bulk_texts = counts
    return seen


async def run(address: str, rounds: int, seconds: float, kinds: tuple[str, str]) -> int:
    url = urlsplit(address)
    host, port = str(url.hostname), int(url.port or 80)
    bodies = [json.dumps({"input": text}).encode() for text in queries(256)]
    await one_round(host, port, bodies, seconds / 2)  # warms up
    idle = await resident(Client(host, port))
    before: list[Round] = []
    after: list[Round] = []
    for _ in range(rounds):
        for found, kind in zip((before, after), kinds, strict=True):
            found.append(await one_round(host, port, bodies, seconds, kind))
            print(f"{kind or 'queries alone'}: {found[-1]}", flush=True)
    ratio = statistics.median(one.p99_s() for one in after) / statistics.median(
        one.p99_s() for one in before
    )
    rise = max(max(one.resident) for one in after) - idle
    failed = [message for one in (*before, *after) for message in one.failed]
    print(f"p99 {ratio:.1f} times, memory {rise / 2**20:.0f} MiB above idle")
    print("\n".join(sorted(set(failed))[:5]))
    return int(ratio > MOST_RATIO or rise > MOST_MEMORY or bool(failed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of a round")
    parser.add_argument(
        "--pause", type=float, default=2.0, help="seconds between two large texts of a client"
    )
    parser.add_argument("--bulk", action="store_true", help="beside requests of 2,048 texts")
    parser.add_argument("--others", nargs=3, help=argparse.SUPPRESS)
    arguments, flags = parser.parse_known_args()
    if arguments.others:
        host, port, kind = arguments.others
        print("begins", flush=True)
        seen = asyncio.run(other_clients(host, int(port), arguments.seconds, kind))
        print(seen.large, seen.refused_headers, seen.bulk_texts)
        return
    kinds = ("", f"pause={arguments.pause}")
    if arguments.bulk:
        kinds = (f"bulk={FEW}", f"bulk={MANY}")
    with server(MODEL, *flags) as address:
        sys.exit(asyncio.run(run(address, arguments.rounds, arguments.seconds, kinds)))


if __name__ == "__main__":
    main()
