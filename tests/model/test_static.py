"""Static embeddings are those of sentence-transformers, in both layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from millpond.checkpoint.modules import Module
from millpond.errors import InvalidCheckpoint
from millpond.model.static import StaticEmbeddings
from millpond.tokenization.tokenizer import TextTokenizer

CPU = torch.device("cpu")
WORDS = ["[UNK]", "the", "mill", "pond", "drives", "wheel", "stone"]
TEXTS = ["the mill", "", "the pond drives the wheel of stone", "", "stone " * 500, ""]
VECTORS = torch.randn(len(WORDS), 24, generator=torch.Generator().manual_seed(3))


def words() -> Tokenizer:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def save(folder: Path, **weights: torch.Tensor) -> Module:
    words().save(str(folder / "tokenizer.json"))
    named = {name.replace("__", "."): weight for name, weight in weights.items()}
    save_file(named, folder / "model.safetensors")
    return module(folder)


def module(folder: Path) -> Module:
    return Module(kind="StaticEmbedding", path=folder, options={}, class_name="StaticEmbedding")


def embed(loaded: StaticEmbeddings, folder: Path, texts: list[str]) -> torch.Tensor:
    tokenizer = TextTokenizer.load(
        module(folder),
        max_length=None,
        max_positions=None,
        hidden_vocab_size=loaded.vocab_size,
        trust_remote_code=False,
    )
    found = tokenizer.encode(texts)
    lengths = torch.from_numpy(found.lengths.astype(np.int64))
    ids = torch.from_numpy(found.ids.astype(np.int64))
    return loaded(ids, lengths.cumsum(0) - lengths, lengths)


def official(folder: Path, texts: list[str]) -> torch.Tensor:
    reference = StaticEmbedding.load(str(folder))
    with torch.no_grad():
        found: torch.Tensor = reference(reference.preprocess(texts))["sentence_embedding"]
    return found


LAYOUTS: dict[str, dict[str, torch.Tensor]] = {
    "sentence_transformers": {"embedding__weight": VECTORS},
    "model2vec": {"embeddings": VECTORS},
    "model2vec_mapping": {
        "embeddings": VECTORS[:4].contiguous(),
        "mapping": torch.tensor([0, 3, 1, 2, 2, 0, 3]),
    },
    "model2vec_weights": {
        "embeddings": VECTORS,
        "weights": torch.linspace(0.1, 2, len(WORDS), dtype=torch.float64),
    },
    "model2vec_both": {
        "embeddings": VECTORS[:3].contiguous(),
        "mapping": torch.tensor([0, 1, 2, 0, 1, 2, 0], dtype=torch.int32),
        "weights": torch.linspace(0.1, 2, len(WORDS)),
    },
    "model2vec_int8": {
        "embeddings": (VECTORS * 40).to(torch.int8),
        "weights": torch.linspace(0.1, 2, len(WORDS)),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_are_those_of_sentence_transformers(tmp_path: Path, layout: str) -> None:
    loaded = StaticEmbeddings.load(save(tmp_path, **LAYOUTS[layout]), CPU)
    found = embed(loaded, tmp_path, TEXTS)
    torch.testing.assert_close(found, official(tmp_path, TEXTS), rtol=0, atol=1e-6)
    assert (found.dtype, loaded.vocab_size, loaded.width) == (torch.float32, 7, 24)
    assert not found[1::2].any()
    assert found[::2].any(dim=1).all()


def test_a_half_precision_table_is_averaged_in_float32(tmp_path: Path) -> None:
    loaded = StaticEmbeddings.load(save(tmp_path, embedding__weight=VECTORS.half()), CPU)
    found = embed(loaded, tmp_path, ["the mill"])
    exact = VECTORS.half()[[1, 2]].double().mean(0).float()
    torch.testing.assert_close(found[0], exact, rtol=0, atol=1e-7)


def test_the_older_weight_file_is_read(tmp_path: Path) -> None:
    reference = StaticEmbedding(words(), embedding_weights=VECTORS)
    reference.save(str(tmp_path), safe_serialization=False)
    loaded = StaticEmbeddings.load(module(tmp_path), CPU)
    found = embed(loaded, tmp_path, TEXTS)
    torch.testing.assert_close(found, official(tmp_path, TEXTS), rtol=0, atol=1e-6)


def test_texts_without_any_token_give_zeros(tmp_path: Path) -> None:
    loaded = StaticEmbeddings.load(save(tmp_path, embedding__weight=VECTORS), CPU)
    assert torch.equal(embed(loaded, tmp_path, ["", ""]), torch.zeros(2, 24))
    assert embed(loaded, tmp_path, []).shape == (0, 24)


def test_ids_after_the_last_text_are_ignored(tmp_path: Path) -> None:
    loaded = StaticEmbeddings.load(save(tmp_path, embedding__weight=VECTORS), CPU)
    lengths = torch.tensor([2, 1])
    found = loaded(torch.tensor([1, 2, 3, 6, 6, 6]), torch.tensor([0, 2]), lengths)
    expected = loaded(torch.tensor([1, 2, 3]), torch.tensor([0, 2]), lengths)
    assert torch.equal(found, expected)


def test_the_same_bits_alone_and_in_company(tmp_path: Path) -> None:
    loaded = StaticEmbeddings.load(save(tmp_path, embedding__weight=VECTORS), CPU)
    generator = np.random.default_rng(5)
    texts = [" ".join(generator.choice(WORDS, generator.integers(0, 40))) for _ in range(200)]
    together = embed(loaded, tmp_path, texts)
    for index in range(0, 200, 7):
        assert torch.equal(together[index], embed(loaded, tmp_path, [texts[index]])[0])


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"neither 'embedding\.weight' nor.*but other"):
        StaticEmbeddings.load(save(tmp_path, other=VECTORS), CPU)
    with pytest.raises(InvalidCheckpoint, match=r"shape \[7\]; it must be"):
        StaticEmbeddings.load(save(tmp_path, embeddings=torch.zeros(7)), CPU)
