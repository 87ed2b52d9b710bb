"""`Pipeline`: one route from token ids to vectors, and the loading of all routes of a model.

ids ──▶ Transformer, packed or padded ──▶ Head ──▶ vectors
ids ──▶ StaticEmbeddings ─────────────────▶ Head.finish ──▶ vectors
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import EngineConfig
from ..errors import MillpondError, UnsupportedModel
from .attention import Sequences as PackedRow
from .attention_check import attention_is_invariant
from .cpu_activation import steady_activations
from .cpu_layers import flatten_layers
from .cpu_linear import fuse_gelus, has_steady_products, prepack_linears
from .cpu_threads import multiplied_parameters, products_are_whole, threads_for_a_check
from .cuda_fusion import fuse_for_cuda
from .finite import DoesNotFit, refuse_overflow
from .head import Head
from .loading import checkpoint_dtype, choose_dtype, load_transformer
from .prefix_check import PrefixSupport, prove_prefixes
from .selfcheck import (
    LENGTHS,
    Execution,
    disagreement,
    leave_out_pooler,
    prove_compiled,
    prove_execution,
    prove_flat,
    quantize,
    run_alone,
)
from .spec import ModelSpec, Module, Route
from .static import StaticEmbeddings
from .tokenizer import TextTokenizer
from .transformer import Transformer

__all__ = ["ExecutionKind", "Pipeline", "RouteInfo", "TokenRows", "load_pipelines"]

logger = logging.getLogger("millpond")
MOST_ENGLISH_TOKENS = 64
# What texts that a model is checked with may cost to compute once, and no fewer tokens than these.
MOST_CHECK_OPERATIONS, FEWEST_CHECK_TOKENS = 5 * 10**9, 42
ENGLISH = (
    "The mill stands beside a pond, and its wheel turns as long as there is water.",
    "when can I buy bread?",
    "Embeddings are vectors that stand for texts: what is alike in meaning is close in direction. "
    "A query is compared with millions of passages, and the closest ones are read first.",
    "grain",
    "In 1887 the old stones were replaced by rollers of steel, which grind finer, cost less to "
    "keep and, according to a report of the time, doubled what was sold within three years.",
    "def open(path: str, mode: str = 'r') -> File",
)
"""Texts as they come, of several kinds and lengths."""

ExecutionKind = Literal["packed", "padded", "equal_length", "static"]


@dataclass(frozen=True, kw_only=True)
class RouteInfo:
    """One way through the model; most models have one, a Router has one per task."""

    name: str
    execution: ExecutionKind
    """`packed` (no padding), `padded`, `equal_length` (padding would leak into the texts) or
    `static` (no transformer)."""
    reason: str
    dimension: int
    """Dimensions of a vector."""
    max_length: int | None
    """Longest text in tokens, special tokens included; None for no limit."""
    same_bits: bool = False
    """Whether a text's vector is the same to the bit whatever it is batched with, on any number
    of threads and after any cached prefix, as a check at load found on this machine."""
    compiled: bool = False
    """Whether its layers run as compiled."""
    prefixes: str = ""
    """Whether prefixes can be cached, or why they cannot."""


@dataclass(frozen=True)
class TokenRows:
    """Where the texts of a batch stand in its rows; int64 `[n]` tensors on the device."""

    starts: Tensor
    lengths: Tensor
    prompt_lengths: Tensor


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Everything one route needs. `transformer` and `execution` are None for a static model."""

    name: str
    tokenizer: TextTokenizer
    encoder: Transformer | StaticEmbeddings
    head: Head
    execution: Execution | None
    prefixes: PrefixSupport
    """Whether texts can go on from prefixes that were computed before."""

    @property
    def is_static(self) -> bool:
        """Whether a table takes the place of a transformer."""
        return self.execution is None

    @property
    def pad_to(self) -> int | None:
        """What texts of a batch are padded to a multiple of; None when packed."""
        return None if self.execution is None else self.execution.pad_to

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the encoder."""
        return torch.float32 if isinstance(self.encoder, StaticEmbeddings) else self.encoder.dtype

    @property
    def dtype_name(self) -> str:
        """The same as users name it."""
        if isinstance(self.encoder, Transformer) and self.encoder.is_int8:
            return "int8"
        return str(self.dtype).removeprefix("torch.")

    def packed(
        self, ids: Tensor, positions: Tensor, sequences: PackedRow | None, texts: TokenRows
    ) -> Tensor:
        """Vectors of texts end to end, int64 `[total]` in, float32 `[n, dimension]` out.

        What follows the last text in `ids` is computed and ignored.
        """
        if isinstance(self.encoder, StaticEmbeddings):
            return self.head.finish(self.encoder(ids, texts.starts, texts.lengths))
        assert sequences is not None
        hidden = self.encoder.packed(ids, positions, sequences)
        return self.head(hidden, texts.starts, texts.lengths, texts.prompt_lengths)

    def padded(self, ids: Tensor, mask: Tensor, texts: TokenRows) -> Tensor:
        """Vectors of padded texts, int64 `[rows, length]` in, float32 `[n, dimension]` out."""
        assert isinstance(self.encoder, Transformer)
        hidden = self.encoder.padded(ids, mask)
        return self.head(hidden, texts.starts, texts.lengths, texts.prompt_lengths)

    def prompt_tokens(self, prompt: str) -> int:
        """Tokens of the prompt that pooling leaves out: 0 unless the checkpoint excludes it."""
        return self.tokenizer.prompt_length(prompt) if self.head.excludes_prompt else 0

    def has_invariant_operators(self, threads: Sequence[int]) -> bool:
        """Whether what short texts do not show has the same bits in every batch on this CPU.

        That are products of many rows and attention within long texts, on these numbers of
        threads.
        """
        if self.execution is None or not isinstance(self.encoder, Transformer):
            return True
        if not products_are_whole() or not has_steady_products(self.encoder.model, threads):
            return False
        return self.execution.kind != "packed" or attention_is_invariant(
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
        ids = np.array(_ordinary_ids(self.encoder.vocab_size, self.tokenizer), dtype=np.int32)
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
            compiled=self.execution is not None and self.execution.compiled,
            prefixes=self.prefixes.reason,
        )


@dataclass
class _Encoders:
    """Encoders by folder, so that a module shared by two routes is loaded once."""

    config: EngineConfig
    device: torch.device
    loaded: dict[Path, tuple[Transformer | StaticEmbeddings, TextTokenizer, Execution | None]]

    def get(
        self, module: Module, *, all_layers: bool
    ) -> tuple[Transformer | StaticEmbeddings, TextTokenizer, Execution | None]:
        if module.path not in self.loaded:
            load = self._static if module.kind == "StaticEmbedding" else self._transformer
            self.loaded[module.path] = load(module)
        found = self.loaded[module.path]
        if all_layers and isinstance(found[0], Transformer):
            found[0].all_layers = True
        return found

    def _tokenizer(
        self, module: Module, *, vocab_size: int, max_positions: int | None
    ) -> TextTokenizer:
        return TextTokenizer.load(
            module,
            max_length=self.config.max_length,
            max_positions=max_positions,
            hidden_vocab_size=vocab_size,
            trust_remote_code=self.config.trust_remote_code,
        )

    def _static(self, module: Module) -> tuple[StaticEmbeddings, TextTokenizer, None]:
        table = StaticEmbeddings.load(module, self.device)
        return table, self._tokenizer(module, vocab_size=table.vocab_size, max_positions=None), None

    def _transformer(self, module: Module) -> tuple[Transformer, TextTokenizer, Execution]:
        dtype = choose_dtype(
            self.config.dtype, device=self.device, checkpoint_dtype=checkpoint_dtype(module)
        )
        try:
            transformer, tokenizer, execution = self._load_and_prove(module, dtype)
        except DoesNotFit:
            if self.config.dtype != "auto":
                raise
            logger.info("%s overflows in float16; running it in bfloat16", module.path)
            dtype = torch.bfloat16
            transformer, tokenizer, execution = self._load_and_prove(module, dtype)
        except (MillpondError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a model's code objects with
            if self.device.type != "cpu":
                raise
            transformer, tokenizer, execution = self._in_float32(module, dtype, error)
        if not execution.finite and self.config.dtype == "auto" and dtype == torch.float16:
            logger.info("%s overflows in float16; running it in bfloat16", module.path)
            del transformer
            transformer, tokenizer, execution = self._load_and_prove(module, torch.bfloat16)
        if execution.kind != "packed":
            logger.info("%s runs %s: %s", module.path, execution.kind, execution.reason)
        return transformer, tokenizer, execution

    def _in_float32(
        self, module: Module, dtype: torch.dtype, error: Exception
    ) -> tuple[Transformer, TextTokenizer, Execution]:
        """A CPU has not every operator in every precision: the model in float32, if that was it."""
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        try:
            if dtype == torch.float32:
                raise error
            loaded = self._load_and_prove(module, torch.float32)
        except (MillpondError, MemoryError):
            raise
        except Exception as another:
            raise UnsupportedModel(
                f"{module.path} does not run ({reason}); a model of its kind may need texts of "
                "more than one token, or something beside token ids"
            ) from another
        if self.config.dtype != "auto":
            raise UnsupportedModel(
                f"{module.path} does not run in {dtype} here ({reason}); try another dtype, such "
                "as float32"
            ) from error
        logger.info("%s does not run in %s (%s); running in float32", module.path, dtype, reason)
        return loaded

    def _load_and_prove(
        self, module: Module, dtype: torch.dtype, *, own_layers: bool = False
    ) -> tuple[Transformer, TextTokenizer, Execution]:
        """With `own_layers` none of the model's is replaced by a faster one."""
        loaded = load_transformer(
            module,
            device=self.device,
            dtype=dtype,
            trust_remote_code=self.config.trust_remote_code,
        )
        tokenizer = self._tokenizer(
            module, vocab_size=loaded.vocab_size, max_positions=loaded.max_positions
        )
        ids = _ordinary_ids(loaded.vocab_size, tokenizer)
        text = list(ids[: max(LENGTHS)])
        with threads_for_a_check(loaded.model, sum(LENGTHS)):
            transformer = Transformer(loaded)
            refuse_overflow(loaded.model, partial(run_alone, transformer, text), folder=module.path)
            leave_out_pooler(transformer, token_ids=ids)
            if not own_layers:
                expected = run_alone(transformer, text)
                self._replace_layers(transformer, tokenizer)
                reason = disagreement([run_alone(transformer, text)], [expected])
                if reason is not None and not transformer.is_int8:
                    # A layer's weight is read by other code than the layer's own, for one.
                    logger.info("%s keeps transformers' own layers: %s", module.path, reason)
                    return self._load_and_prove(module, dtype, own_layers=True)
            execution = prove_execution(transformer, token_ids=ids, pad_id=tokenizer.pad_id)
            if self.device.type == "cpu":
                prove_flat(transformer, execution, token_ids=ids)
        if self.config.compile:
            execution = prove_compiled(transformer, execution, token_ids=ids)
        return transformer, tokenizer, execution

    def _replace_layers(self, transformer: Transformer, tokenizer: TextTokenizer) -> None:
        """Put faster layers in the place of transformers' own; the model's result is to stay."""
        model, steady = transformer.model, self.config.deterministic
        if self.config.dtype == "int8":
            quantize(transformer, _ordinary_texts(tokenizer), flat=not self.config.compile)
        if self.device.type == "cpu":
            if not self.config.compile:
                flatten_layers(model, steady=steady)
            prepack_linears(model, steady=steady)
            fuse_gelus(model)
            steady_activations(model)
        if self.device.type == "cuda":
            fuse_for_cuda(model, compiled=self.config.compile)

    def prefixes(self, route: Route, head: Head) -> PrefixSupport:
        """Whether the texts of a route can go on from cached prefixes."""
        encoder, tokenizer, execution = self.loaded[route.encoder.path]
        reason = _reason_against_prefixes(self.config, self.device, execution, head)
        if reason is not None:
            return PrefixSupport(reason=reason)
        assert isinstance(encoder, Transformer)
        ids = _ordinary_ids(encoder.vocab_size, tokenizer)
        with threads_for_a_check(encoder.model, sum(LENGTHS)):
            return prove_prefixes(encoder, token_ids=ids)


def _reason_against_prefixes(
    config: EngineConfig, device: torch.device, execution: Execution | None, head: Head
) -> str | None:
    if config.prefix_cache == "off":
        return "turned off"
    if execution is None or execution.kind != "packed":
        return "the model does not run packed"
    if not head.reads_last_token_only:
        return "a vector needs all tokens of its text, not the last alone"
    if execution.compiled:
        return "compiled layers do not read it"
    if config.deterministic and device.type == "cuda":
        return "deterministic computes every text whole"
    return None


def load_pipelines(
    spec: ModelSpec, config: EngineConfig, device: torch.device
) -> tuple[Pipeline, ...]:
    """Load the weights of every route onto the device and prove how each may run.

    Raises the `ModelError`s of its parts.
    """
    encoders = _Encoders(config, device, {})
    return tuple(_load_pipeline(route, encoders) for route in spec.routes)


def _load_pipeline(route: Route, encoders: _Encoders) -> Pipeline:
    all_layers = any(module.kind == "WeightedLayerPooling" for module in route.head)
    encoder, tokenizer, execution = encoders.get(route.encoder, all_layers=all_layers)
    static = isinstance(encoder, StaticEmbeddings)
    head = Head.load(
        route.head,
        hidden_size=encoder.width,
        device=encoders.device,
        normalize=encoders.config.normalize,
        trust_remote_code=encoders.config.trust_remote_code,
        pooled=static,
        fixed_shapes=encoders.config.deterministic or None,
    )
    return Pipeline(
        name=route.name,
        tokenizer=tokenizer,
        encoder=encoder,
        head=head,
        execution=execution,
        prefixes=encoders.prefixes(route, head),
    )


def _ordinary_texts(tokenizer: TextTokenizer) -> list[list[int]]:
    """Token ids of some English, from one word to a paragraph."""
    tokens = tokenizer.encode(
        ENGLISH, prompt="", task=None, truncate="end", max_length=MOST_ENGLISH_TOKENS
    )
    return [ids.tolist() for ids in np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])]


def _ordinary_ids(vocab_size: int, tokenizer: TextTokenizer) -> Sequence[int]:
    """Ids to make the self-check's texts of: no special ones, whose presence may change a model."""
    special = tokenizer.special_ids
    found = [i for i in range(min(vocab_size, 4096)) if i not in special]
    if not found:
        raise UnsupportedModel("the checkpoint's vocabulary has nothing but special tokens")
    return found
