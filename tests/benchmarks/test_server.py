"""The benchmark of the server: who is asked how, what is compared, and what is said of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers.agreement import Disagrees
from benchmarks.report.machine import machine
from benchmarks.server import http_load
from benchmarks.server import run as server
from benchmarks.server import soak as server_load
from benchmarks.server.http_load import BadAnswer, Load

BODIES = [b'{"input": "a"}', b'{"input": "b c"}']


def results(ratio: float) -> dict[str, Any]:
    """As of a run in which every figure came out at this ratio."""
    return {
        "machine": machine(),
        "torch": "2.0",
        "dtype": "float32",
        "load_from": "wrk",
        "seconds": 5,
        "load_average": (0.5, 0.4, 0.3),
        "rounds": {
            name: [{"server": ratio * other, "engine": other} for other in (100.0, 200.0, 150.0)]
            for name in server.AIMS
        },
    }


def test_the_aims_are_those_of_the_design() -> None:
    assert {name: aim.limit for name, aim in server.AIMS.items()} == {
        "64 connections, a short text each": 0.6,
        "256 texts a request, floats": 0.9,
        "256 texts a request, base64": 0.9,
    }


def test_every_figure_is_judged(tmp_path: Path) -> None:
    found = results(0.75)
    assert not server.is_reached(found)
    lines = server.table(found).splitlines()[2:]
    assert [line.rpartition("|")[0].rpartition("|")[2].strip() for line in lines] == [
        "reached",
        "**missed**",
        "**missed**",
    ]
    server.write(found, tmp_path / "new")
    assert server.table(found) in (tmp_path / "new" / "server.md").read_text()
    assert "load from wrk" in (tmp_path / "new" / "server.md").read_text()
    written = json.loads((tmp_path / "new" / "server.json").read_text())
    assert written["rounds"] == found["rounds"]
    assert server.is_reached(results(0.95))


class Answering:
    """A server of one process and no model, whose answers come in two pieces."""

    def __init__(self, status: str = "200 OK") -> None:
        self._status = status
        self.bodies: Counter[bytes] = Counter()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                self.bodies[await reader.readexactly(length)] += 1
                writer.write(f"HTTP/1.1 {self._status}\r\ncontent-le".encode())
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(b"ngth: 4\r\n\r\nbody")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def load_on(answering: Answering, connections: int) -> float:
    async with await asyncio.start_server(answering, "127.0.0.1", 0) as served:
        port = served.sockets[0].getsockname()[1]
        load = Load(f"http://127.0.0.1:{port}", BODIES)
        return await load.run(connections, seconds=0.2)


def test_connections_ask_again_when_they_are_answered() -> None:
    answering = Answering()
    rate = asyncio.run(load_on(answering, connections=4))
    assert rate > 0
    assert set(answering.bodies) == set(BODIES)
    # Those that were on their way when the time was over do not count.
    assert answering.bodies.total() >= rate * 0.2 > 4


def test_one_answer_that_is_an_error_is_enough() -> None:
    with pytest.raises(BadAnswer, match="503 Service Unavailable"):
        asyncio.run(load_on(Answering("503 Service Unavailable"), connections=2))


def test_load_is_made_without_wrk_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_load, "WRK", None)
    with pytest.raises(BadAnswer, match="ConnectionRefusedError"):
        http_load.requests_per_second("http://127.0.0.1:1", BODIES, connections=1, seconds=1)


class Answered:
    """A client whose server has these vectors."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def post(self, body: bytes) -> bytes:
        return json.dumps({"data": [{"embedding": row.tolist()} for row in self._vectors]}).encode()


class Embedding:
    """An engine that has these."""

    dtype = "float32"

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def embed(self, texts: list[str]) -> np.ndarray:
        return self._vectors

    def info(self) -> Embedding:
        return self


def test_a_server_with_other_vectors_is_not_timed() -> None:
    vectors = np.eye(3, 8)
    server.check_agreement(Answered(vectors), Embedding(vectors), ["a"] * 3)
    with pytest.raises(Disagrees):
        server.check_agreement(Answered(vectors + 1e-4), Embedding(vectors), ["a"] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("program", [server, server_load])
def test_both_sides_have_one_dtype(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Stop(Exception):
        pass

    def server_asked(*flags: str) -> Any:
        asked.append(flags[flags.index("--dtype") + 1])
        raise Stop

    class EngineAsked:
        def __init__(self, model: str, *, dtype: str) -> None:
            asked.append(dtype)
            self.dtype = dtype

        def __enter__(self) -> EngineAsked:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def embed(self, texts: list[str]) -> np.ndarray:
            return np.zeros((len(texts), 3))

        def info(self) -> EngineAsked:
            return self

    monkeypatch.setattr(program, "server", server_asked)
    monkeypatch.setattr(program, "Engine", EngineAsked)
    for arguments, dtype in (([], "float32"), (["--dtype", "bfloat16"], "bfloat16")):
        asked.clear()
        monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
        with pytest.raises(Stop):
            program.main()
        assert set(asked) == {dtype}
