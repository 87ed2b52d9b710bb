"""What `MillpondRerank` takes, gives and refuses, on an engine whose runner is a fake."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import pickle
import threading
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRunner, scorer, scores_for, start_engine
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor import millpond_rerank
from llama_index.postprocessor.millpond_rerank import MillpondRerank
from llama_index.postprocessor.millpond_rerank.base import RerankOptions
from pydantic import Field, ValidationError

import millpond
from millpond import (
    Engine,
    EngineClosed,
    InvalidOption,
    ModelNotFound,
    NonFiniteVector,
    TextTooLong,
    UnsupportedCall,
)
from millpond.integrations import engine_fields
from multi_vector import save_multi_vector

QUERY = "which"
TEXTS = ["one text", "another", "a third one", "the last", "x"]
PROJECT = Path(__file__).parents[1]
Rerank = Callable[..., list[NodeWithScore]]


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def engine(runner: FakeRunner) -> Iterator[Engine]:
    engine = scorer(runner)
    yield engine
    runner.let()
    engine.close(drain=False)


def sync(reranker: MillpondRerank, *given: Any, **options: Any) -> list[NodeWithScore]:
    return reranker.postprocess_nodes(*given, **options)


def awaited(reranker: MillpondRerank, *given: Any, **options: Any) -> list[NodeWithScore]:
    return asyncio.run(reranker.apostprocess_nodes(*given, **options))


@pytest.fixture(params=[sync, awaited])
def rerank(request: pytest.FixtureRequest) -> Rerank:
    rerank: Rerank = request.param
    return rerank


def nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=str(place)), score=place / 10)
        for place, text in enumerate(TEXTS)
    ]


def scores() -> np.ndarray:
    return scores_for([(QUERY, text) for text in TEXTS])[:, 0]


def test_it_is_a_postprocessor_under_its_own_name() -> None:
    assert issubclass(MillpondRerank, BaseNodePostprocessor)
    assert MillpondRerank.class_name() == "MillpondRerank"
    assert millpond_rerank.__all__ == ["MillpondRerank"]


def test_the_best_nodes_come_first_with_their_scores(engine: Engine, rerank: Rerank) -> None:
    found = rerank(MillpondRerank(engine=engine), nodes(), query_str=QUERY)
    best = np.argsort(-scores())[:2]
    assert [one.node.node_id for one in found] == [str(place) for place in best]
    assert {type(one.score) for one in found} == {float}
    np.testing.assert_array_equal(np.float32([one.score for one in found]), scores()[best])
    everything = MillpondRerank(engine=engine, top_n=99)
    assert len(rerank(everything, nodes(), QueryBundle(QUERY))) == len(TEXTS)


def test_the_nodes_of_the_caller_are_left_as_they_are(engine: Engine, rerank: Rerank) -> None:
    given = nodes()
    reranker = MillpondRerank(engine=engine, top_n=9, keep_retrieval_score=True)
    for one in rerank(reranker, given, query_str=QUERY):
        assert one.node.metadata == {"retrieval_score": int(one.node.node_id) / 10}
        one.node.metadata["changed"] = True
    assert given == nodes()


def test_the_retrieval_score_is_kept_only_where_asked_for(engine: Engine, rerank: Rerank) -> None:
    for one in rerank(MillpondRerank(engine=engine), nodes(), query_str=QUERY):
        assert one.node.metadata == {}


def test_a_node_is_read_as_it_is_embedded(runner: FakeRunner, engine: Engine) -> None:
    metadata = {"title": "bread", "secret": "no"}
    node = TextNode(text="text", metadata=metadata, excluded_embed_metadata_keys=["secret"])
    MillpondRerank(engine=engine).postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    (read,) = runner.ran
    assert read == f"{QUERY} | {node.get_content(metadata_mode=MetadataMode.EMBED)}"
    assert "bread" in read
    assert "secret" not in read


def test_no_nodes_are_no_call(runner: FakeRunner, engine: Engine, rerank: Rerank) -> None:
    assert rerank(MillpondRerank(engine=engine), [], query_str=QUERY) == []
    assert runner.batches == []


def test_without_a_query_nothing_is_ranked(engine: Engine, rerank: Rerank) -> None:
    with pytest.raises(ValueError, match="needs a query"):
        rerank(MillpondRerank(engine=engine), nodes())


def test_awaiting_uses_no_thread_of_the_executor(engine: Engine) -> None:
    reranker = MillpondRerank(engine=engine)
    before = set(threading.enumerate())

    async def call() -> None:
        await asyncio.gather(*(reranker.apostprocess_nodes(nodes(), query_str=q) for q in "abcd"))
        started = set(threading.enumerate()) - before
        assert not [one for one in started if one.name.startswith("asyncio")]

    asyncio.run(call())
    assert set(threading.enumerate()) == before


# Events.


class Seen(BaseEventHandler):
    """Keeps the events."""

    events: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        self.events.append(event)


def test_the_events_of_reranking_are_sent(engine: Engine, rerank: Rerank) -> None:
    seen, debug = Seen(), LlamaDebugHandler(print_trace_on_end=False)
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(seen)
    reranker = MillpondRerank(engine=engine, callback_manager=CallbackManager([debug]))
    try:
        found = rerank(reranker, nodes(), query_str=QUERY)
    finally:
        dispatcher.event_handlers.remove(seen)
    start, end = (one for one in seen.events if "ReRank" in type(one).__name__)
    assert isinstance(start, ReRankStartEvent)
    assert (start.top_n, start.model_name, start.nodes) == (2, reranker.model, nodes())
    assert start.query == QueryBundle(QUERY)
    assert isinstance(end, ReRankEndEvent)
    assert end.nodes == found
    ((before, after),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert before.payload[EventPayload.QUERY_STR] == QUERY
    assert before.payload[EventPayload.TOP_K] == 2
    assert before.payload[EventPayload.MODEL_NAME] == reranker.model
    assert after.payload[EventPayload.NODES] == found


# Options and errors.


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"top_n": 0}, ValidationError),
        ({"activation": "no such"}, InvalidOption),
        ({"prompt_name": "unknown"}, InvalidOption),
        ({"truncate": "middle"}, ValidationError),
        ({"topn": 3}, InvalidOption),
        ({"model": "another"}, InvalidOption),
    ],
)
def test_a_bad_option_is_refused_at_once(
    engine: Engine, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        MillpondRerank(engine=engine, **options)


def test_a_model_that_embeds_is_refused_with_what_to_call() -> None:
    with start_engine(FakeRunner()) as engine, pytest.raises(UnsupportedCall, match="embeddings"):
        MillpondRerank(engine=engine)


def test_a_model_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        MillpondRerank(tmp_path / "none")
    with pytest.raises(ValidationError, match="model"):
        MillpondRerank()
    with pytest.raises(InvalidOption, match=r"millpond\.Engine"):
        MillpondRerank(engine="model")  # type: ignore[arg-type]


def test_options_reach_the_call() -> None:
    with scorer(FakeRunner(max_length=4)) as engine:
        reranker = MillpondRerank(engine=engine, activation="sigmoid", prompt="find: ")
        one = NodeWithScore(node=TextNode(text="a"))
        (found,) = reranker.postprocess_nodes([one], query_str="q")
        logit = scores_for([("find: q", "a")])[0, 0]
        assert found.score == pytest.approx(1 / (1 + np.exp(-logit)))
        strict = reranker.model_copy(update={"truncate": "error"})
        long = NodeWithScore(node=TextNode(text="b c d e"))
        with pytest.raises(TextTooLong) as refused:
            strict.postprocess_nodes([one, long], query_str="q")
        assert refused.value.index == 1


def test_errors_of_the_engine_reach_the_caller(rerank: Rerank) -> None:
    with scorer(FakeRunner(not_finite_on=["x"])) as engine:
        reranker = MillpondRerank(engine=engine)
        with pytest.raises(NonFiniteVector):
            rerank(reranker, nodes(), query_str=QUERY)
    with pytest.raises(EngineClosed):
        rerank(reranker, nodes(), query_str=QUERY)


def test_options_of_the_call_can_be_changed_and_the_engines_cannot(engine: Engine) -> None:
    reranker = MillpondRerank(engine=engine)
    reranker.top_n = 1
    assert len(reranker.postprocess_nodes(nodes(), query_str=QUERY)) == 1
    with pytest.raises(ValidationError):
        reranker.model = "another"
    with pytest.raises(InvalidOption):
        reranker.model_copy(update={"activation": "no such"})


def test_copies_and_pickles_use_the_shared_engine(tiny_reranker: str) -> None:
    one = MillpondRerank(tiny_reranker, top_n=3, dtype="float32")
    others = [
        pickle.loads(pickle.dumps(one)),
        one.model_copy(),
        one.model_copy(update={"top_n": 3}),
        MillpondRerank.from_dict(one.to_dict()),
        MillpondRerank(**one.model_dump()),
    ]
    before = one.engine.stats().texts
    expected = one.postprocess_nodes(nodes(), query_str=QUERY)
    for other in others:
        assert other.to_dict() == one.to_dict()
        assert other.postprocess_nodes(nodes(), query_str=QUERY) == expected
    assert one.engine.stats().texts == before + (1 + len(others)) * len(TEXTS)


# In a query engine.


class Everything(BaseRetriever):
    """Retrieves all nodes."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return nodes()


def test_a_query_engine_answers_from_the_best(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "_llm", MockLLM())  # which no answer is asked of
    synthesizer = get_response_synthesizer(response_mode=ResponseMode.NO_TEXT)
    query_engine = RetrieverQueryEngine(
        Everything(),
        response_synthesizer=synthesizer,
        node_postprocessors=[MillpondRerank(engine=engine)],
    )
    best = [str(place) for place in np.argsort(-scores())[:2]]
    for answer in (query_engine.query(QUERY), asyncio.run(query_engine.aquery(QUERY))):
        assert [one.node.node_id for one in answer.source_nodes] == best


# The distribution.


def test_only_public_names_of_millpond_are_imported() -> None:
    (source,) = Path(millpond_rerank.__file__).parent.glob("base.py")
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("millpond"):
            public = {"millpond": millpond.__all__, engine_fields.__name__: engine_fields.__all__}
            assert {alias.name for alias in node.names} <= set(public[node.module or ""])


def test_type_checkers_and_the_docstring_know_every_field() -> None:
    fields = set(MillpondRerank.model_fields)
    assert set(typing.get_type_hints(RerankOptions)) == fields - {"model"}
    doc = inspect.getdoc(MillpondRerank) or ""
    assert all(f"{name} (" in doc for name in fields)


def test_the_hub_of_llama_index_finds_the_class() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == "llama-index-postprocessor-millpond-rerank"
    hub = project["tool"]["llamahub"]
    assert hub["import_path"] == MillpondRerank.__module__.removesuffix(".base")
    assert list(hub["class_authors"]) == ["MillpondRerank"]
    assert "](.." not in (PROJECT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_example_reranks_what_the_index_finds(
    tiny_reranker: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = PROJECT.parents[1] / "examples"
    monkeypatch.setattr(Settings, "_llm", None)  # the example sets it
    monkeypatch.syspath_prepend(str(examples))
    importlib.import_module("llama_index_rerank").main(tiny_reranker)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * (1 + 3)
    found = [float(line.split()[0]) for line in lines if line.startswith("  ")]
    for first in range(0, len(found), 3):
        assert found[first : first + 3] == sorted(found[first : first + 3], reverse=True)


def test_a_multi_vector_model_reranks_too(tmp_path: Path) -> None:
    folder = save_multi_vector(tmp_path)
    texts = ["mill", "the stone grinds", "grain"]
    with Engine(folder, device="cpu") as engine:
        ranked = engine.rank("the stone", texts, top_n=2)
        reranker = MillpondRerank(engine=engine, top_n=2)
        nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in texts]
        found = reranker.postprocess_nodes(nodes, query_str="the stone")
        assert [each.score for each in found] == [one.score for one in ranked]
