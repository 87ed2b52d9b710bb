"""Sparse, multi-vector and bge-m3 models on a GPU give what they give on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from rerankers import PAIRS, save_reranker
from sparse_models import save_latent, save_masked, save_routed, save_splade, save_static

from millpond import Engine, SparseVectors, maxsim
from multi_vector import save_bge_m3, save_multi_vector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEXTS = [text for text in checkpoints.TEXTS if text]
MANY = [f"{text} {i % 17}" for i, text in enumerate(TEXTS * 20)]
EXACT, HALF = 1e-4, 1e-1
LEAST_COSINE = 0.95  # in half precision
ROUNDS = 3  # the first may run otherwise than those that come back


def on_the_cpu(folder: Path) -> Engine:
    return Engine(folder, device="cpu", dtype="float32")


def on_the_gpu(folder: Path, **options: Any) -> Engine:
    return Engine(folder, device="cuda:0", **options)


def are_near(found: np.ndarray, expected: np.ndarray, most: float) -> bool:
    """Whether unit vectors are those expected, by their numbers or, in half precision, cosines."""
    if most < HALF:
        return float(np.abs(found - expected).max()) < most
    return float((found * expected).sum(-1).min()) > LEAST_COSINE


def distance(found: SparseVectors, expected: SparseVectors) -> float:
    return float(np.abs(found.to_dense() - expected.to_dense()).max())


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        *(("bert", "max"), ("bert", "sum"), ("mpnet", "max"), ("mpnet", "sum")),
        *(("distilbert", "max"), ("xlm_roberta", "max"), ("modernbert", "max")),
    ],
)
def test_sparse_vectors_are_those_of_the_cpu(tmp_path: Path, family: str, strategy: str) -> None:
    folder = save_splade(tmp_path, family, pooling_strategy=strategy)
    with on_the_cpu(folder) as engine:
        expected = engine.embed_sparse(MANY)
        kept = engine.embed_sparse(MANY, max_active_dims=5)
    for options, most in (({"dtype": "float32"}, EXACT), ({}, HALF)):
        with on_the_gpu(folder, **options) as engine:
            for _ in range(ROUNDS):
                found = engine.embed_sparse(MANY)
                scale = max(1.0, float(expected.values.max()))
                assert distance(found, expected) < most * scale
            alone = engine.embed_sparse(MANY[5:6])
            assert distance(alone, expected[5:6]) < most * scale
            few = engine.embed_sparse(MANY, max_active_dims=5)
            assert np.diff(few.offsets).max() == 5
            if options:
                assert distance(few, kept) < most * scale


@pytest.mark.parametrize("save", [save_masked, save_static, save_routed, save_latent])
def test_every_kind_of_sparse_model_gives_what_it_gives_on_the_cpu(
    tmp_path: Path, save: Any
) -> None:
    folder = save(tmp_path)
    with on_the_cpu(folder) as engine:
        expected = [engine.embed_sparse(MANY, task=task) for task in ("query", "document")]
    with on_the_gpu(folder, dtype="float32") as engine:
        for vectors, task in zip(expected, ("query", "document"), strict=True):
            assert distance(engine.embed_sparse(MANY, task=task), vectors) < EXACT


@pytest.mark.parametrize(("texts", "tokens"), [(MANY[:1], 64), (MANY, 50)])
def test_small_batches_of_sparse_vectors_are_put_together(
    tmp_path: Path, texts: list[str], tokens: int
) -> None:
    folder = save_splade(tmp_path)
    with on_the_cpu(folder) as engine:
        expected = engine.embed_sparse(texts)
    with on_the_gpu(folder, dtype="float32", max_batch_tokens=tokens) as engine:
        assert distance(engine.embed_sparse(texts), expected) < EXACT


def test_sparse_vectors_have_the_same_bits_in_any_company(tmp_path: Path) -> None:
    with on_the_gpu(save_splade(tmp_path), batch_invariant=True) as engine:
        together = engine.embed_sparse(TEXTS)
        for i in range(0, len(TEXTS), 5):
            alone = engine.embed_sparse([TEXTS[i]])
            assert np.array_equal(alone.indices, together[i : i + 1].indices)
            assert np.array_equal(alone.values, together[i : i + 1].values)


@pytest.mark.parametrize("family", ["bert", "modernbert", "xlm_roberta", "mpnet"])
@pytest.mark.parametrize("task", ["query", "document"])
def test_token_vectors_are_those_of_the_cpu(tmp_path: Path, family: str, task: Any) -> None:
    folder = save_multi_vector(tmp_path, family=family)
    with on_the_cpu(folder) as engine:
        expected = engine.embed_tokens(MANY, task=task)
    for options, most in (({"dtype": "float32"}, EXACT), ({}, HALF)):
        with on_the_gpu(folder, **options) as engine:
            for _ in range(ROUNDS):
                found = engine.embed_tokens(MANY, task=task)
                assert np.array_equal(found.offsets, expected.offsets)
                assert are_near(found.vectors, expected.vectors, most)
            alone = engine.embed_tokens(MANY[7], task=task)
            assert are_near(alone, expected[7], most)


def test_token_vectors_have_the_same_bits_in_any_company(tmp_path: Path) -> None:
    with on_the_gpu(save_multi_vector(tmp_path), batch_invariant=True) as engine:
        for task in ("query", "document"):
            together = engine.embed_tokens(TEXTS, task=task)
            for i in range(0, len(TEXTS), 5):
                assert np.array_equal(engine.embed_tokens(TEXTS[i], task=task), together[i])


def test_late_interaction_ranks_as_on_the_cpu(tmp_path: Path) -> None:
    folder = save_multi_vector(tmp_path)
    with on_the_cpu(folder) as engine:
        query = engine.embed_tokens(TEXTS[0], task="query")
        scores = maxsim(query, engine.embed_tokens(MANY[:40], task="document"))
    with on_the_gpu(folder, dtype="float32") as engine:
        ranked = engine.rank(TEXTS[0], MANY[:40])
        found = np.array([one.score for one in sorted(ranked, key=lambda one: one.index)])
        assert np.abs(found - scores).max() < 1e-3


def test_all_kinds_of_one_pass_are_those_of_the_cpu(tmp_path: Path) -> None:
    folder = save_bge_m3(tmp_path)
    with on_the_cpu(folder) as engine:
        expected = engine.embed_all(MANY)
    for options, most in (({"dtype": "float32"}, EXACT), ({}, HALF)):
        with on_the_gpu(folder, **options) as engine:
            for _ in range(ROUNDS):
                found = engine.embed_all(MANY)
                assert are_near(found["dense"], expected["dense"], most)
                assert distance(found["sparse"], expected["sparse"]) < most
                assert are_near(found["tokens"].vectors, expected["tokens"].vectors, most)
            assert are_near(engine.embed(MANY), expected["dense"], most)
            assert distance(engine.embed_sparse(MANY), expected["sparse"]) < most


def test_classes_are_those_of_the_cpu(tmp_path: Path) -> None:
    folder = save_reranker("bert", tmp_path, labels=3)
    with on_the_cpu(folder) as engine:
        expected = engine.classify(PAIRS)
    with on_the_gpu(folder, dtype="float32") as engine:
        for _ in range(ROUNDS):
            for ours, theirs in zip(engine.classify(PAIRS), expected, strict=True):
                scores = {label.name: label.score for label in theirs}
                assert {label.name for label in ours} == scores.keys()
                assert all(abs(label.score - scores[label.name]) < EXACT for label in ours)
