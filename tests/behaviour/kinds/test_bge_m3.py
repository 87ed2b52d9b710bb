"""bge-m3 gives a dense, a sparse and a vector for each token, as FlagEmbedding computes them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TEXTS
from torch.nn.functional import linear, normalize
from transformers import AutoModel, AutoTokenizer

from millpond import (
    Engine,
    InvalidCheckpoint,
    InvalidInput,
    InvalidText,
    NonFiniteVector,
    TokenVectors,
    UnsupportedCall,
)
from millpond.sparse.vectors import SparseVectors
from multi_vector import DIMENSION, save_bge_m3, save_multi_vector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bge_m3(tmp_path_factory.mktemp("bge_m3") / "model")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(str(folder), dtype="float32", device="cpu") as made:
        yield made


@torch.inference_mode()
def reference(folder: Path, text: str, max_length: int) -> tuple[Any, dict[int, float], Any]:
    """Dense, sparse and token vectors of a text, of transformers' model and the two layers."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    colbert, sparse = (
        torch.load(folder / f"{name}_linear.pt", weights_only=True)
        for name in ("colbert", "sparse")
    )
    encoded = tokenizer([text], truncation=True, max_length=max_length, return_tensors="pt")
    hidden = model.eval()(**encoded).last_hidden_state[0]
    weights = torch.relu(linear(hidden, sparse["weight"], sparse["bias"]))[:, 0].tolist()
    unused = {getattr(tokenizer, f"{name}_token_id") for name in ("cls", "eos", "pad", "unk")}
    found: dict[int, float] = defaultdict(float)
    for token, weight in zip(encoded["input_ids"][0].tolist(), weights, strict=True):
        if token not in unused and weight > 0:
            found[token] = max(found[token], weight)
    vectors = normalize(linear(hidden[1:], colbert["weight"], colbert["bias"]), dim=-1)
    return normalize(hidden[0], dim=-1).numpy(), dict(found), vectors.numpy()


def assert_close(found: SparseVectors, expected: list[dict[int, float]]) -> None:
    for ours, theirs in zip(found.to_dicts(), expected, strict=True):
        assert list(ours) == sorted(theirs)
        np.testing.assert_allclose(list(ours.values()), [theirs[i] for i in ours], atol=1e-5)


def test_one_pass_gives_what_flag_embedding_computes(engine: Engine, folder: Path) -> None:
    assert engine.info().kind == "embed"
    length = engine.info().max_length
    assert length is not None
    expected = [reference(folder, text, length) for text in TEXTS]
    before = engine.stats().texts
    found = engine.embed_all(TEXTS)
    assert engine.stats().texts - before <= len(TEXTS)
    np.testing.assert_allclose(found["dense"], [dense for dense, _, _ in expected], atol=1e-5)
    assert_close(found["sparse"], [weights for _, weights, _ in expected])
    assert isinstance(found["tokens"], TokenVectors)
    assert found["tokens"].dimension == DIMENSION
    for ours, (_, _, theirs) in zip(found["tokens"], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_each_of_them_is_to_be_had_alone_to_the_bit(engine: Engine) -> None:
    found = engine.embed_all(TEXTS)
    assert np.array_equal(engine.embed(TEXTS), found["dense"])
    assert engine.embed_sparse(TEXTS).to_dicts() == found["sparse"].to_dicts()
    assert engine.embed_tokens(TEXTS) == found["tokens"]
    for place, text in enumerate(TEXTS):
        one = engine.embed_all(text)
        assert np.array_equal(one["dense"], found["dense"][place])
        assert one["sparse"].to_dict() == found["sparse"][place].to_dict()
        assert np.array_equal(one["tokens"], found["tokens"][place])
    assert all(route.batch_invariant for route in engine.info().routes)


def test_every_way_of_calling_gives_the_same(engine: Engine) -> None:
    texts = list(TEXTS[:4])
    expected = engine.embed_all(texts)
    result = engine.submit_all(texts).result()
    awaited = asyncio.run(engine.aembed_all(texts))
    for dense, sparse, tokens in (
        (result.dense, result.sparse, result.tokens),
        (awaited["dense"], awaited["sparse"], awaited["tokens"]),
    ):
        assert np.array_equal(dense, expected["dense"])
        assert sparse.to_dicts() == expected["sparse"].to_dicts()
        assert tokens == expected["tokens"]
    assert {kind: len(each) for kind, each in engine.embed_all([]).items()} == {
        "dense": 0,
        "sparse": 0,
        "tokens": 0,
    }


def test_options_of_each_kind(engine: Engine) -> None:
    sparse = engine.embed_sparse(TEXTS, max_active_dims=2)
    assert max(map(len, sparse)) <= 2
    cut = engine.embed_tokens(TEXTS, dimensions=5, pool_factor=2)
    assert cut.dimension == 5
    assert engine.embed(TEXTS, dimensions=8).shape == (len(TEXTS), 8)
    assert engine.rank("mill", ["mill", "stone"])[0].index == 0


def test_one_bad_text_fails_alone(engine: Engine) -> None:
    result = engine.submit_all(["mill", 3, "stone"]).result()  # type: ignore[list-item]
    assert {row: type(error) for row, error in result.errors.items()} == {1: InvalidText}
    assert np.isnan(result.dense[1]).all()
    assert (len(result.sparse[1]), len(result.tokens[1])) == (0, 0)
    assert np.array_equal(result.dense[2], engine.embed("stone"))
    with pytest.raises(InvalidInput):
        engine.embed_all(["mill", 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="unknown option"):
        engine.embed_all(["mill"], dimensions=4)  # type: ignore[call-arg]


def test_what_is_not_finite_is_the_error_of_its_text(folder: Path) -> None:
    with Engine(str(folder), dtype="float32", device="cpu") as spoiled:
        table = spoiled._instance.runners[0].models[0].encoder.model.embeddings.word_embeddings
        (ids,) = spoiled.tokenize(["grain"], special_tokens=False)
        table.weight.data[ids[-1]] = np.nan
        for submit in (spoiled.submit_all, spoiled.submit_tokens, spoiled.submit_sparse):
            errors = submit(["mill", "grain"]).result().errors
            assert {row: type(error) for row, error in errors.items()} == {1: NonFiniteVector}


def test_a_folder_without_modules_is_run_as_flag_embedding_runs_it(tmp_path: Path) -> None:
    folder = save_bge_m3(tmp_path / "model", whole=False)
    with Engine(str(folder), dtype="float32", device="cpu") as bare:
        dense, weights, vectors = reference(folder, "the stone", bare.info().max_length or 0)
        found = bare.embed_all("the stone")
    np.testing.assert_allclose(found["dense"], dense, atol=1e-5)
    np.testing.assert_allclose(found["tokens"], vectors, atol=1e-5)
    assert list(found["sparse"].to_dict()) == sorted(weights)


def test_a_wider_token_vector_than_the_dense_one_has_room(tmp_path: Path) -> None:
    folder = save_bge_m3(tmp_path / "model", vector_width=80)
    with Engine(str(folder), dtype="float32", device="cpu") as wide:
        found = wide.embed_all(["the stone", "mill"])
        assert found["tokens"] == wide.embed_tokens(["the stone", "mill"])
        assert found["tokens"].dimension == 80
        assert np.array_equal(found["dense"], wide.embed(["the stone", "mill"]))


def test_without_one_of_the_heads_it_is_a_model_that_embeds(tmp_path: Path) -> None:
    folder = save_bge_m3(tmp_path / "model")
    (folder / "sparse_linear.pt").unlink()
    with Engine(str(folder), device="cpu") as plain:
        assert [route.name for route in plain.info().routes] == ["default"]
        assert list(plain.embed_all(["mill"])) == ["dense"]
        with pytest.raises(UnsupportedCall, match="does not give several"):
            plain.submit_all(["mill"])


class Harmful:
    """Runs code where a file is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code was run')",)


@pytest.mark.parametrize(
    "saved",
    [
        {"weight": torch.zeros(3, 64)},
        {"weight": torch.zeros(3, 64), "bias": torch.zeros(2)},
        {"weight": torch.zeros(3, 63), "bias": torch.zeros(3)},
        {"weight": torch.full((3, 64), torch.nan), "bias": torch.zeros(3)},
        {"weight": Harmful(), "bias": torch.zeros(3)},
    ],
)
def test_a_head_that_is_none_is_refused_and_no_code_is_run(saved: Any, tmp_path: Path) -> None:
    folder = save_bge_m3(tmp_path / "model")
    torch.save(saved, folder / "colbert_linear.pt")
    with pytest.raises(InvalidCheckpoint, match=r"colbert_linear\.pt"):
        Engine(str(folder), device="cpu")


def test_other_models_give_the_kinds_that_they_have(tmp_path: Path, bare_bert: Path) -> None:
    multi_vector = save_multi_vector(tmp_path)
    with (
        Engine(str(multi_vector), device="cpu") as late,
        Engine(str(bare_bert), device="cpu") as bert,
    ):
        found = late.embed_all(["mill"], task="document")
        assert list(found) == ["tokens"]
        assert found["tokens"] == late.embed_tokens(["mill"], task="document")
        assert list(asyncio.run(late.aembed_all("mill"))) == ["tokens"]
        assert np.array_equal(bert.embed_all(["mill"])["dense"], bert.embed(["mill"]))
