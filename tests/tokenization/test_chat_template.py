"""Texts that go through a chat template have the ids sentence-transformers gives them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_templates import REFUSES_PROMPTS, TEMPLATES
from checkpoints import TEXTS, save_transformer
from families import ENCODER
from sentence_transformers.sentence_transformer.modules import Transformer

from millpond.checkpoint.input_config import chat_options
from millpond.checkpoint.modules import Module
from millpond.errors import InvalidCheckpoint, InvalidOption, InvalidText, UnsupportedModel
from millpond.tokenization.token_ids import TokenizedTexts
from millpond.tokenization.tokenizer import TextTokenizer

PROMPTS = ("", "the mill of the pond: ", "Instruct: find the mill\nQuery:")
TASKS = (None, "query", "document")
LIMITS = (19, 24, 40, 41, 42, 43, 10_000)
AUTO = chat_options({}, Path(), whole=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**ENCODER, "num_key_value_heads": 2, "max_position_embeddings": 20_000}
    folder = tmp_path_factory.mktemp("chat")
    return save_transformer(folder, model="Qwen2Model", tokenizer="chat", config=config)


@pytest.fixture(params=TEMPLATES)
def name(bare: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the template that `bare` has during the test."""
    with_template(bare, TEMPLATES[request.param])
    yield request.param
    (bare / "chat_template.jinja").unlink()


def with_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def load(folder: Path, chat: Any = AUTO, **options: Any) -> TextTokenizer:
    module = Module(
        kind="Transformer", path=folder, options={"chat": chat, **options}, class_name="Transformer"
    )
    return TextTokenizer.load(
        module, max_length=None, max_positions=None, hidden_vocab_size=None, trust_remote_code=False
    )


def rows(tokenized: TokenizedTexts) -> list[list[int]]:
    ends = tokenized.lengths.cumsum().tolist()
    return [tokenized.ids[start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]


def expected(official: Transformer, texts: Any, **options: Any) -> list[list[int]]:
    features = official.preprocess(list(texts), **options)
    masks = features["attention_mask"].bool()
    return [ids[mask].tolist() for ids, mask in zip(features["input_ids"], masks, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_are_those_of_sentence_transformers(bare: Path, name: str, side: str) -> None:
    lengths = set()
    for limit in LIMITS:
        official = Transformer(str(bare), max_seq_length=limit)
        official.tokenizer.truncation_side = side
        tokenizer = load(bare, max_seq_length=limit)
        for prompt in PROMPTS[: 1 if name == REFUSES_PROMPTS else None]:
            for task in TASKS:
                found = tokenizer.encode(
                    TEXTS,
                    prompt=prompt,
                    task=task,
                    truncate="end" if side == "right" else "start",
                )
                wanted = expected(official, TEXTS, prompt=prompt, task=task)
                assert rows(found) == wanted
                lengths |= {len(ids) for ids in wanted}
                if limit == max(LIMITS):
                    assert tokenizer.token_ids(TEXTS, prompt=prompt, task=task) == wanted
    assert lengths > set(LIMITS[:-1])  # cut at each of them, and whole


def test_every_length_around_the_limit(bare: Path) -> None:
    """Where what is cut ends within the template, and where nothing has to be cut."""
    with_template(bare, TEMPLATES["default_system"])
    texts = ["mill " * count + "ö" for count in range(30)]
    for restored in (True, False):
        saved = {"chat_template": {"restore_suffix": restored}}
        official = Transformer(str(bare), max_seq_length=36, processing_kwargs=saved)
        tokenizer = load(bare, {**AUTO, "restore_suffix": restored}, max_seq_length=36)
        found = tokenizer.encode(texts)
        assert rows(found) == expected(official, texts)
        assert 0 < found.truncated.sum() < len(texts)


@pytest.mark.parametrize("message_format", ["flat", "structured"])
def test_the_saved_format_of_messages(bare: Path, message_format: str) -> None:
    with_template(bare, "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}")
    how = {"method": "forward", "method_output_name": "last_hidden_state", "format": message_format}
    official = Transformer(
        str(bare), modality_config={"message": how}, module_output_name="token_embeddings"
    )
    found = load(bare, {**AUTO, "format": message_format}).encode(TEXTS, prompt="a")
    assert rows(found) == expected(official, TEXTS, prompt="a")


@pytest.mark.parametrize("model_type", ["qwen2", "gpt_oss", "apertus"])
@pytest.mark.parametrize("sign", ["", "{# content[0] #}", "{# item.type #}"])
def test_the_guessed_format_of_messages(
    bare: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, sign: str
) -> None:
    from sentence_transformers.base.modality import InputFormatter

    from millpond.tokenization.chat_template import ChatTemplate

    with_template(bare, sign + "{% for m in messages %}{{ m.content }};{% endfor %}")
    official = Transformer(str(bare))
    formatter = InputFormatter(model_type=model_type, processor=official.tokenizer)
    chat = ChatTemplate.load(official.tokenizer, AUTO, model_type=model_type, path=bare)
    assert f"format={formatter.message_format!r}" in repr(chat)


def test_arguments_of_the_template(bare: Path) -> None:
    with_template(bare, TEMPLATES["chatml"] + "{{ date }}")
    arguments = {"add_generation_prompt": True, "date": "today", "task": "mine"}
    official = Transformer(str(bare), processing_kwargs={"chat_template": dict(arguments)})
    tokenizer = load(bare, {**AUTO, "arguments": arguments})
    found = tokenizer.encode(TEXTS, task="query")
    assert rows(found) == expected(official, TEXTS, task="query")
    assert rows(found) != rows(load(bare).encode(TEXTS, task="query"))


def test_the_template_among_the_saved_arguments_of_the_tokenizer(bare: Path) -> None:
    saved = {"chat_template": "{{ messages[-1].content }} <|im_end|>"}
    official = Transformer(str(bare), processor_kwargs=dict(saved))
    found = load(bare, processor_kwargs=saved).encode(TEXTS)
    assert rows(found) == expected(official, TEXTS)


def test_a_prompt_has_no_length_of_its_own(bare: Path, name: str) -> None:
    """The reference leaves no prompt out of the pooling where there is a template."""
    official = Transformer(str(bare))
    if name != REFUSES_PROMPTS:
        assert "prompt_length" not in official.preprocess(["mill"], prompt=PROMPTS[1])
    assert load(bare).prompt_length(PROMPTS[1]) == 0


def test_the_prefix_that_texts_share_reaches_into_the_template(bare: Path, name: str) -> None:
    tokenizer = load(bare)
    for prompt in PROMPTS[: 1 if name == REFUSES_PROMPTS else None]:
        shared = tokenizer.shared_prefix_length(prompt)
        ids = tokenizer.token_ids(TEXTS, prompt=prompt)
        assert len({tuple(row[:shared]) for row in ids}) == 1
        after = name in ("prompt_last", "task")
        assert shared >= (0 if after else 1)


def test_continuations_that_the_template_refuses_are_left_out(bare: Path) -> None:
    """A hint about prompts is no reason for a call to fail."""
    refuses = (
        "{% if not m.content or 'refuse' in m.content %}{{ raise_exception('no') }}{% endif %}"
    )
    with_template(bare, "{% for m in messages %}" + refuses + "{{ m.content }}|{% endfor %}")
    tokenizer = load(bare)
    assert (
        tokenizer.shared_prefix_length("find it:") >= len(tokenizer.token_ids(["find it:"])[0]) - 1
    )
    assert tokenizer.shared_prefix_length("refuse:") == 0, "all of them are refused"


def test_the_prefix_that_texts_share_is_that_of_their_task(bare: Path) -> None:
    with_template(
        bare,
        "{{ 'Q: ' if task == 'query' else 'the mill by the pond: ' }}"
        "{% for m in messages %}{{ m.content }};{% endfor %}",
    )
    tokenizer = load(bare)
    query, plain = (tokenizer.shared_prefix_length("a", task) for task in ("query", None))
    ids = tokenizer.token_ids(TEXTS, prompt="a", task="query")
    assert len({tuple(row[:query]) for row in ids}) == 1
    assert 0 < query < plain


def test_ids_of_the_caller_are_taken_as_they_are(bare: Path) -> None:
    with_template(bare, TEMPLATES["chatml"])
    tokenizer = load(bare, max_seq_length=20)
    whole = tokenizer.token_ids(TEXTS)
    assert rows(tokenizer.fit_ids(whole)) == rows(tokenizer.encode(TEXTS))
    assert rows(tokenizer.fit_ids([[5] * 30])) == [[5] * 20]


def test_without_special_tokens_a_text_is_plain(bare: Path) -> None:
    with_template(bare, TEMPLATES["chatml"])
    plain = load(bare, None)
    found = load(bare).token_ids(TEXTS, prompt="a ", special_tokens=False)
    assert found == plain.token_ids(["a " + text for text in TEXTS], special_tokens=False)


class TestRefusals:
    def test_a_prompt_that_the_template_has_no_place_for(self, bare: Path) -> None:
        with_template(bare, TEMPLATES[REFUSES_PROMPTS])
        with pytest.raises(InvalidText, match=r"text 0: .*prompt.*System role not supported"):
            load(bare).encode(["mill", "pond"], prompt="a")

    def test_a_text_that_the_template_does_not_render(self, bare: Path) -> None:
        with_template(
            bare,
            "{% if 'pond' in messages[0].content %}{{ raise_exception('no ponds') }}{% endif %}"
            "{{ messages[0].content }}",
        )
        with pytest.raises(InvalidText, match=r"text 1: .*no ponds") as caught:
            load(bare).encode(["mill", "pond"])
        assert caught.value.index == 1

    def test_half_of_a_surrogate_pair(self, bare: Path) -> None:
        with_template(bare, TEMPLATES["chatml"])
        with pytest.raises(InvalidText, match=r"text 1: .*surrogate"):
            load(bare).encode(["mill", "half \ud83d of one"])

    def test_a_template_that_renders_no_text(self, bare: Path) -> None:
        with_template(bare, "{{ raise_exception('no') }}")
        with pytest.raises(UnsupportedModel, match=r"does not render a text .*no\)"):
            load(bare)
        with_template(
            bare, "{% for m in messages if m.role == 'query' %}{{ m.content }}{% endfor %}"
        )
        with pytest.raises(UnsupportedModel, match="every text alike"):
            load(bare)

    def test_a_template_that_is_needed_and_missing(self, bare: Path) -> None:
        (bare / "chat_template.jinja").unlink(missing_ok=True)
        with pytest.raises(InvalidCheckpoint, match=r"chat_template\.jinja"):
            load(bare, {**AUTO, "required": True})
        assert rows(load(bare).encode(TEXTS)) == rows(load(bare, None).encode(TEXTS))

    def test_no_room_beside_the_template(self, bare: Path) -> None:
        with_template(bare, TEMPLATES["chatml"])
        tokenizer = load(bare)
        with pytest.raises(InvalidOption, match="no room for text"):
            tokenizer.encode(["mill"], max_length=1)
