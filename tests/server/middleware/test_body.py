"""A compressed body is decoded within the bound of all bodies, or refused by the header's name."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Iterator

import httpx
import pytest
from fastapi import FastAPI
from serving import Call, error_of, fake_app, request

from millpond.server.errors import ApiError
from millpond.server.middleware.body import _Decoder
from millpond.server.settings import AppSettings

BODY = json.dumps({"input": ["a b", "c"]}).encode()


def bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:5]) + gzip.compress(data[5:])


@pytest.fixture
def app() -> Iterator[FastAPI]:
    with fake_app(settings=AppSettings(max_body_bytes=100_000)) as app:
        yield app


def post(app: FastAPI, content: bytes, coding: str) -> httpx.Response:
    headers = {"content-encoding": coding, "content-type": "application/json"}
    return request(app, "POST", "/v1/embeddings", content=content, headers=headers)


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("gzip", two_members),
        ("deflate", zlib.compress),
        ("deflate", bare_deflate),
        ("identity", bytes),
        ("", bytes),
        ("gzip, ", gzip.compress),
    ],
)
def test_a_compressed_body_is_decoded(
    app: FastAPI, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    plain = request(app, "POST", "/v1/embeddings", content=BODY)
    answer = post(app, compress(BODY), coding)
    assert answer.status_code == 200
    assert answer.json() == plain.json()


@pytest.mark.parametrize("compress", [gzip.compress, two_members])
def test_a_body_is_decoded_byte_by_byte(app: FastAPI, compress: Callable[[bytes], bytes]) -> None:
    async def ask() -> int | None:
        call = Call(app, headers=[(b"content-encoding", b"gzip")])
        content = compress(BODY)
        for place in range(len(content)):
            call.send(content[place : place + 1])
        call.send(b"", last=True)
        return await call.over

    assert asyncio.run(ask()) == 200


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "x" * 9999])
def test_another_coding_is_a_415_that_names_the_header(app: FastAPI, coding: str) -> None:
    answer = post(app, b"whatever", coding)
    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unknown_encoding"
    assert f"content-encoding: {coding[:80]}" in error_of(answer)["message"]
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert len(answer.content) < 500


@pytest.mark.parametrize(
    ("content", "coding"),
    [
        (gzip.compress(bytes(2**24)), "gzip"),
        (zlib.compress(bytes(2**24)), "deflate"),
        (gzip.compress(bytes(60_000)) * 2, "gzip"),
    ],
    ids=["gzip", "deflate", "two members"],
)
def test_a_body_that_grows_beyond_the_bound_is_a_413(
    app: FastAPI, content: bytes, coding: str
) -> None:
    answer = post(app, content, coding)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "request_too_large"
    decoder = _Decoder(coding, 100_000)
    with pytest.raises(ApiError):
        decoder.decode(content, last=True)
    assert decoder._decoded == 100_001  # and not what the rest of it would be


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(BODY, mtime=0)[:-1],
        gzip.compress(BODY, mtime=0)[:20],
        gzip.compress(BODY, mtime=0) + b"more",
        gzip.compress(b"") * 101 + gzip.compress(BODY, mtime=0),
        BODY,
    ],
)
def test_a_broken_body_is_a_400(app: FastAPI, content: bytes) -> None:
    answer = post(app, content, "gzip")
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "bad_encoding"


def test_a_get_has_no_body_to_decode(app: FastAPI) -> None:
    assert request(app, "GET", "/health", headers={"content-encoding": "br"}).status_code == 200
