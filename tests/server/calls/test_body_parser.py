"""Large bodies are parsed by a child process, to what a small one would give."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fakes import vectors_for
from serving import embed, error_of, fake_app, request

from millpond.server.calls import body_parser
from millpond.server.calls.body_parser import (
    LARGE_BYTES,
    PART_LENGTH,
    BodyParser,
    _batches,
    _joined,
    _parts,
)
from millpond.server.errors import ApiError
from millpond.server.schemas.embeddings import (
    DetokenizeRequest,
    EmbeddingRequest,
    RequestBody,
    TokenizeRequest,
)
from millpond.server.schemas.scores import (
    PredictRequest,
    RerankRequest,
    RerankTextsRequest,
    ScoreRequest,
)

pytestmark = pytest.mark.slow  # bodies are parsed by a process of its own

LONG = "mill pond \n é 水 😀 " * (LARGE_BYTES // 8)
OPTIONS = {"content_type": "application/json", "ignore_unknown": False}


@pytest.fixture(scope="module")
def parser() -> Iterator[BodyParser]:
    parser = BodyParser()
    yield parser
    parser.close()


def parse(parser: BodyParser, kind: type[RequestBody], content: bytes, **options: Any) -> Any:
    chunks = [content[start : start + 2**16] for start in range(0, len(content), 2**16)]
    return asyncio.run(parser.parse((kind,), chunks, **{**OPTIONS, **options}))


def floats(answer: Any) -> np.ndarray:
    return np.array([item["embedding"] for item in answer.json()["data"]], dtype=np.float32)


def plain(value: Any) -> Any:
    """With token ids as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (EmbeddingRequest, {"input": LONG, "dimensions": 3, "task": "retrieval.query"}),
        (EmbeddingRequest, {"input": [LONG, "", "b", LONG[:PART_LENGTH]]}),
        (EmbeddingRequest, {"input": [f"text {n} {LONG[:200]}" for n in range(2048)]}),
        (EmbeddingRequest, {"input": "\ud800" * LARGE_BYTES}),
        (EmbeddingRequest, {"input": list(range(LARGE_BYTES))}),
        (EmbeddingRequest, {"input": [[1], list(range(LARGE_BYTES)), [2**31 - 1]]}),
        (TokenizeRequest, {"prompt": LONG[: 2**19], "return_token_strs": True}),
        (DetokenizeRequest, {"tokens": list(range(LARGE_BYTES)), "model": "m"}),
        (RerankRequest, {"query": LONG[:9], "documents": [{"text": LONG}, "", LONG[:99]]}),
        (RerankTextsRequest, {"query": "q", "texts": ["a", LONG], "truncate": False}),
        (ScoreRequest, {"text_1": LONG, "text_2": ["a", LONG]}),
        (ScoreRequest, {"queries": [LONG, "b"], "documents": ["a", LONG]}),
        (PredictRequest, {"inputs": LONG}),
        (PredictRequest, {"inputs": [LONG, "b"]}),
        (PredictRequest, {"inputs": [[LONG, "b"], ["", LONG]]}),
    ],
)
def test_a_large_body_gives_what_a_small_one_would(
    kind: type[RequestBody], body: dict[str, Any], parser: BodyParser
) -> None:
    content = json.dumps(body).encode()
    assert len(content) > LARGE_BYTES
    expected = body_parser.parsed_body((kind,), content, **OPTIONS)  # type: ignore[arg-type]
    found = parse(parser, kind, content)
    assert type(found) is kind
    assert {name: plain(value) for name, value in found} == dict(expected)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"input": "' + b"a" * LARGE_BYTES, 400),
        (b'{"input": "' + b"\xff" * LARGE_BYTES + b'"}', 400),
        (b"[" * LARGE_BYTES + b"]" * LARGE_BYTES, 400),
        (json.dumps({"input": LONG, "imput": 1}).encode(), 400),
        (json.dumps({"input": [LONG, 1]}).encode(), 400),
        (json.dumps({"input": ["a"] * LARGE_BYTES}).encode(), 413),
    ],
)
def test_a_large_body_is_refused_as_a_small_one(
    content: bytes, status: int, parser: BodyParser
) -> None:
    with pytest.raises(ApiError) as expected:
        body_parser.parsed_body((EmbeddingRequest,), content, **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(ApiError) as refused:
        parse(parser, EmbeddingRequest, content)
    assert refused.value.status_code == status
    assert vars(refused.value) == vars(expected.value)


def test_the_options_reach_the_child(parser: BodyParser) -> None:
    content = json.dumps({"input": LONG, "imput": 1}).encode()
    assert parse(parser, EmbeddingRequest, content, ignore_unknown=True).input == LONG
    with pytest.raises(ApiError, match="it was sent as text/csv"):
        parse(parser, EmbeddingRequest, content, content_type="text/csv; charset=utf-8")


def test_large_bodies_are_embedded_and_only_the_child_parses_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "a b " * LARGE_BYTES
    with fake_app() as app:
        try:
            embed(app, {"input": "a"})
            assert repr(app.state.body_parser) == "BodyParser(has_child=False)"
            monkeypatch.delattr(body_parser, "parsed_body")
            answer = embed(app, {"input": [text, "c"]})
            np.testing.assert_array_equal(floats(answer), vectors_for([text, "c"]))
            answer = embed(app, {"input": text, "imput": 1})
            assert error_of(answer)["message"] == "imput is unknown; did you mean input?"
            assert repr(app.state.body_parser) == "BodyParser(has_child=True)"
        finally:
            app.state.body_parser.close()


def test_large_token_ids_are_embedded_and_become_text() -> None:
    with fake_app() as app:
        try:
            words = ["ab", "c"] * (LARGE_BYTES // 8)
            ids = request(app, "POST", "/tokenize", json={"prompt": " ".join(words)}).json()
            body = {"tokens": ids["tokens"]}
            assert len(json.dumps(body)) > LARGE_BYTES
            text = request(app, "POST", "/detokenize", json=body).json()["prompt"]
            assert text.split() == words
            answer = embed(app, {"input": [ids["tokens"], ids["tokens"][:2]]})
            np.testing.assert_array_equal(
                floats(answer), vectors_for([" ".join(words), " ".join(words[:2])])
            )
        finally:
            app.state.body_parser.close()


CONTENT = json.dumps({"input": LONG}).encode()


def process_of(parser: BodyParser) -> subprocess.Popen[bytes]:
    assert parser._child is not None
    return parser._child._process


def test_a_child_that_dies_costs_one_request() -> None:
    parser = BodyParser()
    try:
        parse(parser, EmbeddingRequest, CONTENT)
        first = process_of(parser)
        first.kill()
        with pytest.raises((EOFError, OSError)):
            parse(parser, EmbeddingRequest, CONTENT)
        assert parse(parser, EmbeddingRequest, CONTENT).input == LONG
        assert process_of(parser).pid != first.pid
    finally:
        parser.close()


def test_the_child_has_low_priority_and_ends_with_the_application() -> None:
    parser = BodyParser()
    try:
        parse(parser, EmbeddingRequest, CONTENT)
        child = process_of(parser)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) >= body_parser.NICENESS
        assert os.getpgid(child.pid) == child.pid  # Ctrl-C on the terminal does not reach it
        child.send_signal(signal.SIGTERM)
        assert parse(parser, EmbeddingRequest, CONTENT).input == LONG
        assert process_of(parser) is child
    finally:
        parser.close()
    assert child.returncode is not None


def test_the_child_ends_when_its_parent_is_gone() -> None:
    parser = BodyParser()
    try:
        parse(parser, EmbeddingRequest, CONTENT)
        child = process_of(parser)
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(60) == 0
    finally:
        parser.close()


def test_no_part_is_long() -> None:
    items: list[Any] = ["a" * (3 * PART_LENGTH + 1), "", "b", *["c" * 1000] * 2048]
    for given in (items, [list(map(ord, item)) for item in items]):
        batches = list(_batches(_parts(given)))
        assert max(sum(len(part) for part, _ in batch) for batch in batches) < 2 * PART_LENGTH
        assert len(batches) <= 3 + 2048 * 1000 // PART_LENGTH + 2
        assert [plain(item) for item in _joined(batches)] == given
