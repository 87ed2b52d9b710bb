"""Settings of calls with the same options are found once, and bad options are never remembered."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeRunner, FakeTokenizer, fake_spec

from millpond import MillpondError
from millpond.engine.inputs import InputProcessor
from millpond.engine.params.embed import EmbedParams
from millpond.engine.settings import KEPT

RUNNER = FakeRunner()


class CountingTokenizer(FakeTokenizer):
    """Counts the prompts that it is asked about."""

    asked = 0

    def prompt_length(self, prompt: str) -> int:
        self.asked += 1
        return super().prompt_length(prompt)

    def shared_prefix_length(self, prompt: str, task: str | None) -> int:
        self.asked += 1
        return super().shared_prefix_length(prompt, task)


def inputs_of(tokenizer: FakeTokenizer) -> InputProcessor:
    return InputProcessor(fake_spec(RUNNER), RUNNER.routes, [tokenizer], caches_prefixes=True)


def test_calls_with_the_same_options_ask_once() -> None:
    tokenizer = CountingTokenizer(RUNNER)
    inputs = inputs_of(tokenizer)
    first = inputs.settings_of(EmbedParams(prompt="say this: "), are_ids=False)
    asked = tokenizer.asked
    assert asked
    again = inputs.settings_of(EmbedParams(prompt="say this: ", timeout=3), are_ids=False)
    assert again is first
    assert tokenizer.asked == asked
    assert (
        inputs.settings_of(EmbedParams(prompt="say that: "), are_ids=False).prompt == "say that: "
    )


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"dimensions": 1}, {"dimensions": True}),
        ({"normalize": True}, {"normalize": 1}),
        ({}, {"truncate": "middle"}),
        ({}, {"truncate": []}),
        ({}, {"timeout": -1}),
        ({"timeout": 1}, {"timeout": True}),
        ({}, {"priority": "soon"}),
        ({}, {"task": ["query"]}),
        ({}, {"output_dtype": {}}),
    ],
)
def test_a_bad_option_is_refused_however_like_a_good_one_it_is(
    good: dict[str, Any], bad: dict[str, Any]
) -> None:
    inputs = inputs_of(FakeTokenizer(RUNNER))
    inputs.settings_of(EmbedParams(**good), are_ids=False)
    for _ in range(2):
        with pytest.raises(MillpondError):
            inputs.settings_of(EmbedParams(**bad), are_ids=False)


def test_a_prompt_before_token_ids_is_refused_after_it_stood_before_strings() -> None:
    inputs = inputs_of(FakeTokenizer(RUNNER))
    inputs.settings_of(EmbedParams(prompt="say this: "), are_ids=False)
    with pytest.raises(MillpondError):
        inputs.settings_of(EmbedParams(prompt="say this: "), are_ids=True)


def test_a_limited_number_is_remembered() -> None:
    inputs = inputs_of(FakeTokenizer(RUNNER))
    for number in range(2 * KEPT + 3):
        inputs.settings_of(EmbedParams(prompt=f"{number}: "), are_ids=False)
    assert inputs._known_settings.cache_info().currsize == KEPT  # type: ignore[attr-defined]
