"""Load on a server: many connections that ask again as soon as they are answered.

wrk makes it where it is installed (`apt install wrk`), and otherwise this file does, as a process
of its own:

    python -m benchmarks.server.http_load http://127.0.0.1:8000 BODIES CONNECTIONS SECONDS

BODIES is a file with a body of `POST /v1/embeddings` on each line. Prints requests a second.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

WRK = shutil.which("wrk")
GENERATOR = "wrk" if WRK else "a client in Python"
WRK_SCRIPT = """
local requests, turn = {}, 0
init = function()
  local headers = { ["Content-Type"] = "application/json" }
  for line in io.lines("%s") do
    requests[#requests + 1] = wrk.format("POST", "/v1/embeddings", headers, line)
  end
end
request = function()
  turn = turn %% #requests + 1
  return requests[turn]
end
"""


class BadAnswer(Exception):
    """A request that was not answered with vectors."""


def requests_per_second(
    address: str, bodies: Sequence[bytes], *, connections: int, seconds: int
) -> float:
    """Raises `BadAnswer` where one request was not answered as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "bodies")
        lines.write_bytes(b"\n".join(bodies))
        if WRK:
            return _with_wrk(address, lines, connections, seconds)
        return _with_python(address, lines, connections, seconds)


def _with_wrk(address: str, lines: Path, connections: int, seconds: int) -> float:
    assert WRK is not None
    script = lines.with_suffix(".lua")
    script.write_text(WRK_SCRIPT % lines)
    command = [WRK, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), address]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s*([\d.]+)", shown)
    if found is None or "Non-2xx" in shown or "Socket errors" in shown:
        raise BadAnswer(shown)
    return float(found[1])


def _with_python(address: str, lines: Path, connections: int, seconds: int) -> float:
    command = [sys.executable, __file__, address, str(lines), str(connections), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BadAnswer(done.stderr)
    return float(done.stdout)


class Asker(asyncio.Protocol):
    """One connection: the next request goes out when the last one's answer is whole."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = re.search(rb"content-length: (\d+)", head)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            self._load.fail(self._received)
        elif len(body) == int(length[1]):
            self._received = b""
            self._load.answered += 1
            self._transport.write(self._load.next_request())

    def connection_lost(self, error: Exception | None) -> None:
        self._load.fail(b"the server hung up")


class Load:
    """What all connections share. One event loop has it to itself."""

    def __init__(self, address: str, bodies: Sequence[bytes]) -> None:
        self._host, port = urlsplit(address).netloc.rsplit(":", 1)
        self._port = int(port)
        self._requests = [
            b"POST /v1/embeddings HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            for body in bodies
        ]
        self._turn = 0
        self.answered = 0

    def next_request(self) -> bytes:
        self._turn = (self._turn + 1) % len(self._requests)
        return self._requests[self._turn]

    def fail(self, answer: bytes) -> None:
        if not self._failed.done():
            self._failed.set_exception(BadAnswer(answer.decode(errors="replace")))

    async def run(self, connections: int, seconds: float) -> float:
        """Requests a second that were answered in so many seconds."""
        loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[None] = loop.create_future()
        started_s = time.perf_counter()
        opened = [
            await loop.create_connection(lambda: Asker(self), self._host, self._port)
            for _ in range(connections)
        ]
        await asyncio.wait([self._failed], timeout=seconds)
        answered, passed_s = self.answered, time.perf_counter() - started_s
        if self._failed.done():
            self._failed.result()
        self._failed.cancel()
        for transport, _ in opened:
            transport.abort()
        return answered / passed_s


def main() -> None:
    address, lines, connections, seconds = sys.argv[1:]
    load = Load(address, Path(lines).read_bytes().splitlines())
    print(asyncio.run(load.run(int(connections), float(seconds))))


if __name__ == "__main__":
    main()
