"""`PrefixCache`: which prefixes of texts have their keys and values in which blocks.

A text is cut into nodes, one block each. The cut depends on nothing but the text's length and
where its prompt ends, so texts with the same prompt share it to its last token:

    0               16              32     39              55              71     78
    │ full node     │ full node     │ rest │ full node     │ full node     │ tail │
                                           ▲ split: the prompt ends here     no node

Nodes are found by a digest of their ids chained to their parent's digest, and believed only when
the ids and the parent itself agree, so a collision of digests is a miss. This is a cache and never
working memory: a text can always be computed without it, so when there is no block, less is
cached and that is all.

Every method is called under the engine's lock. Tensors, the model and time are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..stats import PrefixCacheStats
from .block_pool import BlockPool

__all__ = ["BlockAllocation", "PrefixCache", "PrefixCacheConfig"]

Digest = Callable[[tuple[int, bytes]], int]
ID_BYTES = 4
FEW_BLOCKS = 256  # whose counts are read through at no cost
ROOT_KEY = 0  # what the first node's digest is chained to
OPEN, SETTLED, RELEASED = "open", "committed", "released"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixCacheConfig:
    """Room for a prefix cache, and what it is good for."""

    blocks: int
    block_tokens: int = 16
    bytes_per_token: int = 0
    min_saved_tokens: int = 0
    """Batches in which a cache saves fewer tokens are quicker when they are computed whole."""
    max_batch_tokens: int | None = None
    """Batches that compute more tokens are slower, where a cache saves any. None: none are."""

    @property
    def bytes(self) -> int:
        """Memory that a full cache takes."""
        return self.blocks * self.block_tokens * self.bytes_per_token


@dataclass(slots=True, eq=False, repr=False)
class CachedBlock:
    """Some tokens of a text after all tokens of its parent."""

    parent: CachedBlock | None
    key: int
    ids: bytes
    block: int
    owner: object | None
    """Whose batch fills the blocks; None once this one and all before it are filled."""
    filled: bool = False
    pinned: bool = False
    dependents: list[CachedBlock] = field(default_factory=list)
    """Nodes made after this one while it had an owner; wrong if it is never filled."""


@dataclass(slots=True, eq=False, repr=False)
class BlockAllocation:
    """The blocks of one text, from its beginning, held until released.

    Texts of the same batch with nothing but these blocks in the cache may share it. Ends by
    `commit` or `abort`, and then by `release`.
    """

    blocks: list[int]
    sizes: list[int]
    """Tokens in each block."""
    reused: int
    """Leading blocks that are filled already or by another text of the batch."""
    cached_tokens: int
    """Leading tokens that need not be computed; may end inside the last reused block."""
    length: int
    """Tokens of the text, or of all that share it."""
    texts: int = 1
    nodes: list[CachedBlock] = field(default_factory=list)  # from here on the cache's own
    to_pin: int = 0
    state: str = OPEN
    cache: PrefixCache | None = None
    """Which it is a claim on; None of one that came from another process."""

    @property
    def cached_so_far(self) -> int:
        """Leading tokens that have blocks."""
        return sum(self.sizes)

    @property
    def is_all_there(self) -> bool:
        """Whether all of its blocks are filled, or another text of the batch fills them."""
        return self.reused == len(self.blocks)

    def __repr__(self) -> str:
        return (
            f"BlockAllocation(blocks={len(self.blocks)}, reused={self.reused}, "
            f"cached_tokens={self.cached_tokens}, state={self.state})"
        )


class PrefixCache:
    """Remembers the prefixes of texts in `blocks` blocks of `block_tokens` tokens.

    Pinned nodes are at most the share `most_pinned` of the blocks.
    """

    def __init__(
        self,
        blocks: int,
        *,
        block_tokens: int = 16,
        digest: Digest = hash,
        most_pinned: float = 0.25,
    ) -> None:
        assert block_tokens > 0
        self.block_tokens = block_tokens
        self.pool = BlockPool(blocks, evicted=self._evicted)
        self.most_pinned_blocks = int(most_pinned * blocks)
        self._digest = digest
        self._nodes: dict[int, CachedBlock] = {}  # the cached ones, by key
        self._node_of: list[CachedBlock | None] = [None] * blocks  # the same nodes, by block
        self._claims = 0  # not yet released
        self._pinned = 0
        self._looked_up_tokens = 0
        self._hit_tokens = 0
        self._evictions = 0

    @classmethod
    def of(cls, budget: PrefixCacheConfig) -> PrefixCache:
        """A cache that fills the budget."""
        return cls(budget.blocks, block_tokens=budget.block_tokens)

    def claim(
        self,
        ids: npt.NDArray[np.int32],
        *,
        owner: object,
        split: int = 0,
        pin: bool = False,
        until: int | None = None,
    ) -> BlockAllocation:
        """Hold what is there of a text `ids` [n], and as many new blocks as there are for the rest.

        `split` is the length of the text's prompt; with `pin` the prompt's nodes are kept for
        good. Texts of one `owner`, a batch in the making, use each other's blocks before they are
        filled. New blocks are only for nodes before `until`, where this batch stops computing the
        text; what is there already is held to the text's end.
        """
        assert owner is not None
        length = len(ids)
        end = length if until is None else min(until, length)
        split = min(split, length)
        chunks = self._cut(ids, split)
        nodes = self._match(chunks, owner)
        reused = len(nodes)
        for node in nodes:
            self.pool.acquire(node.block)
        self._extend(nodes, chunks, owner, end)
        sizes = [len(chunk) // ID_BYTES for chunk in chunks[: len(nodes)]]
        # At least one token of each text is computed: the one whose output is pooled.
        cached_tokens = max(0, min(sum(sizes[:reused]), end - 1))
        self._claims += 1
        self._looked_up_tokens += length
        self._hit_tokens += cached_tokens
        return BlockAllocation(
            [node.block for node in nodes],
            sizes,
            reused,
            cached_tokens,
            length,
            nodes=nodes,
            to_pin=-(-split // self.block_tokens) if pin else 0,
            cache=self,
        )

    def share(self, claim: BlockAllocation, lengths: npt.NDArray[np.int64]) -> None:
        """Let further texts of these lengths, which begin with its tokens, continue from a claim.

        They are to have no node of their own, and more tokens than are cached.
        """
        assert claim.state is OPEN
        assert claim.is_all_there
        tokens, texts = int(lengths.sum()), len(lengths)
        claim.length += tokens
        claim.texts += texts
        self._looked_up_tokens += tokens
        self._hit_tokens += claim.cached_tokens * texts

    def _cut(self, ids: npt.NDArray[np.int32], split: int) -> list[bytes]:
        """The ids of the text's nodes."""
        assert ids.dtype == np.int32
        data = ids.tobytes()
        step = self.block_tokens * ID_BYTES
        split *= ID_BYTES
        full = split - split % step
        chunks = [data[start : start + step] for start in range(0, full, step)]
        if full < split:
            chunks.append(data[full:split])
        chunks += [data[at : at + step] for at in range(split, len(data) - step + 1, step)]
        return chunks

    def _match(self, chunks: list[bytes], owner: object) -> list[CachedBlock]:
        """The longest chain of nodes that the owner may read."""
        find, digest = self._nodes.get, self._digest
        nodes = []
        parent, key = None, ROOT_KEY
        for ids in chunks:
            key = digest((key, ids))
            node = find(key)
            if node is None or node.ids != ids or node.parent is not parent:
                break
            if node.owner is not None and node.owner is not owner:
                break
            nodes.append(node)
            parent = node
        return nodes

    def _extend(
        self, nodes: list[CachedBlock], chunks: list[bytes], owner: object, end: int
    ) -> None:
        """Add new nodes of the owner to the chain, as far as `end` and the blocks allow."""
        parent = nodes[-1] if nodes else None
        key = parent.key if parent else ROOT_KEY
        room = end * ID_BYTES - sum(map(len, chunks[: len(nodes)]))
        for ids in chunks[len(nodes) :]:
            room -= len(ids)
            key = self._digest((key, ids))
            # A node under this key is another owner's and not filled, or a collision.
            if room < 0 or key in self._nodes:
                return
            block = self.pool.allocate()
            if block is None:
                return
            node = CachedBlock(parent, key, ids, block, owner)
            if parent is not None and parent.owner is not None:
                parent.dependents.append(node)
            self._nodes[key] = self._node_of[block] = parent = node
            nodes.append(node)

    def commit(self, claim: BlockAllocation) -> None:
        """The claim's new blocks are filled: every text may read them from now on."""
        assert claim.state is OPEN
        claim.state = SETTLED
        new = claim.nodes[claim.reused :]
        for node in new:
            node.filled = True
        self._publish(new[:1])
        if claim.to_pin:
            self._pin(claim.nodes[: claim.to_pin])

    @staticmethod
    def _publish(nodes: list[CachedBlock]) -> None:
        """Show the nodes to every text, and what was waiting for them."""
        while nodes:
            node = nodes.pop()
            if node.filled and (node.parent is None or node.parent.owner is None):
                node.owner = None
                nodes += node.dependents
                node.dependents.clear()

    def _pin(self, nodes: Sequence[CachedBlock]) -> None:
        """Hold nodes for good, from the text's beginning on, so that none outlives its parent."""
        for node in nodes:
            if node.pinned:
                continue
            if node.owner is not None or self._pinned >= self.most_pinned_blocks:
                return
            node.pinned = True
            self._pinned += 1
            self.pool.acquire(node.block)

    def abort(self, claim: BlockAllocation) -> None:
        """The claim's new blocks are not going to be filled.

        They are forgotten, and whatever was made after them with them: it was computed from what
        is not there. Claims that reuse them hold the blocks until released.
        """
        assert claim.state is OPEN
        claim.state = SETTLED
        doomed = claim.nodes[claim.reused :]
        while doomed:
            node = doomed.pop()
            doomed += node.dependents
            node.dependents.clear()
            if self._remembers(node):
                self._forget(node)
                self.pool.forget(node.block)

    def release(self, claim: BlockAllocation) -> None:
        """Let go of the claim's blocks, the last one first: leaves go before what they hang on."""
        assert claim.state is SETTLED
        claim.state = RELEASED
        self._claims -= 1
        for node in reversed(claim.nodes):
            self.pool.release(node.block, keep=self._remembers(node))

    def settle(self, claim: BlockAllocation, *, keep: bool) -> None:
        """Commit a claim whose blocks are filled, or abort it."""
        if keep:
            self.commit(claim)
        else:
            self.abort(claim)

    def cancel(self, claim: BlockAllocation) -> None:
        """Abort and release: the text does not run now. It does not count as looked up."""
        self.abort(claim)
        self.release(claim)
        self._looked_up_tokens -= claim.length
        self._hit_tokens -= claim.cached_tokens * claim.texts

    def _remembers(self, node: CachedBlock) -> bool:
        return self._node_of[node.block] is node

    def _evicted(self, block: int) -> None:
        node = self._node_of[block]
        assert node is not None
        self._forget(node)
        self._evictions += 1

    def _forget(self, node: CachedBlock) -> None:
        del self._nodes[node.key]
        self._node_of[node.block] = None

    @property
    def stats(self) -> PrefixCacheStats:
        return PrefixCacheStats(
            looked_up_tokens=self._looked_up_tokens,
            hit_tokens=self._hit_tokens,
            evictions=self._evictions,
            block_tokens=self.block_tokens,
            blocks=self.pool.size,
            blocks_in_use=self.pool.in_use,
            blocks_pinned=self._pinned,
            blocks_cached=self.pool.kept,
        )

    def check(self, *, idle: bool = False) -> None:
        """Assert that the invariants hold; when `idle`, also that only pinned blocks are in use."""
        self.pool.check()
        nodes = self._nodes.values()
        assert len(nodes) == sum(node is not None for node in self._node_of)
        for key, node in self._nodes.items():
            assert node.key == key
            self._check_node(node)
        assert self.pool.kept == sum(self.pool.references(node.block) == 0 for node in nodes)
        assert self._pinned == sum(node.pinned for node in nodes) <= self.most_pinned_blocks
        if idle:
            assert self._claims == 0
            assert self.pool.in_use == self._pinned

    def check_idle(self) -> None:
        """Assert that no block is held; in a small cache, that all invariants hold."""
        assert self._claims == 0
        assert self.pool.in_use == self._pinned
        if self.pool.size <= FEW_BLOCKS:
            self.check(idle=True)

    def _check_node(self, node: CachedBlock) -> None:
        assert self._remembers(node)
        in_use = self.pool.references(node.block) > 0
        assert in_use or (node.filled and self.pool.is_cached(node.block))
        assert in_use or not node.pinned
        assert node.filled or node.owner is not None
        if node.parent is not None:
            assert self._remembers(node.parent)
            assert node.owner is not None or node.parent.owner is None
            assert not in_use or self.pool.references(node.parent.block) > 0
            assert not node.pinned or node.parent.pinned

    def __repr__(self) -> str:
        return (
            f"PrefixCache(nodes={len(self._nodes)}, pinned={self._pinned}, "
            f"claims={self._claims}, evictions={self._evictions}, pool={self.pool!r})"
        )
