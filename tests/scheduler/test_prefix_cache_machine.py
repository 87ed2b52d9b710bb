"""The prefix cache under any order of claims, commits, aborts, cancels and releases.

The model beside it knows a node by its path, the ids of all nodes from the text's beginning. It
keeps what each block was to be filled with, who holds it, and which paths are remembered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from millpond.scheduler.prefix_cache import BlockAllocation, PrefixCache

Path = tuple[tuple[int, ...], ...]

OWNERS = [object(), object()]
# Few, with much in common, so that most claims meet an earlier one's blocks.
TEXTS = st.builds(
    lambda base, length: base[:length],
    st.sampled_from([(0,) * 12, (0, 0, 0, 0, 1) * 3, (1,) + (0,) * 11]),
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 10, 12]),
)
UNTIL = st.sampled_from([None, None, None, None, 1, 2, 4, 7, 13])
DIGESTS: dict[str, Callable[[tuple[int, bytes]], int]] = {
    "apart": hash,
    "crowded": lambda key: hash(key) % 5,
    "of the ids": lambda key: hash(key[1]) % 7,
    "all the same": lambda key: 0,
}


def ids(path: Path) -> tuple[int, ...]:
    """All tokens up to the end of a node."""
    return sum(path, ())


def paths(tokens: tuple[int, ...], split: int, block_tokens: int) -> list[Path]:
    """The text's nodes: cut token by token, at every full block and where the prompt ends."""
    found: list[Path] = []
    done: Path = ()
    current: tuple[int, ...] = ()
    for count, token in enumerate(tokens, 1):
        current += (token,)
        if len(current) == block_tokens or count == split:
            done, current = (*done, current), ()
            found.append(done)
    return found


@dataclass(eq=False)
class Entry:
    """A remembered path."""

    block: int
    owner: object | None
    """Whose batch is to fill it; None when it is filled."""
    pinned: bool = False


@dataclass(eq=False)
class Use:
    """An open claim, or one that is settled and still held."""

    claim: BlockAllocation
    owner: object
    tokens: tuple[int, ...]
    paths: list[Path]
    """Those of the claim's blocks."""
    prompt_nodes: int = 0
    settled: bool = False

    @property
    def nodes(self) -> list[tuple[Path, int]]:
        """Path and block of each."""
        return list(zip(self.paths, self.claim.blocks, strict=True))

    @property
    def new(self) -> list[tuple[Path, int]]:
        return self.nodes[self.claim.reused :]


class Machine(RuleBasedStateMachine):
    """`content[block]` is what its last claim was to fill it with; `freed[block]` when it was let
    go of, if it holds something; `known` the remembered paths."""

    opened = Bundle("opened")
    settled = Bundle("settled")

    @initialize(
        blocks=st.sampled_from([0, 1, 3, 5, 6, 8, 10, 13, 20, 40]),
        block_tokens=st.integers(1, 3),
        digest=st.sampled_from(["apart", "apart", *DIGESTS]),
        most_pinned=st.sampled_from([0.0, 0.25, 0.5]),
    )
    def start(self, blocks: int, block_tokens: int, digest: str, most_pinned: float) -> None:
        self.cache = PrefixCache(
            blocks, block_tokens=block_tokens, digest=DIGESTS[digest], most_pinned=most_pinned
        )
        self.collides = digest != "apart"
        self.block_tokens = block_tokens
        self.most_pinned = int(blocks * most_pinned)
        self.content: dict[int, Path] = {}
        self.known: dict[Path, Entry] = {}
        self.freed: dict[int, int] = {}
        self.uses: list[Use] = []
        self.pinned: list[int] = []
        self.moment = self.evictions = self.looked_up = self.hits = 0

    @property
    def held(self) -> Counter[int]:
        """References to each block."""
        claimed = [block for use in self.uses for block in use.claim.blocks]
        return Counter(claimed + self.pinned)

    def visible(self, path: Path, owner: object) -> bool:
        """Whether the owner may read all nodes of the path."""
        nodes = [self.known.get(path[:depth]) for depth in range(1, len(path) + 1)]
        return all(node is not None and node.owner in (None, owner) for node in nodes)

    @rule(
        target=opened,
        texts=st.lists(st.tuples(TEXTS, UNTIL), min_size=1, max_size=4),
        split=st.sampled_from([0, 0, 3, 5, 13]),
        owner=st.sampled_from(OWNERS),
        pin=st.booleans(),
    )
    def claim_some(
        self,
        texts: list[tuple[tuple[int, ...], int | None]],
        split: int,
        owner: object,
        pin: bool,
    ) -> MultipleResults[Use]:
        return multiple(*(self.claim(text, split, owner, pin, until) for text, until in texts))

    def claim(
        self, tokens: tuple[int, ...], split: int, owner: object, pin: bool, until: int | None
    ) -> Use:
        array = np.array(tokens, dtype=np.int32)
        claim = self.cache.claim(array, owner=owner, split=split, pin=pin, until=until)
        split = min(split, len(tokens))
        wanted = paths(tokens, split, self.block_tokens)
        use = Use(claim, owner, tokens, wanted[: len(claim.blocks)])
        if pin:
            use.prompt_nodes = sum(len(ids(path)) <= split for path in use.paths)
        end = len(tokens) if until is None else min(until, len(tokens))
        self.expect_figures(use, end)
        self.expect_found(use, wanted)
        self.uses.append(use)
        self.expect_new(use, wanted, end)
        return use

    def expect_figures(self, use: Use, end: int) -> None:
        claim = use.claim
        assert claim.sizes == [len(path[-1]) for path in use.paths]
        found = sum(claim.sizes[: claim.reused])
        assert claim.cached_tokens == max(0, min(found, len(use.tokens) - 1, end - 1))
        assert claim.cached_so_far == sum(claim.sizes)
        self.looked_up += len(use.tokens)
        self.hits += claim.cached_tokens

    def expect_found(self, use: Use, wanted: list[Path]) -> None:
        """All that its owner may read is found, and holds the text's own beginning."""
        claim = use.claim
        assert claim.reused == sum(self.visible(path, use.owner) for path in wanted)
        for path, block in use.nodes[: claim.reused]:
            assert self.known[path].block == block
            assert self.content[block] == path
            self.freed.pop(block, None)

    def expect_new(self, use: Use, wanted: list[Path], end: int) -> None:
        """As many new blocks as there may be; nobody holds them and the least used go first."""
        for path, block in use.new:
            assert len(ids(path)) <= end
            assert path not in self.known
            assert self.held[block] == 1
            self.expect_eviction(block)
            self.known[path] = Entry(block, use.owner)
            self.content[block] = path
        for path in wanted[len(use.paths) :][:1]:
            full = len(self.held) == self.cache.pool.size
            assert self.collides or len(ids(path)) > end or path in self.known or full

    def expect_eviction(self, block: int) -> None:
        if block not in self.freed:
            return
        assert len(self.held.keys() | self.freed.keys()) == self.cache.pool.size, "one was blank"
        assert self.freed[block] == min(self.freed.values())
        path = self.content[block]
        assert self.known.pop(path).block == block
        assert not any(other[: len(path)] == path for other in self.known), "not a leaf"
        del self.freed[block]
        self.evictions += 1

    @rule(target=settled, use=consumes(opened))
    def commit(self, use: Use) -> Use:
        self.cache.commit(use.claim)
        use.settled = True
        for path, block in use.new:
            if self.remembers(path, block):
                self.known[path].owner = None
        self.pin(use)
        return use

    def remembers(self, path: Path, block: int) -> bool:
        return path in self.known and self.known[path].block == block

    def pin(self, use: Use) -> None:
        for path, block in use.nodes[: use.prompt_nodes]:
            if not (self.remembers(path, block) and self.visible(path, None)):
                return
            entry = self.known[path]
            if not entry.pinned and len(self.pinned) == self.most_pinned:
                return
            if not entry.pinned:
                entry.pinned = True
                self.pinned.append(block)

    @rule(target=settled, use=consumes(opened))
    def abort(self, use: Use) -> Use:
        self.cache.abort(use.claim)
        use.settled = True
        self.forget_new(use)
        return use

    def forget_new(self, use: Use) -> None:
        """What the claim was to fill is not known any more, nor what comes after it."""
        for path, block in use.new:
            if self.remembers(path, block):
                for gone in [other for other in self.known if other[: len(path)] == path]:
                    self.freed.pop(self.known.pop(gone).block, None)

    @rule(use=consumes(settled))
    def release(self, use: Use) -> None:
        self.cache.release(use.claim)
        self.let_go(use)

    def let_go(self, use: Use) -> None:
        self.uses.remove(use)
        for path, block in reversed(use.nodes):
            self.moment += 1
            if self.held[block] == 0 and self.remembers(path, block):
                self.freed[block] = self.moment

    @rule(use=consumes(opened))
    def cancel(self, use: Use) -> None:
        self.cache.cancel(use.claim)
        self.forget_new(use)
        self.let_go(use)
        self.looked_up -= len(use.tokens)
        self.hits -= use.claim.cached_tokens

    @precondition(lambda self: not self.uses)
    @rule()
    def look_when_idle(self) -> None:
        self.cache.check(idle=True)

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check()
        pool, held = self.cache.pool, self.held
        assert [pool.references(block) for block in range(pool.size)] == [
            held[block] for block in range(pool.size)
        ]
        stats = self.cache.stats
        assert stats.looked_up_tokens == self.looked_up
        assert stats.hit_tokens == self.hits
        assert stats.evictions == self.evictions
        assert stats.blocks_in_use == len(held)
        assert stats.blocks_pinned == len(self.pinned) <= self.most_pinned
        assert stats.blocks_cached == len(self.freed)
        assert pool.free + pool.in_use == stats.blocks

    @invariant()
    def nobody_holds_a_block_with_anothers_tokens(self) -> None:
        for use in getattr(self, "uses", []):
            for path, block in use.nodes:
                assert self.content[block] == path
                assert ids(path) == use.tokens[: len(ids(path))]

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        for use in self.uses:
            if not use.settled:
                self.cache.abort(use.claim)
            self.cache.release(use.claim)
        self.cache.check(idle=True)


TestPrefixCache = Machine.TestCase
TestPrefixCache.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
