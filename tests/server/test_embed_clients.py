"""Real clients of Text Embeddings Inference and of Cohere's embeddings, against a real process
with the real model, beside the engine in this process."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError
from served_model import KEY, MODEL, NAME, TEXTS, assert_same
from server_process import ServerProcess

import millpond
from millpond import Engine
from millpond.server.routes.cohere import scaled_int8

pytestmark = pytest.mark.slow

NOT_INSTALLED = "it is in the extra `test`: run make setup"


@pytest.fixture(autouse=True)
def online(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """For Hugging Face's client, which otherwise asks not even this machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


# Hugging Face's client, and LangChain's class on top of it.


@pytest.mark.parametrize("path", ["", "/", "/embed"])
def test_the_inference_client(
    server: ServerProcess, engine: Engine, expected: np.ndarray, path: str
) -> None:
    client = InferenceClient(model=f"{server.url}{path}", token=KEY)
    assert_same(client.feature_extraction(TEXTS), expected)  # type: ignore[arg-type]
    assert_same(client.feature_extraction(TEXTS[1]), expected[1:2])
    options = {"normalize": True, "truncate": True, "truncation_direction": "left"}
    cut = client.feature_extraction(TEXTS[4], dimensions=64, **options)
    assert_same(cut, engine.embed([TEXTS[4]], dimensions=64, truncate="start"))


def test_the_inference_clients_similarities(server: ServerProcess, expected: np.ndarray) -> None:
    client = InferenceClient(model=f"{server.url}/similarity", token=KEY)
    found = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    assert_same(found, millpond.similarity(expected[0], expected[1:]))


def test_the_asynchronous_inference_client(server: ServerProcess, expected: np.ndarray) -> None:
    async def call() -> list[Any]:
        async with AsyncInferenceClient(model=f"{server.url}/embed", token=KEY) as client:
            return list(await asyncio.gather(*map(client.feature_extraction, TEXTS)))

    assert_same(np.concatenate(asyncio.run(call())), expected)


def test_the_inference_client_shows_the_servers_message(server: ServerProcess) -> None:
    client = InferenceClient(model=f"{server.url}/embed", token=KEY)
    with pytest.raises(HfHubHTTPError, match="prompt called 'title'"):
        client.feature_extraction("a", prompt_name="title")
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(model=f"{server.url}/embed", token="wrong").feature_extraction("a")


def test_langchains_endpoint_embeddings(server: ServerProcess, expected: np.ndarray) -> None:
    module = pytest.importorskip("langchain_huggingface", reason=NOT_INSTALLED)
    embeddings = module.HuggingFaceEndpointEmbeddings(model=MODEL, huggingfacehub_api_token=KEY)
    # It takes no URL as a model, but another client.
    embeddings.client = InferenceClient(model=f"{server.url}/embed", token=KEY)
    assert_same(embeddings.embed_documents(TEXTS), expected)
    assert_same(embeddings.embed_query(TEXTS[1]), expected[1])

    async def call() -> Any:
        async with AsyncInferenceClient(model=f"{server.url}/embed", token=KEY) as client:
            embeddings.async_client = client
            return await embeddings.aembed_query(TEXTS[1])

    assert_same(asyncio.run(call()), expected[1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it closes nothing
def test_llama_indexs_class_for_text_embeddings_inference(
    server: ServerProcess, expected: np.ndarray
) -> None:
    module = pytest.importorskip(
        "llama_index.embeddings.text_embeddings_inference", reason=NOT_INSTALLED
    )
    embedding = module.TextEmbeddingsInference(
        model_name=MODEL, base_url=server.url, auth_token=KEY, text_instruction=" "
    )
    kept = [0, 1, 3]  # it refuses empty texts
    texts = [TEXTS[place] for place in kept]
    assert_same(embedding.get_text_embedding_batch(texts), expected[kept])
    assert_same(embedding.get_query_embedding(TEXTS[0]), expected[0])
    assert_same(asyncio.run(embedding.aget_text_embedding(TEXTS[1])), expected[1])
    del embedding
    gc.collect()  # here, not in another test


def test_the_info_that_clients_read_limits_from(server: ServerProcess) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    info = httpx.get(f"{server.url}/info", headers=headers).json()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (256, 2048)


# Cohere's clients.


def test_coheres_client(server: ServerProcess, expected: np.ndarray, engine: Engine) -> None:
    cohere = pytest.importorskip("cohere", reason=NOT_INSTALLED)
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    request = {"model": NAME, "texts": TEXTS, "input_type": "search_document"}
    with cohere.ClientV2(base_url=server.url, api_key=KEY) as client:
        answer = client.embed(**request, embedding_types=kinds, truncate="END")
        assert_same(answer.embeddings.float_, expected)
        assert_close_integers(answer.embeddings.int8, scaled_int8(expected))
        assert answer.embeddings.ubinary == millpond.quantize(expected, "ubinary").tolist()
        assert answer.embeddings.binary == millpond.quantize(expected, "binary").tolist()
        assert len(answer.embeddings.base64) == len(answer.embeddings.uint8) == len(TEXTS)
        assert answer.texts == TEXTS
        assert answer.meta.billed_units.input_tokens > 256
        short = client.embed(**request, output_dimension=64, embedding_types=["float"])
        assert_same(short.embeddings.float_, engine.embed(TEXTS, dimensions=64))


def assert_close_integers(found: object, expected: np.ndarray) -> None:
    """At the border between two integers the last bit of a float decides."""
    assert np.abs(np.array(found, dtype=np.int16) - expected).max() <= 1


# Its own reading of answers by type.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_coheres_first_client(server: ServerProcess, expected: np.ndarray) -> None:
    cohere = pytest.importorskip("cohere", reason=NOT_INSTALLED)
    with cohere.Client(base_url=server.url, api_key=KEY) as client:
        answer = client.embed(model=NAME, texts=TEXTS, input_type="search_query")
        assert_same(answer.embeddings, expected)
        by_type = client.embed(model=NAME, texts=TEXTS, embedding_types=["float"])
        assert_same(by_type.embeddings.float_, expected)


def test_coheres_asynchronous_client(server: ServerProcess, expected: np.ndarray) -> None:
    cohere = pytest.importorskip("cohere", reason=NOT_INSTALLED)

    async def call() -> list[Any]:
        async with cohere.AsyncClientV2(base_url=server.url, api_key=KEY) as client:
            calls = [
                client.embed(model=NAME, texts=[text], input_type="search_query") for text in TEXTS
            ]
            return list(await asyncio.gather(*calls))

    assert_same([one.embeddings.float_[0] for one in asyncio.run(call())], expected)


def test_coheres_client_raises_its_own_errors(server: ServerProcess) -> None:
    cohere = pytest.importorskip("cohere", reason=NOT_INSTALLED)
    request = {"texts": ["a"], "input_type": "search_query"}
    with cohere.ClientV2(base_url=server.url, api_key=KEY) as client:
        with pytest.raises(cohere.NotFoundError) as missing:
            client.embed(model="embed-v4.0", **request)
        assert "embed-v4.0" in missing.value.body["message"]
        with pytest.raises(cohere.BadRequestError):
            client.embed(model=NAME, output_dimension=385, **request)
    with (
        cohere.ClientV2(base_url=server.url, api_key="wrong") as client,
        pytest.raises(cohere.UnauthorizedError),
    ):
        client.embed(model=NAME, **request)


# infinity's field.


def test_infinitys_client_names_the_modality(server: ServerProcess, expected: np.ndarray) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"input": TEXTS, "model": NAME, "modality": "text", "encoding_format": "float"}
    answer = httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers)
    assert_same([one["embedding"] for one in answer.json()["data"]], expected)
