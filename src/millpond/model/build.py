"""Loads every route of a model onto a device and verifies how each may run."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..checkpoint.modules import Module
from ..checkpoint.routes import Route
from ..checkpoint.spec import ModelSpec
from ..config import EngineConfig
from ..cpu.openmp import threads_for_check
from ..errors import (
    InvalidCheckpoint,
    InvalidOption,
    MillpondError,
    UnsupportedModel,
    summary,
)
from ..layers.cpu.activation import replace_activations
from ..layers.cpu.encoder_layer import fuse_layers
from ..layers.cpu.linear import fuse_gelus, prepack_linears, use_huge_pages_for_weights
from ..layers.cpu.quantize import quantize
from ..layers.cuda.fusion import fuse_for_cuda
from ..layers.weight_reads import layers_read_by_others
from ..pooler.pooler import Pooler
from ..tokenization.pairs import PairTokenizer
from ..tokenization.tokenizer import TextTokenizer
from .device import choose_dtype
from .head_loader import AnyPooler, HeadLoader
from .kept_tokens import KeptTokens
from .loading.loaded import LoadedTransformer
from .loading.transformer import checkpoint_dtype, load_transformer
from .overflow import DoesNotFit, refuse_overflow
from .pooling_model import PoolingModel
from .static import SparseStaticEmbeddings, StaticEmbeddings
from .transformer import Transformer
from .verify.execution import (
    LENGTHS,
    ExecutionMode,
    disagreement,
    drop_unused_pooler,
    run_alone,
    verify_execution,
    verify_fused,
)
from .verify.filled import verify_filled
from .verify.firsts import verify_firsts
from .verify.float8 import Reads, use_float8
from .verify.ordinary import ordinary_ids, ordinary_texts
from .verify.packed_forward import verify_packed_forward
from .verify.prefix import PrefixSupport, verify_prefixes
from .verify.varied import varied_texts

if TYPE_CHECKING:
    from .split.ranks import RankGroup

__all__ = ["load_models"]

logger = logging.getLogger("millpond")

_Encoder = Transformer | StaticEmbeddings | SparseStaticEmbeddings
_Loaded = tuple[Transformer, TextTokenizer, ExecutionMode]


@dataclass
class _Encoders:
    """Encoders by folder, so that a module shared by two routes is loaded once."""

    config: EngineConfig
    device: torch.device
    loaded: dict[Path, tuple[_Encoder, TextTokenizer, ExecutionMode | None]]
    reads_pairs: bool
    """Whether the model scores pairs, or classifies them."""
    ranks: RankGroup | None
    """The processes that hold the model together with this one."""
    heads: HeadLoader
    with_vocabulary: Mapping[Path, Module]
    """Encoders that a route needs with their head for masked words, which others do without."""

    def get(
        self, module: Module, *, all_layers: bool
    ) -> tuple[_Encoder, TextTokenizer, ExecutionMode | None]:
        if module.path not in self.loaded:
            tables = {"StaticEmbedding": self._static, "SparseStaticEmbedding": self._sparse_static}
            load: Callable[[Module], Any] = tables.get(module.kind, self._transformer)
            self.loaded[module.path] = load(self.with_vocabulary.get(module.path, module))
        found = self.loaded[module.path]
        if all_layers and isinstance(found[0], Transformer):
            found[0].all_layers = True
            if self.config.dtype == "fp8":
                raise InvalidOption(
                    f"dtype='fp8': the head of {module.path} reads all layers, and float8 gives "
                    "the last; leave it at 'auto'"
                )
        return found

    def _tokenizer(
        self, module: Module, *, vocab_size: int | None, max_positions: int | None, **reading: Any
    ) -> TextTokenizer:
        """With `reading`, the options of a `PairTokenizer`, one that reads pairs."""
        kind = PairTokenizer if reading else TextTokenizer
        return kind.load(
            module,
            max_length=self.config.max_length,
            max_positions=max_positions,
            hidden_vocab_size=vocab_size,
            trust_remote_code=self.config.trust_remote_code,
            cache_dir=self.config.cache_dir,
            **reading,
        )

    def _static(self, module: Module) -> tuple[StaticEmbeddings, TextTokenizer, None]:
        table = StaticEmbeddings.load(module, self.device)
        return table, self._tokenizer(module, vocab_size=table.vocab_size, max_positions=None), None

    def _sparse_static(self, module: Module) -> tuple[SparseStaticEmbeddings, TextTokenizer, None]:
        tokenizer = self._tokenizer(module, vocab_size=None, max_positions=None)
        table = SparseStaticEmbeddings.load(
            module, self.device, vocab_size=tokenizer.vocab_size, known_id=tokenizer.known_id
        )
        return table, self._tokenizer(module, vocab_size=table.vocab_size, max_positions=None), None

    def _transformer(self, module: Module) -> _Loaded:
        dtype = choose_dtype(
            self.config.dtype, device=self.device, checkpoint_dtype=checkpoint_dtype(module)
        )
        loaded, reason = self._attempt(module, dtype)
        # An error holds on to the model that it came from: it is gone before the next is loaded.
        if loaded is None and reason is None:
            logger.info("%s overflows in float16; running it in bfloat16", module.path)
            loaded = self._load_and_verify(module, torch.bfloat16)
        elif loaded is None:
            loaded = self._in_float32(module, dtype, str(reason))
        execution = loaded[2]
        if execution.kind != "packed":
            logger.info("%s runs %s: %s", module.path, execution.kind, execution.reason)
        return loaded

    def _attempt(self, module: Module, dtype: torch.dtype) -> tuple[_Loaded | None, str | None]:
        """The model in a precision, or why it does not run in it; without a reason, it overflows.

        Raises what another precision does not help against.
        """
        may_change = self.config.dtype == "auto" and dtype == torch.float16
        try:
            loaded = self._load_and_verify(module, dtype)
        except DoesNotFit:
            if self.config.dtype != "auto":
                raise
            return None, None
        except (MillpondError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a model's code objects with
            if self.device.type != "cpu":
                raise
            reason = summary(error)
            if dtype == torch.float32:
                raise _does_not_run(module, reason) from error
            logger.debug("%s does not run in %s", module.path, dtype, exc_info=True)
            return None, reason
        return (None if may_change and not loaded[2].finite else loaded), None

    def _in_float32(self, module: Module, dtype: torch.dtype, reason: str) -> _Loaded:
        """A CPU has not every operator in every precision: the model in float32, if that was it."""
        try:
            loaded = self._load_and_verify(module, torch.float32)
        except (MillpondError, MemoryError):
            raise
        except Exception as error:
            raise _does_not_run(module, reason) from error
        if self.config.dtype != "auto":
            raise UnsupportedModel(
                f"{module.path} does not run in {dtype} here ({reason}); try another dtype, such "
                "as float32"
            )
        logger.info("%s does not run in %s (%s); running in float32", module.path, dtype, reason)
        return loaded

    def _load_and_verify(self, module: Module, dtype: torch.dtype) -> _Loaded:
        """With faster layers if the model is the same with them, and as transformers made it if
        not."""
        loaded = self._load(module, dtype)
        if loaded is None:
            gc.collect()  # the first model, whose layers may know each other
            loaded = self._load(module, dtype, own_layers=True)
        assert loaded is not None
        return loaded

    def _load(
        self, module: Module, dtype: torch.dtype, *, own_layers: bool = False
    ) -> _Loaded | None:
        """None where the model is another one with faster layers in the place of its own.

        With `own_layers` none of them is replaced.
        """
        in_float8 = self.config.dtype == "fp8"
        loaded = load_transformer(
            module,
            device=self.device,
            dtype=dtype,
            trust_remote_code=self.config.trust_remote_code,
            cache_dir=self.config.cache_dir,
            ranks=self.ranks,
        )
        reading = _reading(loaded) if self.reads_pairs else {}
        tokenizer = self._tokenizer(
            module, vocab_size=loaded.vocab_size, max_positions=loaded.max_positions, **reading
        )
        ids = ordinary_ids(loaded.vocab_size, tokenizer)
        text = list(ids[: max(LENGTHS)])
        with threads_for_check(loaded.model, sum(LENGTHS)):
            transformer = Transformer(loaded)
            if isinstance(tokenizer, PairTokenizer):
                transformer.reads_token_types = tokenizer.has_token_types
            refuse_overflow(loaded.model, partial(run_alone, transformer, text), folder=module.path)
            drop_unused_pooler(transformer, token_ids=ids)
            with layers_read_by_others(loaded.model) as keep:
                expected = run_alone(transformer, text)
            transformer.width = expected.shape[1]
            if not own_layers:
                self._replace_layers(transformer, tokenizer, keep)
                reason = disagreement([run_alone(transformer, text)], [expected])
                if reason is not None and not transformer.is_int8:
                    logger.info("%s keeps transformers' own layers: %s", module.path, reason)
                    return None
            execution = verify_execution(transformer, token_ids=ids, pad_id=tokenizer.pad_id)
            if self.device.type == "cpu":
                verify_fused(transformer, execution, token_ids=ids)
            elif not own_layers or in_float8:
                verify_packed_forward(
                    transformer, execution, token_ids=ids, keep=keep, float8=in_float8
                )
            fill = tokenizer.query_fill
            if fill is not None and not fill.is_attended:
                execution = verify_filled(transformer, execution, token_ids=ids)
        return transformer, tokenizer, execution

    def _replace_layers(
        self, transformer: Transformer, tokenizer: TextTokenizer, keep: Container[nn.Module]
    ) -> None:
        """Put faster layers in the place of transformers' own; the model's result is to stay.

        Linear layers to `keep` stay as they are.
        """
        model, batch_invariant = transformer.model, self.config.batch_invariant
        if self.config.dtype == "int8":
            run, texts = partial(run_alone, transformer), ordinary_texts(tokenizer)
            transformer.quantisation_error = quantize(model, run, texts, keep=keep)
        if self.device.type == "cpu":
            fuse_layers(model, batch_invariant=batch_invariant, keep=keep)
            prepack_linears(model, batch_invariant=batch_invariant, keep=keep)
            fuse_gelus(model)
            replace_activations(model)
            use_huge_pages_for_weights(model)
            if transformer.vocabulary is not None:
                transformer.vocabulary.use_packed_products(batch_invariant=batch_invariant)
        if self.device.type == "cuda":
            fuse_for_cuda(model)

    def use_float8(self, route: Route, head: AnyPooler) -> None:
        """With `dtype="fp8"`: as far as a route's vectors bear it, the first's where some share an
        encoder."""
        encoder, tokenizer, _ = self.loaded[route.encoder.path]
        if self.config.dtype != "fp8" or not isinstance(encoder, Transformer):
            return
        if not encoder.is_float8:
            use_float8(encoder, varied_texts(tokenizer), reads=_reads(head))

    def prefixes(self, route: Route, head: AnyPooler) -> PrefixSupport:
        """Whether the texts of a route can continue from cached prefixes."""
        encoder, tokenizer, execution = self.loaded[route.encoder.path]
        reason = _reason_against_prefixes(self.config, self.device, execution, head)
        if reason is not None:
            return PrefixSupport(reason=reason)
        assert isinstance(encoder, Transformer)
        ids = ordinary_ids(encoder.vocab_size, tokenizer)
        with threads_for_check(encoder.model, sum(LENGTHS)):
            return verify_prefixes(encoder, token_ids=ids)


def _reads(head: AnyPooler) -> Reads:
    """Which hidden states a head's vectors come of."""
    if head.reads_last_token_only:
        return "last"
    return "first" if isinstance(head, Pooler) and head.reads_first_token_only else "mean"


def _does_not_run(module: Module, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{module.path} does not run ({reason}); a model like it may need texts of more than "
        "one token, or something beside token ids"
    )


def _reason_against_prefixes(
    config: EngineConfig,
    device: torch.device,
    execution: ExecutionMode | None,
    head: AnyPooler,
) -> str | None:
    if config.prefix_cache == "off":
        return "turned off"
    if execution is None or execution.kind != "packed":
        return "the model does not run packed"
    if not head.reads_last_token_only:
        return "a vector needs all tokens of its text, not the last alone"
    if config.batch_invariant and device.type == "cuda":
        return "batch_invariant computes every text whole"
    return None


def load_models(
    spec: ModelSpec, config: EngineConfig, device: torch.device, ranks: RankGroup | None = None
) -> tuple[PoolingModel, ...]:
    """Load the weights of every route onto the device and verify how each may run.

    A route to sparse vectors beside dense ones is left out where its head does not load. Raises
    the `ModelError`s of its parts.
    """
    try:
        return _load_routes(spec, spec.routes, config, device, ranks)
    except (InvalidCheckpoint, UnsupportedModel) as error:
        if spec.sparse is None or spec.sparse.route is None:
            raise
        reason = summary(error)
    others = [route for route in spec.routes if route.name != spec.sparse.route]
    models = _load_routes(spec, others, config, device, ranks)
    logger.info("%s gives no sparse vectors: %s", spec.name, reason)
    return models


def _load_routes(
    spec: ModelSpec,
    routes: Sequence[Route],
    config: EngineConfig,
    device: torch.device,
    ranks: RankGroup | None,
) -> tuple[PoolingModel, ...]:
    wanted = [route.encoder for route in routes]
    encoders = _Encoders(
        config,
        device,
        {},
        reads_pairs=spec.scoring is not None,
        ranks=ranks,
        heads=HeadLoader(
            device=device,
            trust_remote_code=config.trust_remote_code,
            batch_invariant=config.batch_invariant or device.type == "cpu",
            gives_tokens=spec.kind == "multi_vector",
        ),
        with_vocabulary={
            encoder.path: encoder
            for encoder in wanted
            if encoder.options.get("task") == "fill-mask"
        },
    )
    return tuple(_load_model(route, encoders) for route in routes)


def _load_model(route: Route, encoders: _Encoders) -> PoolingModel:
    all_layers = any(module.kind == "WeightedLayerPooling" for module in route.head)
    encoder, tokenizer, execution = encoders.get(route.encoder, all_layers=all_layers)
    head = encoders.heads.load(route, encoder, tokenizer)
    encoders.use_float8(route, head)
    if isinstance(encoder, Transformer) and isinstance(head, Pooler):
        verify_firsts(encoder, head)
    return PoolingModel(
        name=route.name,
        tokenizer=tokenizer,
        encoder=encoder,
        head=head,
        execution=execution,
        prefixes=encoders.prefixes(route, head),
        kept_tokens=KeptTokens.of(route.head, tokenizer),
    )


def _reading(loaded: LoadedTransformer) -> dict[str, Any]:
    """What the tokenizer of a model for pairs has to know of it."""
    ignored = None
    if loaded.head is not None and loaded.head.looks_past_padding:
        ignored = loaded.config.get_text_config().pad_token_id
    return {"token_types": loaded.takes_token_type_ids, "ignored_end": ignored}
