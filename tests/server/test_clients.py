"""Real clients against a real process with the real model, beside the engine in this process."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import httpx
import llama_index.core
import numpy as np
import openai
import pytest
import requests
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from served_model import KEY, NAME, TEXTS, assert_same
from server_process import ServerProcess

from millpond import Engine

pytestmark = pytest.mark.slow

NODE = Path(__file__).parent / "node"


def client_of(server: ServerProcess, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def test_the_openai_client(server: ServerProcess, engine: Engine, expected: np.ndarray) -> None:
    with client_of(server) as client:
        assert [model.id for model in client.models.list()] == [NAME]
        assert client.models.retrieve(NAME).id == NAME
        default = client.embeddings.create(model=NAME, input=TEXTS)  # base64 on the wire
        assert_same([item.embedding for item in default.data], expected)
        assert [item.index for item in default.data] == list(range(len(TEXTS)))
        tokens = sum(map(len, engine.tokenize(TEXTS[:4]))) + 256  # the last one is cut
        assert default.usage.prompt_tokens == default.usage.total_tokens == tokens
        floats = client.embeddings.create(model=NAME, input=TEXTS, encoding_format="float")
        assert_same([item.embedding for item in floats.data], expected)
        short = client.embeddings.create(model=NAME, input="Hello, world!", dimensions=64)
        assert_same(short.data[0].embedding, engine.embed("Hello, world!", dimensions=64))
        ids = engine.tokenize(["Hello, world!"])
        from_ids = client.embeddings.create(model=NAME, input=ids)
        assert_same(from_ids.data[0].embedding, expected[0])


def test_the_openai_client_raises_its_own_errors(server: ServerProcess) -> None:
    with client_of(server, key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.embeddings.create(model=NAME, input="a")
    with client_of(server) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.embeddings.create(model="text-embedding-3-small", input="a")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model=NAME, input="a", dimensions=385)
        assert refused.value.param == "dimensions"
        with pytest.raises(openai.BadRequestError) as broken:
            client.post(
                "/embeddings",
                body=None,
                options={},
                cast_to=httpx.Response,
                content=rb'{"input": "half \ud800 a pair"}',
            )
        assert broken.value.code == "invalid_input"
        with pytest.raises(openai.APIStatusError) as large:
            client.embeddings.create(model=NAME, input=["a"] * 2049)
        assert large.value.status_code == 413


def test_the_asynchronous_openai_client(server: ServerProcess, expected: np.ndarray) -> None:
    async def call() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            answers = await asyncio.gather(
                *(client.embeddings.create(model=NAME, input=text) for text in TEXTS)
            )
        return [answer.data[0].embedding for answer in answers]

    assert_same(asyncio.run(call()), expected)


def test_langchain(server: ServerProcess, expected: np.ndarray) -> None:
    embeddings = OpenAIEmbeddings(
        model=NAME, base_url=f"{server.url}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    assert_same(embeddings.embed_documents(TEXTS), expected)
    assert_same(embeddings.embed_query(TEXTS[1]), expected[1])


def test_langchain_with_its_defaults_is_told_what_to_change(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tiktoken finds its vocabularies in the copies that LlamaIndex carries.
    copies = Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(copies))
    with httpx.Client() as connections:  # LangChain closes none that an error comes through
        embeddings = OpenAIEmbeddings(
            model=NAME, base_url=f"{server.url}/v1", api_key=KEY, http_client=connections
        )
        for ask, texts in ((embeddings.embed_documents, TEXTS), (embeddings.embed_query, "a")):
            with pytest.raises(openai.BadRequestError) as refused:
                ask(texts)
            assert refused.value.code == "invalid_token_ids"
            assert "check_embedding_ctx_length=False" in refused.value.message


def test_llama_index(server: ServerProcess, expected: np.ndarray) -> None:
    embedding = OpenAILikeEmbedding(model_name=NAME, api_base=f"{server.url}/v1", api_key=KEY)
    kept = [0, 1, 3]  # it refuses empty texts and reads no long ones here
    assert_same(
        embedding.get_text_embedding_batch([TEXTS[place] for place in kept]), expected[kept]
    )
    assert_same(embedding.get_query_embedding(TEXTS[0]), expected[0])


def test_the_request_of_a_vllm_tutorial(server: ServerProcess, expected: np.ndarray) -> None:
    response = requests.post(
        f"{server.url}/v1/embeddings",
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
        json={"input": "Hello, world!", "model": "embedding-model"},
        timeout=30,
    )
    assert response.status_code == 200
    assert_same(response.json()["data"][0]["embedding"], expected[0])


def test_the_openai_client_for_node(server: ServerProcess, expected: np.ndarray) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (NODE / "node_modules" / "openai").is_dir():
        pytest.skip("npm has not installed the package openai: make test does, where there is npm")
    result = subprocess.run(
        ["node", "ask.mjs", f"{server.url}/v1", KEY, NAME, json.dumps(TEXTS)],
        cwd=NODE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["models"] == [NAME]
    assert_same(found["vectors"], expected)
    assert_same(found["floats"], expected)
    assert found["tokens"] > 256  # the last text is as long as the model reads
    assert found["refused"] == [
        ["NotFoundError", "model_not_found", "model"],
        ["BadRequestError", "invalid_dimensions", "dimensions"],
        ["AuthenticationError", "invalid_api_key", None],
    ]
