"""Law 3 over what a checkpoint can say: every module, format and option, against the reference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agreement import VISIBLE, agree
from checkpoints import TEXTS, TOKENIZERS, reference, save_checkpoint, save_transformer
from families import ENCODER, MAX_LENGTH, WIDTH
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import (
    LayerNorm,
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
)
from sentence_transformers.util import quantize_embeddings

from millpond import Engine, TextTooLong, UnknownTask

PROMPT = "the mill of the pond: "
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
CONCATENATIONS = [("cls", "mean"), ("max", "lasttoken", "weightedmean"), MODES]
POOLINGS = [*((mode,) for mode in MODES), *CONCATENATIONS]

pytestmark = pytest.mark.usefixtures("one_thread")


def engine_on(folder: Path, **options: Any) -> Engine:
    return Engine(folder, **{"device": "cpu", "dtype": "float32", **options})


def encoder(folder: Path, **options: Any) -> Transformer:
    return Transformer(str(folder), **{"max_seq_length": MAX_LENGTH, **options})


def seeded(make: Callable[[], Any]) -> Any:
    """A module with the same random weights in every run, biases and norms included."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        module = make()
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def agrees_with_reference(folder: Path, **options: Any) -> None:
    """Both sides called with nothing but the texts."""
    with engine_on(folder, **options) as engine:
        agree(engine.embed(TEXTS), reference(folder).encode(list(TEXTS)))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


# Pooling.


@pytest.mark.parametrize("modes", POOLINGS, ids="+".join)
def test_pooling(bare_bert: Path, tmp_path: Path, modes: tuple[str, ...]) -> None:
    """And with a prompt, which `include_prompt=False` leaves out of the pooling."""
    vectors = []
    for includes in (True, False):
        pooling = Pooling(WIDTH, modes, include_prompt=includes)
        folder = save_checkpoint(tmp_path / str(includes), [encoder(bare_bert), pooling])
        official = reference(folder)
        with engine_on(folder) as engine:
            agree(engine.embed(TEXTS), official.encode(list(TEXTS)))
            vectors.append(engine.embed(TEXTS[2:], prompt=PROMPT))
            agree(vectors[-1], official.encode(list(TEXTS[2:]), prompt=PROMPT))
    if modes != ("lasttoken",) and modes != ("max",):  # what is left out may not hold a maximum
        assert np.abs(vectors[0] - vectors[1]).max() > VISIBLE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", MODES)
def test_pooling_of_a_decoder_without_its_prompt(
    checkpoint: Callable[[str], Path], tmp_path: Path, mode: str, side: str
) -> None:
    bare = checkpoint("qwen3").parent / "bare"
    model = encoder(bare, processor_kwargs={"padding_side": side})
    pooling = Pooling(WIDTH, mode, include_prompt=False)
    folder = save_checkpoint(tmp_path, [model, pooling])
    with engine_on(folder) as engine:
        expected = reference(folder).encode(list(TEXTS[2:]), prompt=PROMPT)
        agree(engine.embed(TEXTS[2:], prompt=PROMPT), expected)


@pytest.mark.parametrize("modes", [("max",), ("cls", "mean")], ids="+".join)
def test_the_pooling_option_is_that_of_a_checkpoint(
    checkpoint: Callable[[str], Path], bare_bert: Path, tmp_path: Path, modes: tuple[str, ...]
) -> None:
    folder = save_checkpoint(tmp_path, [encoder(bare_bert), Pooling(WIDTH, modes)])
    other = save_checkpoint(tmp_path / "other", [encoder(bare_bert), Pooling(WIDTH, "lasttoken")])
    with engine_on(other, pooling=modes) as engine:
        agree(engine.embed(TEXTS), reference(folder).encode(list(TEXTS)))


# What follows the pooling.

HEADS: dict[str, Callable[[], Sequence[Any]]] = {
    "dense": lambda: [Dense(WIDTH, 24)],
    "dense_without_bias": lambda: [
        Dense(WIDTH, 80, bias=False, activation_function=torch.nn.Identity())
    ],
    "dense_residual": lambda: [Dense(WIDTH, 16, use_residual=True)],
    "dense_gelu": lambda: [Dense(WIDTH, 16, activation_function=torch.nn.GELU())],
    "dense_normalize": lambda: [Dense(WIDTH, 16), Normalize()],
    "normalize_dense": lambda: [Normalize(), Dense(WIDTH, 16)],
    "layer_norm": lambda: [LayerNorm(WIDTH)],
    "layer_norm_dense_normalize": lambda: [LayerNorm(WIDTH), Dense(WIDTH, 20), Normalize()],
    "dense_dense_layer_norm": lambda: [Dense(WIDTH, 128), Dense(128, 7), LayerNorm(7)],
    "normalize_layer_norm": lambda: [Normalize(), LayerNorm(WIDTH)],
}


@pytest.mark.parametrize("name", HEADS)
def test_modules_after_the_pooling_in_their_order(
    bare_bert: Path, tmp_path: Path, name: str
) -> None:
    head = seeded(lambda: torch.nn.ModuleList(HEADS[name]()))
    agrees_with_reference(
        save_checkpoint(tmp_path, [encoder(bare_bert), Pooling(WIDTH, "mean"), *head])
    )


def test_modules_on_tokens_before_the_pooling(bare_bert: Path, tmp_path: Path) -> None:
    on_tokens = {"module_input_name": "token_embeddings"}
    dense = seeded(lambda: Dense(WIDTH, 16, **on_tokens))
    modules = [encoder(bare_bert), dense, Normalize(**on_tokens), Pooling(16, "mean")]
    agrees_with_reference(save_checkpoint(tmp_path, modules))


@pytest.mark.parametrize("shown", [True, False])
def test_weighted_layers(bare_bert: Path, tmp_path: Path, shown: bool) -> None:
    """Without its layers shown, the reference passes the last one through."""
    options = {"config_kwargs": {"output_hidden_states": True}} if shown else {}
    layers = seeded(lambda: WeightedLayerPooling(WIDTH, num_hidden_layers=2, layer_start=1))
    folder = save_checkpoint(
        tmp_path, [encoder(bare_bert, **options), layers, Pooling(WIDTH, "mean")]
    )
    agrees_with_reference(folder)


# Formats.


def old_format(folder: Path, target: Path) -> Path:
    """The same checkpoint in the spelling of sentence-transformers 2."""
    shutil.copytree(folder, target)
    modules = json.loads((target / "modules.json").read_text(encoding="utf-8"))
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    write(target / "modules.json", modules)
    write(
        target / "sentence_bert_config.json",
        {"max_seq_length": MAX_LENGTH - 8, "do_lower_case": False},
    )
    pooling = next(target / m["path"] for m in modules if m["type"].endswith("Pooling"))
    write(
        pooling / "config.json",
        {
            "word_embedding_dimension": WIDTH,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": True,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    write(
        target / "config_sentence_transformers.json",
        {"__version__": {"sentence_transformers": "2.0.0", "transformers": "4.6.1"}},
    )
    return target


def test_the_old_format(bare_bert: Path, tmp_path: Path) -> None:
    dense = seeded(lambda: Dense(2 * WIDTH, 16))
    modules = [encoder(bare_bert), Pooling(WIDTH, ("max", "mean")), dense, Normalize()]
    folder = old_format(save_checkpoint(tmp_path / "new", modules), tmp_path / "old")
    agrees_with_reference(folder)
    with engine_on(folder) as engine:
        assert engine.info().max_length == MAX_LENGTH - 8


def test_lower_case(bare_bert: Path, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    bare = checkpoint("roberta").parent / "bare"  # its tokenizer tells cases apart
    folder = save_checkpoint(tmp_path, [encoder(bare, do_lower_case=True), Pooling(WIDTH, "mean")])
    agrees_with_reference(folder)
    with engine_on(folder) as engine, engine_on(checkpoint("roberta")) as plain:
        assert np.array_equal(engine.embed("Mill Pond"), engine.embed("mill pond"))
        assert not np.array_equal(plain.embed("Mill Pond"), plain.embed("mill pond"))


def test_an_encoder_without_modules_json_is_pooled_by_its_mean(bare_bert: Path) -> None:
    assert not (bare_bert / "modules.json").exists()
    agrees_with_reference(bare_bert)


def test_a_language_model_without_modules_json_gives_its_last_token(tmp_path: Path) -> None:
    config = {**ENCODER, "num_key_value_heads": 2}
    folder = save_transformer(
        tmp_path, model="Qwen2ForCausalLM", tokenizer="decoder", config=config
    )
    agrees_with_reference(folder)
    with engine_on(folder) as engine, engine_on(folder, pooling="lasttoken") as last:
        assert np.array_equal(engine.embed(TEXTS), last.embed(TEXTS))


def test_of_a_whole_t5_the_encoder_is_run(tmp_path: Path) -> None:
    config = {"d_model": WIDTH, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    bare = save_transformer(
        tmp_path / "bare", model="T5ForConditionalGeneration", tokenizer="unigram", config=config
    )
    dense = seeded(lambda: Dense(WIDTH, 24, bias=False, activation_function=torch.nn.Identity()))
    modules = [encoder(bare), Pooling(WIDTH, "mean"), dense, Normalize()]
    agrees_with_reference(save_checkpoint(tmp_path / "saved", modules))


def test_capped_scores_are_never_packed(tmp_path: Path) -> None:
    """With weights as small as these, the cap changes less than the check at load can see."""
    config = {
        **ENCODER,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.02,
        "attn_logit_softcapping": 50.0,
    }
    folder = save_transformer(tmp_path, model="Gemma2Model", tokenizer="decoder", config=config)
    with engine_on(folder) as engine:
        assert engine.info().execution == "padded"
        assert "softcap" in engine.info().reason


# Prompts.

PROMPTS = {"query": "question: ", "document": "text: ", "sts": "compare: "}


@pytest.fixture
def prompted(bare_bert: Path, tmp_path: Path) -> Callable[..., Path]:
    def save(**options: Any) -> Path:
        modules = [encoder(bare_bert), Pooling(WIDTH, "mean")]
        return save_checkpoint(tmp_path / "prompted", modules, **options)

    return save


def test_saved_prompts(prompted: Callable[..., Path]) -> None:
    folder = prompted(prompts=PROMPTS)
    official, texts = reference(folder), list(TEXTS)
    with engine_on(folder) as engine:
        agree(engine.embed(texts, task="query"), official.encode_query(texts))
        agree(engine.embed(texts, task="document"), official.encode_document(texts))
        agree(engine.embed(texts, prompt_name="sts"), official.encode(texts, prompt_name="sts"))
        agree(engine.embed(texts, prompt="my: "), official.encode(texts, prompt="my: "))
        agree(engine.embed(texts), official.encode(texts))
        ways: list[dict[str, Any]] = [
            {},
            {"task": "query"},
            {"task": "document"},
            {"prompt_name": "sts"},
            {"prompt": "my: "},
        ]
        assert len({engine.embed("mill", **way).tobytes() for way in ways}) == len(ways)
        # An explicit prompt beats a named one, which beats the task's.
        named = engine.embed(texts, task="query", prompt_name="sts")
        agree(named, official.encode_query(texts, prompt_name="sts"))
        explicit = engine.embed(texts, task="query", prompt="my: ")
        agree(explicit, official.encode_query(texts, prompt="my: "))


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
def test_a_document_prompt_of_another_name(prompted: Callable[..., Path], name: str) -> None:
    folder = prompted(prompts={"query": "question: ", name: "text: "})
    with engine_on(folder) as engine:
        expected = reference(folder).encode_document(list(TEXTS))
        agree(engine.embed(TEXTS, task="document"), expected)
        assert not np.array_equal(engine.embed(TEXTS), expected)


def test_the_default_prompt(prompted: Callable[..., Path]) -> None:
    folder = prompted(prompts=PROMPTS, default_prompt_name="sts")
    official, texts = reference(folder), list(TEXTS)
    with engine_on(folder) as engine:
        agree(engine.embed(texts), official.encode(texts))
        agree(engine.embed(texts), official.encode(texts, prompt="compare: "))
        agree(engine.embed(texts, prompt=""), official.encode(texts, prompt=""))
        agree(engine.embed(texts, task="query"), official.encode_query(texts))


def test_prompts_of_the_engine_go_over_the_saved_ones(prompted: Callable[..., Path]) -> None:
    folder, mine = prompted(prompts=PROMPTS), {"query": "ask: ", "new": "mine: "}
    official, texts = reference(folder, prompts={**PROMPTS, **mine}), list(TEXTS)
    with engine_on(folder, prompts=mine) as engine:
        agree(engine.embed(texts, task="query"), official.encode_query(texts))
        agree(engine.embed(texts, prompt_name="new"), official.encode(texts, prompt_name="new"))
        agree(engine.embed(texts, task="document"), official.encode_document(texts))


# What comes out.


def test_dimensions_are_cut_and_have_unit_length_again(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("bert")
    with engine_on(folder) as engine:
        for dimensions in (1, 8, 31):
            vectors = engine.embed(TEXTS, dimensions=dimensions)
            expected = reference(folder).encode(
                list(TEXTS), truncate_dim=dimensions, normalize_embeddings=True
            )
            agree(vectors, expected)
            assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)


def test_a_saved_number_of_dimensions(prompted: Callable[..., Path]) -> None:
    folder = prompted(truncate_dim=12)
    with engine_on(folder) as engine:
        vectors = engine.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 12)
    agree(vectors, reference(folder).encode(list(TEXTS)))


def test_a_saved_number_of_dimensions_with_unit_length(prompted: Callable[..., Path]) -> None:
    folder = prompted(truncate_dim=12)
    expected = reference(folder).encode(list(TEXTS), normalize_embeddings=True)
    with engine_on(folder) as engine:
        agree(engine.embed(TEXTS, normalize=True), expected)


def test_normalize(bare_bert: Path, tmp_path: Path) -> None:
    modules = [encoder(bare_bert), Pooling(WIDTH, "mean")]
    plain = save_checkpoint(tmp_path / "plain", modules)
    unit = save_checkpoint(tmp_path / "unit", [*modules, Normalize()])
    expected = {path: reference(path).encode(list(TEXTS)) for path in (plain, unit)}
    normalized = reference(plain).encode(list(TEXTS), normalize_embeddings=True)
    agree(expected[unit], normalized)
    for folder, normalize, wanted in [
        (plain, True, normalized),
        (plain, False, expected[plain]),
        (unit, True, normalized),
        (unit, None, normalized),
    ]:
        with engine_on(folder) as engine:
            agree(engine.embed(TEXTS, normalize=normalize), wanted)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("dimensions", [None, 16])
def test_output_types(
    checkpoint: Callable[[str], Path], dtype: Any, dimensions: int | None
) -> None:
    with engine_on(checkpoint("bert")) as engine:
        vectors = engine.embed(TEXTS, dimensions=dimensions)
        found = engine.embed(TEXTS, dimensions=dimensions, output_dtype=dtype)
    expected = quantize_embeddings(vectors, precision=dtype)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 10


def test_float16_is_rounded_from_float32(checkpoint: Callable[[str], Path]) -> None:
    with engine_on(checkpoint("bert")) as engine:
        vectors, half = engine.embed(TEXTS), engine.embed(TEXTS, output_dtype="float16")
    assert half.dtype == np.float16
    assert np.array_equal(half, vectors.astype(np.float16))


# Without a transformer, and with two ways through.


def static_embedding() -> StaticEmbedding:
    tokenizer = TOKENIZERS["word_piece"]()
    weights = np.random.default_rng(3).normal(size=(len(tokenizer), WIDTH)).astype(np.float32)
    return StaticEmbedding(tokenizer, embedding_weights=weights)


def test_static_embeddings(tmp_path: Path) -> None:
    dense = seeded(lambda: Dense(WIDTH, 16))
    plain = save_checkpoint(tmp_path / "plain", [static_embedding()])
    longer = save_checkpoint(tmp_path / "longer", [static_embedding(), dense, Normalize()])
    for folder in (plain, longer):
        agrees_with_reference(folder)
        with engine_on(folder) as engine:
            assert engine.info().execution == "static"


def test_a_router(bare_bert: Path, tmp_path: Path) -> None:
    dense = seeded(lambda: Dense(WIDTH, WIDTH))
    router = Router.for_query_document(
        query_modules=[static_embedding(), dense],
        document_modules=[encoder(bare_bert), Pooling(WIDTH, "mean")],
    )
    folder = save_checkpoint(tmp_path, [router, Normalize()], prompts=PROMPTS)
    official, texts = reference(folder), list(TEXTS)
    with engine_on(folder) as engine:
        agree(engine.embed(texts, task="query"), official.encode_query(texts))
        agree(engine.embed(texts, task="document"), official.encode_document(texts))
        agree(engine.embed(texts), official.encode(texts))
        routes = {route.name: route.execution for route in engine.info().routes}
        assert routes == {"query": "static", "document": "packed"}


def test_a_router_that_needs_a_task(bare_bert: Path, tmp_path: Path) -> None:
    router = Router.for_query_document(
        query_modules=[encoder(bare_bert), Pooling(WIDTH, "cls")],
        document_modules=[encoder(bare_bert), Pooling(WIDTH, "mean")],
        default_route=None,
        allow_empty_key=False,
    )
    folder = save_checkpoint(tmp_path, [router])
    official, texts = reference(folder), list(TEXTS)
    with engine_on(folder) as engine:
        agree(engine.embed(texts, task="query"), official.encode_query(texts))
        agree(engine.embed(texts, task="document"), official.encode_document(texts))
        with pytest.raises(UnknownTask):
            engine.embed(texts)


# What goes in.


def on_the_left(folder: Path) -> SentenceTransformer:
    official = reference(folder)
    official.tokenizer.truncation_side = "left"
    return official


@pytest.mark.parametrize("family", ["bert", "roberta", "qwen2", "qwen3", "t5"])
def test_truncation(checkpoint: Callable[[str], Path], family: str) -> None:
    folder = checkpoint(family)
    too_long = [len(ids) > MAX_LENGTH for ids in token_ids(folder)]
    with engine_on(folder) as engine:
        for side, official in [("end", reference(folder)), ("start", on_the_left(folder))]:
            result = engine.submit(TEXTS, truncate=side).result()
            agree(result.vectors, official.encode(list(TEXTS)))
            assert result.truncated.tolist() == too_long
        with pytest.raises(TextTooLong) as error:
            engine.embed(TEXTS, truncate="error")
        assert error.value.index == too_long.index(True)
        short = [text for text, cut in zip(TEXTS, too_long, strict=True) if not cut]
        agree(engine.embed(short, truncate="error"), reference(folder).encode(short))
        assert not np.array_equal(
            engine.embed(TEXTS[7], truncate="start"), engine.embed(TEXTS[7], truncate="end")
        )


def token_ids(folder: Path) -> list[list[int]]:
    ids: list[list[int]] = reference(folder).tokenizer(list(TEXTS))["input_ids"]
    return ids


@pytest.mark.parametrize("max_length", [5, 17, 60])
def test_max_length(checkpoint: Callable[[str], Path], max_length: int) -> None:
    official = reference(checkpoint("bert"))
    official.max_seq_length = max_length
    with engine_on(checkpoint("bert"), max_length=max_length) as engine:
        agree(engine.embed(TEXTS), official.encode(list(TEXTS)))


@pytest.mark.parametrize("family", ["bert", "qwen3", "mpnet"])
def test_token_ids_give_the_vectors_of_their_texts(
    checkpoint: Callable[[str], Path], family: str
) -> None:
    folder = checkpoint(family)
    ids = token_ids(folder)
    with engine_on(folder) as engine:
        expected = engine.embed(TEXTS)
        for given in (ids, [np.array(row) for row in ids], [np.array(r, np.int16) for r in ids]):
            assert np.array_equal(engine.embed(given), expected)
        assert np.array_equal(engine.embed(ids[4]), expected[4])


def test_a_text_alone_is_one_vector(checkpoint: Callable[[str], Path]) -> None:
    official = reference(checkpoint("bert"))
    with engine_on(checkpoint("bert")) as engine:
        agree(engine.embed("the mill"), official.encode("the mill"))
        assert engine.embed([]).shape == (0, WIDTH)
