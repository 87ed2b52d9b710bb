"""A call becomes a request with everything the runner and the scheduler need to know."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from fakes import FakeRunner, FakeTokenizer, fake_spec

from millpond import Engine, InvalidOption, Priority
from millpond.engine.engine import CallOptions
from millpond.engine.inputs import InputProcessor
from millpond.engine.params.embed import EmbedParams
from millpond.engine.settings import LONG_TEXT_TOKENS
from millpond.scheduler.batch import BatchShape
from millpond.scheduler.prefix_cache import PrefixCacheConfig
from millpond.scheduler.request import Request

RUNNER = FakeRunner(route_names=("query", "document"), shapes=(BatchShape(), BatchShape()))


def inputs_of(runner: FakeRunner, tokenizer: FakeTokenizer | None = None) -> InputProcessor:
    return InputProcessor(
        fake_spec(runner),
        runner.routes,
        [tokenizer or FakeTokenizer(runner)] * len(runner.routes),
        caches_prefixes=runner.prefix_cache_config is not None,
    )


def request_for(texts: Any, **options: Any) -> tuple[Request, bool]:
    return inputs_of(RUNNER).request(texts, EmbedParams(**options), now_s=50.0)


def test_the_options_of_a_call_are_the_same_everywhere() -> None:
    call = set(CallOptions.__annotations__)
    fields = {field.name for field in dataclasses.fields(EmbedParams)}
    assert fields == call | {"progress", "reports_truncation"}
    embed = set(Engine.embed.__annotations__) - {"texts", "return"}
    assert embed == call | {"progress"}


def test_a_call_becomes_a_request() -> None:
    request, single = request_for(
        ["a", "bb"], prompt="say this: ", task="document", timeout=2, priority="bulk"
    )
    assert not single
    assert request.texts == ["a", "bb"]
    assert (request.prompt, request.prompt_tokens, request.route) == ("say this: ", 2, 1)
    assert (request.arrived_s, request.deadline_s) == (50.0, 52.0)
    assert (request.priority, request.tokenized) == (Priority.BULK, False)


def test_the_tokens_that_texts_share_are_asked_for_with_the_task() -> None:
    """A chat template may begin with it."""

    class Chatty(FakeTokenizer):
        def shared_prefix_length(self, prompt: str, task: str | None) -> int:
            return {"query": 3, None: 9}[task]

    runner = FakeRunner(prefix_cache_config=PrefixCacheConfig(blocks=4))
    inputs = inputs_of(runner, Chatty(runner))
    asked = EmbedParams(task="query"), EmbedParams(prompt="ask: ")
    requests = [inputs.request("a", params, now_s=0.0)[0] for params in asked]
    assert [request.shared_tokens for request in requests] == [3, 9]


@pytest.mark.parametrize(
    ("max_length", "counted"),
    [(8, LONG_TEXT_TOKENS), (2 * LONG_TEXT_TOKENS, 2 * LONG_TEXT_TOKENS), (None, 2**20 + 2)],
)
@pytest.mark.parametrize("tokenized", [False, True])
def test_a_text_that_will_be_cut_does_not_fill_the_queue(
    max_length: int | None, counted: int, tokenized: bool
) -> None:
    runner = FakeRunner(max_length=max_length)
    text: Any = np.ones(2**20 + 2, dtype=np.int32) if tokenized else "a" * 2**22
    texts = [text, np.ones(3, dtype=np.int32) if tokenized else "abcd"]
    request, _ = inputs_of(runner).request(texts, EmbedParams(), now_s=0.0)
    assert request.waiting_tokens == request.size_guesses.sum() == counted + 3


def test_without_a_timeout_there_is_no_deadline() -> None:
    assert request_for("a")[0].deadline_s is None


@pytest.mark.parametrize(("texts", "single"), [("a", True), (["a"], False), ([1, 2], True)])
def test_a_single_text_is_told_from_a_list_of_one(texts: Any, single: bool) -> None:
    assert request_for(texts)[1] is single


def test_the_request_keeps_texts_of_its_own() -> None:
    texts = ["a", "b"]
    request, _ = request_for(texts)
    texts[0] = "changed"
    assert request.texts[0] == "a"


def test_token_ids_are_kept_as_integers_of_32_bits() -> None:
    ids = np.array([1, 2, 3])
    request, _ = request_for([ids, [4]])
    assert request.tokenized
    assert [text.dtype for text in request.texts] == [np.int32, np.int32]  # type: ignore[union-attr]
    ids[0] = 99
    assert list(request.texts[0]) == [1, 2, 3]


def test_a_single_vector_cannot_be_calibrated_and_is_refused_at_the_door() -> None:
    with pytest.raises(InvalidOption, match="one vector has none"):
        request_for(["a"], output_dtype="uint8")
    assert len(request_for(["a", "b"], output_dtype="uint8")[0]) == 2
