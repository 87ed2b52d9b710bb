"""Token vectors are sentence-transformers' own, of every family and in every saved format."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TEXTS
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from millpond import Engine, TokenVectors
from multi_vector import (
    DIMENSION,
    MULTI_VECTOR,
    add_token,
    encoded,
    save_multi_vector,
    save_pylate,
    save_stanford,
)

pytestmark = pytest.mark.slow

TASKS = ("query", "document", None)


def engine_on(folder: Path, **options: Any) -> Engine:
    return Engine(str(folder), **{"dtype": "float32", "device": "cpu", **options})


def assert_is_reference(
    engine: Engine,
    folder: Path,
    *,
    texts: Sequence[str] = TEXTS,
    tasks: Sequence[str | None] = TASKS,
    options: Mapping[str, Any] | None = None,
    **call: Any,
) -> None:
    for task in tasks:
        found = engine.embed_tokens(texts, task=task, **call)
        expected = encoded(folder, texts, task, **(options or {}))
        assert found.counts.tolist() == [len(each) for each in expected]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", MULTI_VECTOR)
def test_every_family_gives_the_reference_s_vectors_whatever_the_batch(
    family: str, tmp_path: Path
) -> None:
    folder = save_multi_vector(tmp_path, family=family)
    with engine_on(folder) as engine:
        assert engine.info().kind == "multi_vector"
        assert engine.info().dimension == DIMENSION
        assert_is_reference(engine, folder)
        assert engine.info().batch_invariant
        for task in TASKS:
            together = engine.embed_tokens(TEXTS, task=task)
            for text, vectors in zip(TEXTS, together, strict=True):
                assert np.array_equal(engine.embed_tokens(text, task=task), vectors)


@pytest.mark.parametrize(
    "expansion",
    [
        {"strategy": "fixed", "attend": True, "length": 12},
        {"strategy": "min", "attend": False, "length": 9},
        {"strategy": "min", "attend": True, "length": 17, "token": "[SEP]"},
        None,
    ],
)
def test_queries_are_filled_up_as_the_checkpoint_says(
    expansion: dict[str, Any] | None, tmp_path: Path
) -> None:
    lengths = {"document_length": 21} if expansion else {"query_length": 7, "document_length": 21}
    folder = save_multi_vector(tmp_path, expansion=expansion, lengths=lengths)
    with engine_on(folder) as engine:
        assert_is_reference(engine, folder)


def test_a_least_length_may_have_a_ceiling_above(tmp_path: Path) -> None:
    folder = save_multi_vector(
        tmp_path,
        expansion={"strategy": "min", "length": 9},
        lengths={"query_length": 11, "document_length": 21},
    )
    with engine_on(folder) as engine:
        assert_is_reference(engine, folder, tasks=["query"])


@pytest.mark.parametrize("family", ["eurobert", "qwen3"])
def test_a_query_is_filled_up_in_front_where_the_tokenizer_pads_there(
    family: str, tmp_path: Path
) -> None:
    for attend in (True, False):
        expansion = {"strategy": "fixed", "attend": attend, "length": 12}
        folder = save_multi_vector(tmp_path / str(attend), family=family, expansion=expansion)
        with engine_on(folder) as engine:
            assert_is_reference(engine, folder, tasks=["query"])


@pytest.mark.parametrize(
    ("skipped", "mask"),
    [
        (["the", "mill"], {"skiplist_tasks": ["query", "document"]}),
        (["the"], {"keep_only_token_ids": [2, 3, 10, 11, 12, 50, 60, 70]}),
        ([], {}),
    ],
)
def test_which_tokens_have_a_vector_is_the_checkpoint_s_to_say(
    skipped: list[str], mask: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_multi_vector(tmp_path, skipped=skipped, mask=mask)
    with engine_on(folder) as engine:
        assert_is_reference(engine, folder)


def test_without_anything_that_tells_tasks_apart_there_is_one_route(tmp_path: Path) -> None:
    folder = save_multi_vector(tmp_path, skipped=[], expansion=None)
    with engine_on(folder) as engine:
        assert [route.name for route in engine.info().routes] == ["default"]
        assert_is_reference(engine, folder)


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"do_query_expansion": False, "skiplist_words": ["the"]},
        {
            "attend_to_expansion_tokens": True,
            "prompts": {"query": "[Q] stone ", "document": "mill"},
        },
        {"query_prefix": "[unused0] ", "document_prefix": None, "query_length": None},
    ],
)
def test_pylate_s_folders_are_read(saved: dict[str, Any], tmp_path: Path) -> None:
    folder = save_pylate(tmp_path / "model", **saved)
    add_token(folder, "[unused0]")
    with engine_on(folder) as engine:
        assert engine.info().kind == "multi_vector"
        assert_is_reference(engine, folder)


def test_pylate_s_prefixes_are_tokens_where_the_tokenizer_knows_them(tmp_path: Path) -> None:
    folder = save_pylate(tmp_path / "model")
    token = add_token(folder, "[Q] ")
    with engine_on(folder) as engine:
        first, *rest = engine.tokenize(["mill"], task="query")[0]
        assert [first, *rest[1:]] == engine.tokenize(["mill"])[0]
        assert rest[0] == token
        assert_is_reference(engine, folder)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {
            "query_maxlen": 14,
            "doc_maxlen": 18,
            "mask_punctuation": True,
            "attend_to_mask_tokens": False,
            "query_token_id": "[unused0]",
            "doc_token_id": "[unused1]",
        },
        {"doc_maxlen": 9, "mask_punctuation": False, "attend_to_mask_tokens": True},
    ],
)
def test_stanford_s_folders_are_read(metadata: dict[str, Any] | None, tmp_path: Path) -> None:
    folder = save_stanford(tmp_path / "model", metadata)
    token = add_token(folder, "[unused0]")
    with engine_on(folder) as engine:
        assert engine.info().kind == "multi_vector"
        assert engine.tokenize(["mill"], task="query")[0][1] == token
        assert_is_reference(engine, folder)


@pytest.mark.parametrize(
    "saved",
    [
        HierarchicalTokenPooling(pool_factor=2.0),
        HierarchicalTokenPooling(
            pool_factor=1.5,
            num_protected_tokens=0,
            normalize_embeddings=False,
            tasks=["query", "document"],
        ),
    ],
)
def test_a_token_pooling_of_the_checkpoint_is_applied(
    saved: HierarchicalTokenPooling, tmp_path: Path
) -> None:
    folder = save_multi_vector(tmp_path, pooling=saved)
    with engine_on(folder) as engine:
        assert_is_reference(engine, folder)
        pooling = HierarchicalTokenPooling(pool_factor=2)  # and another one of the call
        options = {"token_pooling": pooling}
        assert_is_reference(engine, folder, tasks=["document"], options=options, pool_factor=2)


@pytest.mark.parametrize("factor", [1, 1.5, 2, 3.5, 1000])
def test_pool_factor_is_the_reference_s_token_pooling(factor: float, multi_vector: Path) -> None:
    options = {"token_pooling": HierarchicalTokenPooling(pool_factor=factor)} if factor > 1 else {}
    with Engine.shared(str(multi_vector), dtype="float32", device="cpu") as engine:
        tasks = ["document", None]
        assert_is_reference(engine, multi_vector, tasks=tasks, options=options, pool_factor=factor)


def test_half_precision_is_close(multi_vector: Path) -> None:
    with engine_on(multi_vector, dtype="bfloat16") as half, engine_on(multi_vector) as whole:
        for task in TASKS:
            found, expected = (each.embed_tokens(TEXTS, task=task) for each in (half, whole))
            assert isinstance(found, TokenVectors)
            cosines = (found.vectors * expected.vectors).sum(axis=1)
            assert cosines.min() > 0.99
            assert np.array_equal(found.offsets, expected.offsets)


@pytest.fixture(scope="module")
def multi_vector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_multi_vector(tmp_path_factory.mktemp("multi_vector"), skipped=string.punctuation)
