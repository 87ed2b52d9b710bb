"""`PoolingModel`: one route from token ids to vectors, and the loading of all routes of a model.

ids ──▶ Transformer, packed or padded ──▶ Pooler ──▶ vectors
ids ──▶ StaticEmbeddings ─────────────────▶ Pooler.finish ──▶ vectors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..attention.packed import Sequences as PackedRow
from ..attention.verify import attention_is_invariant, fewest_padded_texts
from ..cpu.openmp import multiplied_parameters, products_are_whole
from ..layers.cpu.linear import has_invariant_products
from ..pooler.m3_heads import M3Pooler
from ..pooler.pooler import Pooler
from ..pooler.sparse import SparsePooler, SparseRows
from ..tokenization.tokenizer import TextTokenizer
from .info import ExecutionKind, RouteInfo
from .kept_tokens import KeptTokens
from .static import SparseStaticEmbeddings, StaticEmbeddings
from .transformer import HiddenStates, Transformer
from .verify.execution import ExecutionMode
from .verify.ordinary import ordinary_ids
from .verify.prefix import PrefixSupport

__all__ = ["PooledRows", "PoolingModel"]

# What texts that a model is checked with may cost to compute once, and no fewer tokens than these.
MOST_CHECK_OPERATIONS, FEWEST_CHECK_TOKENS = 5 * 10**9, 42


@dataclass(frozen=True)
class PooledRows:
    """Where the texts of a batch stand in its rows; int64 `[n]` tensors on the device."""

    starts: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    kept: Tensor | None = None
    """The rows that are kept, int64, of a model that pools none."""


@dataclass(frozen=True, kw_only=True)
class PoolingModel:
    """Everything one route needs. `transformer` and `execution` are None for a static model."""

    name: str
    tokenizer: TextTokenizer
    encoder: Transformer | StaticEmbeddings | SparseStaticEmbeddings
    head: Pooler | SparsePooler | M3Pooler
    execution: ExecutionMode | None
    prefixes: PrefixSupport
    """Whether texts can continue from cached prefixes."""
    kept_tokens: KeptTokens = field(default_factory=KeptTokens)
    """Which tokens have a vector in the result, of a model that pools none."""

    @cached_property
    def is_static(self) -> bool:
        """Whether a table takes the place of a transformer."""
        return self.execution is None

    @cached_property
    def tells_tokens_apart(self) -> bool:
        """Whether some tokens attend, or have vectors in the result, and others do not."""
        return self.tokenizer.query_fill is not None or self.head.keeps_rows

    @cached_property
    def pad_to(self) -> int | None:
        """What texts of a batch are padded to a multiple of; None when packed."""
        if self.execution is None:
            return None
        fill = self.tokenizer.query_fill
        if fill is not None and not fill.is_attended and self.execution.kind == "padded":
            return 1  # a token that sees nothing sees all, padding too, in DeBERTa's attention
        return self.execution.pad_to

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the encoder."""
        return self.encoder.dtype if isinstance(self.encoder, Transformer) else torch.float32

    @property
    def dtype_name(self) -> str:
        """The same as users name it."""
        if isinstance(self.encoder, Transformer) and self.encoder.is_int8:
            return "int8"
        if isinstance(self.encoder, Transformer) and self.encoder.is_float8:
            return "fp8"
        return str(self.dtype).removeprefix("torch.")

    def packed(
        self, ids: Tensor, positions: Tensor, sequences: PackedRow | None, texts: PooledRows
    ) -> Tensor | SparseRows:
        """Vectors of texts end to end, int64 `[total]` in, float32 `[n, dimension]` out.

        What follows the last text in `ids` is computed and ignored.
        """
        if isinstance(self.encoder, SparseStaticEmbeddings):
            return self.encoder(ids, texts.starts, texts.lengths)
        if isinstance(self.encoder, StaticEmbeddings):
            assert isinstance(self.head, Pooler)
            return self.head.finish(self.encoder(ids, texts.starts, texts.lengths))
        assert sequences is not None
        if isinstance(self.head, Pooler) and self.head.reads_first_token_only:
            firsts = self.encoder.firsts(ids, positions, sequences, texts.starts)
            if firsts is not None:
                return self.head.finish(firsts.float())
        return self._after(self.encoder.packed(ids, positions, sequences), ids, texts)

    def padded(self, ids: Tensor, mask: Tensor, texts: PooledRows) -> Tensor | SparseRows:
        """Vectors of padded texts, int64 `[rows, length]` in, float32 `[n, dimension]` out."""
        assert isinstance(self.encoder, Transformer)
        return self._after(self.encoder.padded(ids, mask), ids.flatten(), texts)

    def _after(self, hidden: HiddenStates, ids: Tensor, texts: PooledRows) -> Tensor | SparseRows:
        if isinstance(self.head, M3Pooler):
            assert isinstance(hidden, Tensor)
            assert texts.kept is not None
            places = (texts.starts, texts.lengths, texts.prompt_lengths, texts.kept)
            return self.head(hidden, *places, ids)
        return self.head(hidden, texts.starts, texts.lengths, texts.prompt_lengths, texts.kept)

    def fewest_texts(self, threads: Sequence[int]) -> int:
        """Texts that a batch on this CPU has at least, where that makes it batch-invariant."""
        if self.execution is None or self.execution.kind == "packed":
            return 1
        return fewest_padded_texts(self.dtype, tuple(threads)) or 1

    def may_have_few_rows(self, threads: Sequence[int]) -> bool:
        """Whether a packed row of 4 tokens on this CPU may be batch-invariant as one of 16 is."""
        if self.execution is None or not isinstance(self.encoder, Transformer):
            return True
        is_plain = isinstance(self.head, Pooler) and not self.head.keeps_rows
        if self.execution.kind != "packed" or self.encoder.is_int8 or not is_plain:
            return False
        return products_are_whole() and has_invariant_products(
            self.encoder.model, threads, few_rows=True
        )

    def has_invariant_operators(self, threads: Sequence[int], *, few_rows: bool = False) -> bool:
        """Whether what short texts do not show is batch-invariant on this CPU.

        That are products of many rows and attention within long texts, on these numbers of
        threads.
        """
        if self.execution is None or not isinstance(self.encoder, Transformer):
            return True
        if not products_are_whole() or not has_invariant_products(
            self.encoder.model, threads, few_rows=few_rows
        ):
            return False
        vocabulary = self.encoder.vocabulary if self.head.is_sparse else None
        if vocabulary is not None and not has_invariant_products(vocabulary, threads):
            return False
        if self.execution.kind != "packed":
            return fewest_padded_texts(self.dtype, tuple(threads)) is not None
        return attention_is_invariant(
            self.execution.attention,
            self.dtype,
            longest=self.tokenizer.max_length,
            threads=threads,
        )

    def check_texts(self, lengths: Sequence[int]) -> list[npt.NDArray[np.int32]]:
        """Token ids of random texts, all different, of those lengths that the model takes.

        With a large model, only of the shorter ones, which are computed in about a second.
        """
        limit, tokens = self.tokenizer.max_length, MOST_CHECK_OPERATIONS
        if isinstance(self.encoder, Transformer):
            tokens //= 2 * multiplied_parameters(self.encoder.model)
        left, chosen = max(tokens, FEWEST_CHECK_TOKENS), []
        for length in sorted(lengths):
            if length <= left and (limit is None or length <= limit):
                chosen.append(length)
                left -= length
        random = np.random.default_rng(21)
        ids = np.array(ordinary_ids(self.encoder.vocab_size, self.tokenizer), dtype=np.int32)
        return [random.choice(ids, length) for length in reversed(chosen)]

    def info(self) -> RouteInfo:
        """How it runs. Whether bits are the same, batches will show."""
        kind: ExecutionKind = "static" if self.execution is None else self.execution.kind
        return RouteInfo(
            name=self.name,
            execution=kind,
            reason="no transformer to run" if self.execution is None else self.execution.reason,
            dimension=self.head.dimension,
            max_length=self.tokenizer.max_length,
            excludes_prompt=self.head.excludes_prompt,
            prefixes=self.prefixes.reason,
            is_sparse=self.head.is_sparse or isinstance(self.encoder, SparseStaticEmbeddings),
        )
