"""Decoders that embed: prompts, windows, the last token, chat templates, against the reference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from agreement import TOLERANCE, VISIBLE, agree, off
from chat_templates import REFUSES_PROMPTS, TEMPLATES
from checkpoints import reference, save_checkpoint, save_transformer
from families import FAMILIES, WIDTH
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)

from millpond import Engine, InvalidText

BATCH_TOKENS = 64
LONGEST = 3 * BATCH_TOKENS
WINDOW = 6
BY_NAME = {family.name: family for family in FAMILIES}
BIDIRECTIONAL = (
    "qwen2_bidirectional",
    "llama_bidirectional",
    "gemma3_text_bidirectional",
    "eurobert",
)
SLIDING = ("mistral", "qwen2_sliding", "phi3_sliding", "gemma2", "gemma3_text")
DECODERS = (
    "qwen2",
    "qwen3",
    "llama",
    "gemma2_softcap",  # runs padded, and then too the last token is the last real one
    "phi3",
    *SLIDING,
    *BIDIRECTIONAL,
)
PROMPTS = {"query": "Instruct: find the mill by the pond\nQuery: ", "document": "text: "}
_STORY = "the stone grinds the grain of the mill while the water of the pond falls"
WORDS = _STORY.split() * 8
LENGTHY = (
    "",
    "a",
    "mill",
    "東京 🦊",
    *(" ".join(WORDS[:count]) for count in (2, 5, 11, 12, 25, 40, 60, 90)),
    "mill",
    "x" * 400,
)
ASKED: Mapping[str, tuple[dict[str, Any], Callable[[SentenceTransformer], npt.NDArray[Any]]]] = {
    "plain": ({}, lambda official: official.encode(list(LENGTHY))),
    "query": ({"task": "query"}, lambda official: official.encode_query(list(LENGTHY))),
    "document": ({"task": "document"}, lambda official: official.encode_document(list(LENGTHY))),
    "given": (
        {"prompt": "of the pond: "},
        lambda official: official.encode(list(LENGTHY), prompt="of the pond: "),
    ),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def engine_on(folder: Path, **options: Any) -> Engine:
    return Engine(folder, device="cpu", dtype="float32", max_batch_tokens=BATCH_TOKENS, **options)


def distance(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def bare_folder(
    folder: Path, name: str, *, model: str | None = None, tokenizer: str | None = None
) -> Path:
    """A family as transformers saves it, with room for the longest text."""
    family = BY_NAME[name]
    # Padded on the left, a text of the reference stands at other positions in every batch, and
    # rounds in other ways: with weights as wide as elsewhere by up to the tolerance itself.
    config = {**family.config, "max_position_embeddings": LONGEST, "initializer_range": 0.1}
    return save_transformer(
        folder, model=model or family.model, tokenizer=tokenizer or family.tokenizer, config=config
    )


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A decoder's checkpoint, with prompts, long texts and three ways of pooling side by side."""

    @cache
    def save(name: str, side: str = "right", include_prompt: bool = True) -> Path:
        folder = tmp_path_factory.mktemp(name)
        bare = bare_folder(folder / "bare", name)
        model = Transformer(str(bare), processor_kwargs={"padding_side": side})
        modes = ("lasttoken", "mean", "weightedmean")
        pooling = Pooling(WIDTH, modes, include_prompt=include_prompt)
        return save_checkpoint(folder / "saved", [model, pooling], prompts=PROMPTS)

    return save


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DECODERS)
def test_prompts_lengths_and_poolings(saved: Callable[..., Path], name: str, side: str) -> None:
    """Texts of a token to three batches, padded by the reference on either side."""
    official = reference(saved(name, side))
    assert official.tokenizer.padding_side == side
    with engine_on(saved(name, side)) as engine:
        assert engine.info().execution == BY_NAME[name].execution
        for options, expected in ASKED.values():
            result = engine.submit(LENGTHY, **options).result()
            agree(result.vectors, expected(official))
            assert result.token_counts.max() == LONGEST
        assert engine.submit(LENGTHY).result().token_counts.min() <= 2


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "mistral", "gemma2_softcap", "eurobert"])
def test_pooling_without_the_prompt(saved: Callable[..., Path], name: str, side: str) -> None:
    folder = saved(name, side, include_prompt=False)
    official = reference(folder)
    with engine_on(folder) as engine, engine_on(saved(name, side)) as including:
        for options, expected in ASKED.values():
            agree(engine.embed(LENGTHY, **options), expected(official))
        asked = {"task": "query"}
        last, means = np.split(engine.embed(LENGTHY, **asked), [WIDTH], axis=1)
        last_too, other_means = np.split(including.embed(LENGTHY, **asked), [WIDTH], axis=1)
        assert np.array_equal(last, last_too)
        assert distance(means, other_means) > VISIBLE


@pytest.mark.parametrize("name", DECODERS)
def test_whether_a_token_sees_those_after_it_is_read_from_the_checkpoint(
    saved: Callable[..., Path], name: str
) -> None:
    folder, texts = saved(name), ["stone mill", "stone pond"]
    first = [rows[0] for rows in reference(folder).encode(texts, output_value="token_embeddings")]
    with engine_on(folder, pooling="cls") as engine:
        one, other = engine.embed(texts)
    if name in BIDIRECTIONAL:
        assert distance(one, other) > VISIBLE
        assert distance(first[0], first[1]) > VISIBLE
    else:
        assert np.array_equal(one, other)


@pytest.mark.parametrize("name", SLIDING)
def test_a_window_shorter_than_the_text(
    saved: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """Held to the reference above; here, that the window is what decides."""
    wide = shutil.copytree(saved(name), tmp_path / "wide")
    config = json.loads((wide / "config.json").read_text(encoding="utf-8"))
    assert config["sliding_window"] == WINDOW
    (wide / "config.json").write_text(json.dumps({**config, "sliding_window": 4096}))
    with engine_on(saved(name)) as engine, engine_on(wide) as other:
        assert engine.info().execution == "packed"
        assert distance(engine.embed(LENGTHY[-3]), other.embed(LENGTHY[-3])) > VISIBLE
        assert distance(engine.embed("a"), other.embed("a")) <= TOLERANCE


# The end of a text.


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokenizer", ["decoder", "left_padding_decoder", "unigram", "chat"])
def test_a_text_that_is_cut_keeps_its_end_token(tmp_path: Path, tokenizer: str, side: str) -> None:
    bare = bare_folder(tmp_path / "bare", "qwen3", tokenizer=tokenizer)
    encoder = Transformer(str(bare), max_seq_length=20, processor_kwargs={"truncation_side": side})
    folder = save_checkpoint(tmp_path / "saved", [encoder, Pooling(WIDTH, "lasttoken")])
    official = reference(folder)
    whole = official.tokenizer("mill")["input_ids"]
    cut = official.tokenizer(list(LENGTHY), truncation=True, max_length=20)["input_ids"]
    assert {ids[-1] for ids in cut} == {whole[-1]}
    with engine_on(folder) as engine:
        agree(engine.embed(LENGTHY), official.encode(list(LENGTHY)))
        other = "start" if side == "right" else "end"
        official.tokenizer.truncation_side = "left" if side == "right" else "right"
        agree(engine.embed(LENGTHY, truncate=other), official.encode(list(LENGTHY)))


@pytest.mark.parametrize("key", ["processor_kwargs", "tokenizer_args"])
def test_an_end_token_that_the_configuration_asks_for(tmp_path: Path, key: str) -> None:
    bare = bare_folder(tmp_path / "bare", "qwen3")
    edit(bare / "tokenizer.json", post_processor=None)
    plain = save_checkpoint(
        tmp_path / "plain", [Transformer(str(bare), max_seq_length=20), Pooling(WIDTH, "lasttoken")]
    )
    ended = shutil.copytree(plain, tmp_path / "ended")
    edit(ended / "sentence_bert_config.json", **{key: {"add_eos_token": True}})
    texts = [text for text in LENGTHY if text]  # without any token the reference has no answer
    for folder, eos in ((plain, False), (ended, True)):
        official = reference(folder)
        ids = official.tokenizer(texts, truncation=True)["input_ids"]
        assert {row[-1] == official.tokenizer.eos_token_id for row in ids} == {eos}
        with engine_on(folder) as engine:
            agree(engine.embed(texts), official.encode(texts))


# Without modules.json.


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen2ForCausalLM", "qwen2_sliding"),
        ("Qwen2ForCausalLM", "qwen2_bidirectional"),
        ("Qwen3ForCausalLM", "qwen3"),
        ("LlamaForCausalLM", "llama"),
        ("MistralForCausalLM", "mistral"),
        ("Gemma2ForCausalLM", "gemma2"),
        ("Gemma3ForCausalLM", "gemma3_text"),
        ("Phi3ForCausalLM", "phi3_sliding"),
    ],
)
def test_a_language_model_gives_its_last_token_unless_it_is_bidirectional(
    tmp_path: Path, model: str, name: str
) -> None:
    folder = bare_folder(tmp_path, name, model=model)
    pooling = "mean" if name in BIDIRECTIONAL else "lasttoken"
    with engine_on(folder) as engine, engine_on(folder, pooling=pooling) as said:
        assert engine.info().execution == "packed"
        vectors = engine.embed(LENGTHY)
        agree(vectors, reference(folder).encode(list(LENGTHY)))
        assert np.array_equal(vectors, said.embed(LENGTHY))


# Chat templates.


@pytest.fixture(params=TEMPLATES)
def chat(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A language model with a chat template, as transformers saves it."""
    folder = bare_folder(tmp_path / "chat", "qwen3", model="Qwen3ForCausalLM", tokenizer="chat")
    (folder / "chat_template.jinja").write_text(TEMPLATES[request.param], encoding="utf-8")
    return folder


def test_the_shape_of_embedding_gemma(saved_gemma: Path) -> None:
    """Attention both ways, the mean of all tokens, two Dense modules and a unit length."""
    official = reference(saved_gemma)
    with Engine(saved_gemma, device="cpu", dtype="float32") as engine:
        about = engine.info()
        assert (about.execution, about.prefix_cache) == ("packed", None)
        assert "not the last alone" in about.prefix_reason
        assert engine._instance.runners[0]._kv_cache is None  # type: ignore[attr-defined]
        assert engine.stats().prefix_cache is None
        texts = list(LENGTHY)
        for options, expected in (
            ({"task": "query"}, official.encode_query(texts)),
            ({"task": "document"}, official.encode_document(texts)),
            ({"prompt_name": "Clustering"}, official.encode(texts, prompt_name="Clustering")),
        ):
            found = engine.embed(texts, **options)  # type: ignore[arg-type]
            assert off(found, expected) <= TOLERANCE
            assert np.allclose(np.linalg.norm(found, axis=1), 1)


@pytest.fixture
def saved_gemma(tmp_path: Path) -> Path:
    family = BY_NAME["gemma3_text_bidirectional"]
    config = {**family.config, "max_position_embeddings": LONGEST, "initializer_range": 0.1}
    bare = save_transformer(
        tmp_path / "bare", model=family.model, tokenizer=family.tokenizer, config=config
    )
    linear = {"bias": False, "activation_function": torch.nn.Identity()}
    modules = [
        Transformer(str(bare), max_seq_length=LONGEST),
        Pooling(WIDTH, "mean"),
        Dense(WIDTH, 2 * WIDTH, **linear),
        Dense(2 * WIDTH, WIDTH, **linear),
        Normalize(),
    ]
    prompts = {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
        "Clustering": "task: clustering | query: ",
    }
    return save_checkpoint(tmp_path / "saved", modules, prompts=prompts)


def test_a_chat_model(chat: Path) -> None:
    """Its texts go through the template, in the plain folder and where it was saved from there."""
    official = reference(chat)
    assert "message" in official[0].modality_config
    official.save(str(chat.parent / "saved"), create_model_card=False)
    with engine_on(chat) as engine, engine_on(chat.parent / "saved") as saved:
        vectors = engine.embed(LENGTHY)
        agree(vectors, official.encode(list(LENGTHY)))
        assert np.array_equal(saved.embed(LENGTHY), vectors)


def test_a_prompt_of_a_chat_model_is_the_systems_message(chat: Path) -> None:
    official = reference(chat, prompts=PROMPTS)
    asked = dict(ASKED)
    with engine_on(chat, prompts=PROMPTS) as engine:
        if TEMPLATES[REFUSES_PROMPTS] == (chat / "chat_template.jinja").read_text():
            with pytest.raises(InvalidText, match=r"text 0: .*System role not supported"):
                engine.embed(LENGTHY, task="query")
            asked = {"plain": ASKED["plain"]}
        for options, expected in asked.values():
            agree(engine.embed(LENGTHY, **options), expected(official))
            ids = engine.tokenize(["mill"], **options)
            agree(engine.embed(ids), engine.embed(["mill"], **options))


def test_a_chat_template_older_than_messages_is_not_used(chat: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    reference(chat).save(str(folder), create_model_card=False)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 50}))
    official = reference(folder)
    with engine_on(folder) as engine:
        agree(engine.embed(LENGTHY), official.encode(list(LENGTHY)))
        assert distance(official.encode("mill"), reference(chat).encode("mill")) > VISIBLE
