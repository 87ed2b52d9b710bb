"""The block pool: who holds a block, and which free one is taken next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.scheduler.block_pool import BlockPool


def all_of(pool: BlockPool) -> list[int]:
    """Every block that can still be had, in the order it is given out."""
    blocks = iter(pool.allocate, None)
    return [block for block in blocks if block is not None]


def test_every_block_is_given_out_once_and_then_there_is_none() -> None:
    pool = BlockPool(3)
    assert sorted(all_of(pool)) == [0, 1, 2]
    assert pool.allocate() is None
    assert (pool.size, pool.in_use, pool.free) == (3, 3, 0)


def test_a_pool_without_blocks_has_none_to_give() -> None:
    pool = BlockPool(0)
    assert pool.allocate() is None
    pool.check()


def test_a_block_is_free_when_its_last_reference_is_gone() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    assert block is not None
    pool.acquire(block)
    pool.release(block, keep=True)
    assert (pool.references(block), pool.free) == (1, 0)
    pool.release(block, keep=True)
    assert (pool.references(block), pool.free) == (0, 1)


def test_the_least_recently_used_block_is_taken_first() -> None:
    pool = BlockPool(3)
    all_of(pool)
    for block in (1, 2, 0):
        pool.release(block, keep=True)
    pool.acquire(1)
    pool.release(1, keep=True)  # used again, so it is last now
    assert all_of(pool) == [2, 0, 1]


def test_a_block_that_is_not_kept_is_taken_before_all_others() -> None:
    pool = BlockPool(3)
    all_of(pool)
    pool.release(0, keep=True)
    pool.release(1, keep=True)
    pool.release(2, keep=False)
    assert all_of(pool) == [2, 0, 1]


def test_only_who_loses_kept_content_is_told() -> None:
    told: list[int] = []
    pool = BlockPool(2, evicted=told.append)
    all_of(pool)
    assert told == []
    pool.release(0, keep=False)
    pool.release(1, keep=True)
    assert pool.allocate() == 0
    assert told == []
    assert pool.allocate() == 1
    assert told == [1]


def test_a_forgotten_block_is_first_in_line_and_nobody_is_told() -> None:
    told: list[int] = []
    pool = BlockPool(2, evicted=told.append)
    all_of(pool)
    pool.release(0, keep=True)
    pool.release(1, keep=True)
    pool.forget(1)
    assert [pool.is_cached(block) for block in (0, 1)] == [True, False]
    assert pool.allocate() == 1
    assert told == []


def test_forgetting_a_block_in_use_leaves_it_to_its_holder() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    assert block is not None
    pool.forget(block)
    assert pool.free == 0
    pool.check()


def test_one_release_too_many_is_noticed() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    assert block is not None
    pool.release(block, keep=True)
    with pytest.raises(AssertionError):
        pool.release(block, keep=True)


def test_its_repr_has_the_counts() -> None:
    pool = BlockPool(4)
    all_of(pool)
    pool.release(0, keep=True)
    pool.release(1, keep=False)
    assert repr(pool) == "BlockPool(size=4, in_use=2, free=2, kept=1)"


@pytest.mark.parametrize("damage", ["lost", "twice", "negative", "in use and free"])
def test_the_check_notices_a_damaged_pool(damage: str) -> None:
    pool = BlockPool(3)
    pool.allocate()
    pool.check()
    if damage == "lost":
        pool._free.pop()
    elif damage == "twice":
        pool._free[0] = pool._free[1]
    elif damage == "negative":
        pool._references[2] = -1
    else:
        pool._evictable[0] = None
    with pytest.raises(AssertionError):
        pool.check()


@given(
    size=st.integers(0, 5),
    steps=st.lists(st.tuples(st.sampled_from("lark"), st.integers(0, 99)), max_size=60),
)
def test_the_pool_agrees_with_a_list_of_free_blocks(
    size: int, steps: list[tuple[str, int]]
) -> None:
    """The model: `line` is every free block from first to last, `kept` those with content."""
    told: list[int] = []
    pool = BlockPool(size, evicted=told.append)
    line, kept, held, evicted = list(all_of(pool)), set[int](), [], list[int]()
    for block in reversed(line):
        pool.release(block, keep=False)
    for step, choice in steps:
        if step == "l":
            block = pool.allocate()
            assert block == (line.pop(0) if line else None)
            if block is not None:
                evicted += [block] if block in kept else []
                kept.discard(block)
                held.append(block)
        elif step == "a" and (candidates := sorted({*held, *kept})):
            block = candidates[choice % len(candidates)]
            pool.acquire(block)
            if block in kept:
                line.remove(block)
                kept.remove(block)
            held.append(block)
        elif step in "rk" and held:
            block = held.pop(choice % len(held))
            pool.release(block, keep=step == "k")
            if block not in held:
                line.insert(len(line) if step == "k" else 0, block)
                kept |= {block} if step == "k" else set()
        pool.check()
        assert told == evicted
        assert (pool.in_use, pool.free, pool.kept) == (len(set(held)), len(line), len(kept))
    assert all_of(pool) == line
