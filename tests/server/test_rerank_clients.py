"""Real clients of rerankers against a real process, beside the engine in this process."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from checkpoints import TEXTS, save_transformer
from families import ENCODER
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from server_process import ServerProcess, server_process

from millpond import Engine

pytestmark = pytest.mark.slow

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
NAME = "reranker"
KEY = "key-of-the-tests"
QUERY = "which stone grinds"
NOT_INSTALLED = "it is in the extra `test`: run make setup"


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_transformer(
        tmp_path_factory.mktemp("reranker"),
        model="BertForSequenceClassification",
        config={**ENCODER, "num_labels": 1},
    )


@pytest.fixture(scope="module")
def server(reranker: Path) -> Iterator[ServerProcess]:
    """With an embedder beside the reranker."""
    names = ["--served-model-name", "embedder", "--served-model-name", NAME]
    flags = ["--model", EMBEDDER, "--model", str(reranker), *names, "--dtype", "float32"]
    with server_process(*flags, MILLPOND_API_KEY=KEY) as server:
        yield server
    assert KEY not in "\n".join(server.lines)


@pytest.fixture(scope="module")
def engine(reranker: Path, one_thread: None) -> Iterator[Engine]:
    with Engine(reranker, dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="module")
def scores(engine: Engine) -> np.ndarray:
    found: np.ndarray = engine.score([(QUERY, text) for text in TEXTS])
    return found


@pytest.fixture(scope="module")
def best(scores: np.ndarray) -> list[int]:
    return np.argsort(-scores, kind="stable").tolist()


def assert_ranked(found: list[tuple[int, float]], scores: np.ndarray, best: list[int]) -> None:
    """Places with their scores, the best first."""
    assert [place for place, _ in found] == best[: len(found)]
    np.testing.assert_allclose([score for _, score in found], scores[best[: len(found)]], rtol=1e-6)


def ranked(answer: Any) -> list[tuple[int, float]]:
    return [(one.index, one.relevance_score) for one in answer.results]


@pytest.mark.parametrize(
    ("version", "options"), [("Client", {}), ("ClientV2", {"max_tokens_per_doc": 4096})]
)
def test_coheres_client(
    server: ServerProcess,
    scores: np.ndarray,
    best: list[int],
    version: str,
    options: dict[str, int],
) -> None:
    cohere = pytest.importorskip("cohere", reason=NOT_INSTALLED)
    with getattr(cohere, version)(base_url=server.url, api_key=KEY) as client:
        request = {"model": NAME, "query": QUERY, "documents": list(TEXTS)}
        answer = client.rerank(**request)
        assert_ranked(ranked(answer), scores, best)
        assert answer.meta.tokens.input_tokens > len(TEXTS)
        few = client.rerank(**request, top_n=3, **options)
        assert_ranked(ranked(few), scores, best)
        assert len(few.results) == 3


def test_coheres_first_client_has_documents_and_their_texts(
    server: ServerProcess, best: list[int]
) -> None:
    cohere = pytest.importorskip("cohere", reason=NOT_INSTALLED)
    with cohere.Client(base_url=server.url, api_key=KEY) as client:
        objects = [{"text": text} for text in TEXTS]
        answer = client.rerank(model=NAME, query=QUERY, documents=objects, return_documents=True)
    assert [one.document.text for one in answer.results] == [TEXTS[place] for place in best]


def test_coheres_client_raises_its_own_errors(server: ServerProcess) -> None:
    cohere = pytest.importorskip("cohere", reason=NOT_INSTALLED)
    request = {"query": QUERY, "documents": ["a"]}
    with cohere.ClientV2(base_url=server.url, api_key=KEY) as client:
        with pytest.raises(cohere.NotFoundError):
            client.rerank(model="rerank-v3.5", **request)
        with pytest.raises(cohere.BadRequestError) as refused:
            client.rerank(model="embedder", **request)
        assert "/v1/embeddings" in str(refused.value.body)
    with (
        cohere.ClientV2(base_url=server.url, api_key="wrong") as client,
        pytest.raises(cohere.UnauthorizedError),
    ):
        client.rerank(model=NAME, **request)


def test_coheres_asynchronous_client(
    server: ServerProcess, scores: np.ndarray, best: list[int]
) -> None:
    cohere = pytest.importorskip("cohere", reason=NOT_INSTALLED)
    request = {"model": NAME, "query": QUERY, "documents": list(TEXTS)}

    async def call() -> list[Any]:
        async with cohere.AsyncClientV2(base_url=server.url, api_key=KEY) as client:
            return list(await asyncio.gather(*(client.rerank(**request) for _ in range(8))))

    for answer in asyncio.run(call()):
        assert_ranked(ranked(answer), scores, best)


def test_infinitys_client(server: ServerProcess, scores: np.ndarray, best: list[int]) -> None:
    pytest.importorskip("infinity_client", reason=NOT_INSTALLED)
    from infinity_client import AuthenticatedClient
    from infinity_client.api.default import classify, rerank
    from infinity_client.models import ClassifyInput, RerankInput

    with AuthenticatedClient(base_url=server.url, token=KEY) as client:
        answer = rerank.sync(client=client, body=RerankInput(QUERY, list(TEXTS), model=NAME))
        (classes,) = classify.sync(client=client, body=ClassifyInput(["a"], model=NAME)).data
    assert_ranked(ranked(answer), scores, best)
    assert answer.usage.total_tokens > len(TEXTS)
    assert [one.label for one in classes] == ["LABEL_0"]


LITELLM = """
import json, os, sys
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network while it is imported
import litellm
litellm.suppress_debug_info = True
url, key, name, query, *documents = sys.argv[1:]
access = {"api_base": url, "api_key": key}
for provider in ["cohere", "jina_ai", "infinity", "hosted_vllm", "huggingface"]:
    few = {"top_n": 4, "return_documents": False}  # infinity's documents have another shape
    answer = litellm.rerank(f"{provider}/{name}", query, documents, **few, **access)
    print(json.dumps([[one["index"], one["relevance_score"]] for one in answer.results]))
for provider, path in [("openai", "/v1"), ("hosted_vllm", "/v1"), ("infinity", "")]:
    access["api_base"] = url + path
    answer = litellm.embedding(f"{provider}/embedder", input=documents, **access)
    print(json.dumps([[len(answer.data), len(answer.data[0]["embedding"])]]))
"""


def test_litellm(
    server: ServerProcess, engine: Engine, scores: np.ndarray, best: list[int]
) -> None:
    if importlib.util.find_spec("litellm") is None:  # importing it asks the network
        pytest.skip(NOT_INSTALLED)
    command = [sys.executable, "-c", LITELLM, server.url, KEY, NAME, QUERY, *TEXTS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    *reranked, tei = [json.loads(line) for line in ended.stdout.splitlines()[:5]]
    for found in reranked:
        assert_ranked(found, scores, best)
    of_tei = engine.score([(QUERY, text) for text in TEXTS], activation="sigmoid")
    assert_ranked(tei, of_tei, best)
    embedded = [json.loads(line) for line in ended.stdout.splitlines()[5:]]
    assert embedded == [[[len(TEXTS), 384]]] * 3


# LangChain.


def assert_documents(found: Any, scores: np.ndarray, best: list[int]) -> None:
    relevance = [(one.metadata["place"], one.metadata["relevance_score"]) for one in found]
    assert_ranked(relevance, scores, best)


def documents() -> list[Document]:
    return [Document(text, metadata={"place": place}) for place, text in enumerate(TEXTS)]


def test_langchains_cohere_reranker(
    server: ServerProcess, scores: np.ndarray, best: list[int]
) -> None:
    cohere = pytest.importorskip("cohere", reason=NOT_INSTALLED)
    from langchain_classic.retrievers.document_compressors import CohereRerank

    with cohere.Client(base_url=server.url, api_key=KEY) as client:
        with pytest.warns(DeprecationWarning, match="CohereRerank"):
            reranker = CohereRerank(client=client, model=NAME, top_n=4)
        assert_documents(reranker.compress_documents(documents(), QUERY), scores, best)


def test_langchains_jina_reranker(
    server: ServerProcess, scores: np.ndarray, best: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from langchain_community.document_compressors import jina_rerank

    monkeypatch.setattr(jina_rerank, "JINA_API_URL", f"{server.url}/v1/rerank")
    reranker = jina_rerank.JinaRerank(jina_api_key=KEY, model=NAME, top_n=4)
    with reranker.session:
        assert_documents(reranker.compress_documents(documents(), QUERY), scores, best)


def test_langchains_infinity_reranker(
    server: ServerProcess, scores: np.ndarray, best: list[int]
) -> None:
    pytest.importorskip("infinity_client", reason=NOT_INSTALLED)
    from infinity_client import AuthenticatedClient
    from langchain_community.document_compressors.infinity_rerank import InfinityRerank

    with AuthenticatedClient(base_url=server.url, token=KEY) as client:
        reranker = InfinityRerank.model_construct(client=client, model=NAME, top_n=4)
        assert_documents(reranker.compress_documents(documents(), QUERY), scores, best)


def test_our_own_reranker_in_langchain_gives_the_same(
    engine: Engine, scores: np.ndarray, best: list[int]
) -> None:
    adapter = pytest.importorskip("langchain_millpond", reason="make adapters installs it")
    found = adapter.MillpondRerank(engine=engine, top_n=4).compress_documents(documents(), QUERY)
    assert_documents(found, scores, best)


# LlamaIndex.


def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(TEXTS)]


def assert_nodes(found: list[NodeWithScore], scores: np.ndarray, best: list[int]) -> None:
    assert_ranked([(int(one.node.node_id), one.score or 0.0) for one in found], scores, best)


def test_llama_indexs_cohere_reranker(
    server: ServerProcess, scores: np.ndarray, best: list[int]
) -> None:
    module = pytest.importorskip("llama_index.postprocessor.cohere_rerank", reason=NOT_INSTALLED)
    reranker = module.CohereRerank(top_n=4, model=NAME, api_key=KEY, base_url=server.url)
    with reranker._client:
        assert_nodes(reranker.postprocess_nodes(nodes(), query_str=QUERY), scores, best)


def test_llama_indexs_jina_reranker(
    server: ServerProcess, scores: np.ndarray, best: list[int]
) -> None:
    module = pytest.importorskip("llama_index.postprocessor.jinaai_rerank", reason=NOT_INSTALLED)
    url = f"{server.url}/v1"
    reranker = module.JinaRerank(top_n=4, model=NAME, api_key=KEY, base_url=url)
    with reranker._session:
        assert_nodes(reranker.postprocess_nodes(nodes(), query_str=QUERY), scores, best)


def test_llama_indexs_reranker_for_text_embeddings_inference(
    server: ServerProcess, engine: Engine
) -> None:
    module = pytest.importorskip("llama_index.postprocessor.tei_rerank", reason=NOT_INSTALLED)
    reranker = module.TextEmbeddingInference(
        top_n=4, base_url=server.url, auth_token=f"Bearer {KEY}"
    )
    scores = engine.score([(QUERY, text) for text in TEXTS], activation="sigmoid")
    best = np.argsort(-scores, kind="stable").tolist()
    assert_nodes(reranker.postprocess_nodes(nodes(), query_str=QUERY), scores, best)


def test_both_models_answer_without_a_name(server: ServerProcess, scores: np.ndarray) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers) as client:
        embedded = client.post("/v1/embeddings", json={"input": "a"}).json()
        assert embedded["model"] == "embedder"
        body = {"queries": QUERY, "documents": list(TEXTS)}
        data = client.post("/score", json=body).json()["data"]
    np.testing.assert_allclose([one["score"] for one in data], scores, rtol=1e-6)
    assert any("score: LABEL_0" in line for line in server.lines)
