"""Causal attention in tiles: the plain formula, and the same bits with and without a prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from millpond.attention import causal_tiles
from millpond.attention.causal_tiles import TILE, attend_in_tiles

LENGTHS = st.one_of(
    st.integers(1, 3 * TILE),
    st.sampled_from([5 * TILE + n for n in (-1, 0, 1)]),
    st.integers(300, 420),
)


def tensors(
    texts: int, heads: int, shared: int, length: int, size: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[texts, heads, length, size]` of texts of one length."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(texts, heads, length, size, generator=generator)
    key, value = (
        torch.randn(texts, heads // shared, length, size, generator=generator) for _ in range(2)
    )
    return query, key, value


def plain(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
) -> Tensor:
    """The formula, in double precision."""
    new, total = query.shape[2], key.shape[2]
    repeats = query.shape[1] // key.shape[1]
    query, key, value = query.double(), key.double(), value.double()
    key, value = (rows.repeat_interleave(repeats, dim=1) for rows in (key, value))
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[3] ** -0.5)
    distance = torch.arange(total - new, total)[:, None] - torch.arange(total)[None, :]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).float()


@settings(max_examples=40, deadline=None)
@given(
    length=LENGTHS,
    prefix=st.floats(0, 1),
    texts=st.integers(1, 3),
    heads=st.sampled_from([(4, 1), (4, 2), (4, 4)]),
    size=st.sampled_from([8, 16]),
    window=st.sampled_from([None, None, 1, 6, 40, 500]),
    scaling=st.sampled_from([None, 0.3]),
)
def test_it_is_the_formula_and_has_the_same_bits_after_any_prefix(
    length: int,
    prefix: float,
    texts: int,
    heads: tuple[int, int],
    size: int,
    window: int | None,
    scaling: float | None,
) -> None:
    query, key, value = tensors(texts, *heads, length, size)
    options: dict[str, Any] = {"scaling": scaling, "window": window}
    whole = attend_in_tiles(query, key, value, masks={}, **options)
    torch.testing.assert_close(whole, plain(query, key, value, **options), rtol=0, atol=2e-6)
    cached = min(int(prefix * length), length - 1)
    rest = attend_in_tiles(query[:, :, cached:], key, value, masks={}, **options)
    assert torch.equal(rest, whole[:, :, cached:])


@pytest.mark.parametrize("length", [1, TILE, TILE + 1, 5 * TILE, 5 * TILE + 1, 11 * TILE - 1])
def test_the_same_bits_after_every_prefix(length: int) -> None:
    query, key, value = tensors(1, 4, 2, length, 16)
    whole = attend_in_tiles(query, key, value, scaling=None, window=None, masks={})
    masks: causal_tiles.Masks = {}
    for cached in range(length):
        rest = attend_in_tiles(
            query[:, :, cached:], key, value, scaling=None, window=None, masks=masks
        )
        assert torch.equal(rest, whole[:, :, cached:]), cached


@pytest.mark.parametrize("length", [3, 40, 200])
def test_the_same_bits_in_any_company(length: int) -> None:
    query, key, value = tensors(7, 4, 2, length, 16)
    together = attend_in_tiles(query, key, value, scaling=None, window=None, masks={})
    for text in range(7):
        one = slice(text, text + 1)
        alone = attend_in_tiles(
            query[one], key[one], value[one], scaling=None, window=None, masks={}
        )
        assert torch.equal(alone, together[one])


def test_a_text_s_rows_depend_on_nothing_after_them() -> None:
    query, key, value = tensors(1, 2, 1, 100, 8)
    whole = attend_in_tiles(query, key, value, scaling=None, window=None, masks={})
    key[:, :, 50:], value[:, :, 50:] = 1e4, -1e4
    changed = attend_in_tiles(query, key, value, scaling=None, window=None, masks={})
    assert torch.equal(changed[:, :, :50], whole[:, :, :50])
    assert not torch.equal(changed[:, :, 50:], whole[:, :, 50:])


def test_a_mask_is_made_once_a_pass_for_each_window() -> None:
    query, key, value = tensors(2, 4, 2, 70, 8)
    masks: causal_tiles.Masks = {}
    attend_in_tiles(query, key, value, scaling=None, window=6, masks=masks)
    first = masks[6]
    attend_in_tiles(
        query[:, :, 40:50], key[:, :, :50], value[:, :, :50], scaling=None, window=6, masks=masks
    )
    assert masks[6] is first
    attend_in_tiles(query, key, value, scaling=None, window=None, masks=masks)
    assert masks.keys() == {6, None}


@pytest.mark.parametrize(
    ("length", "cached", "window", "keys"),
    [
        (10, 0, None, [32]),
        (100, 0, None, [32, 64, 96, 128]),
        (100, 70, None, [96, 128]),
        (100, 96, None, [128]),
        (100, 0, 20, [32, 64, 64, 64]),
        (100, 70, 33, [64, 64]),
        (100, 0, 34, [32, 64, 96, 96]),
    ],
)
def test_a_tile_is_given_the_keys_that_its_place_asks_for_and_no_others(
    monkeypatch: pytest.MonkeyPatch, length: int, cached: int, window: int | None, keys: list[int]
) -> None:
    given: list[tuple[int, int]] = []
    attention = causal_tiles.scaled_dot_product_attention

    def noted(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        given.append((query.shape[2], key.shape[2]))
        return attention(query, key, value, **options)

    monkeypatch.setattr(causal_tiles, "scaled_dot_product_attention", noted)
    query, key, value = tensors(1, 2, 1, length, 8)
    attend_in_tiles(query[:, :, cached:], key, value, scaling=None, window=window, masks={})
    assert given == [(TILE, count) for count in keys]
