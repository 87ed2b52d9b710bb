"""`HeadLoader`: what follows the encoder of a route, by the modules that the route has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..checkpoint.routes import Route
from ..pooler.m3_heads import M3Pooler
from ..pooler.pooler import Pooler
from ..pooler.sparse import LatentHead, SparsePooler
from ..tokenization.tokenizer import TextTokenizer
from .static import SparseStaticEmbeddings, StaticEmbeddings
from .transformer import Transformer

__all__ = ["AnyPooler", "HeadLoader"]

AnyPooler = Pooler | SparsePooler | M3Pooler
"""What makes the result of token rows."""

Encoder = Transformer | StaticEmbeddings | SparseStaticEmbeddings

# What chooses among token vectors, or is done to them on the host.
_OF_TOKENS = frozenset({"MultiVectorMask", "HierarchicalTokenPooling"})


@dataclass(frozen=True, kw_only=True)
class HeadLoader:
    """Loads the heads of a model's routes onto a device."""

    device: torch.device
    trust_remote_code: bool
    batch_invariant: bool | None
    """None: on a CPU."""
    gives_tokens: bool
    """Whether the result is a vector for each token."""

    def load(self, route: Route, encoder: Encoder, tokenizer: TextTokenizer) -> AnyPooler:
        """The head of a route. Raises `InvalidCheckpoint` or a subclass."""
        last = route.modules[-1]
        if last.kind == "M3Heads":
            return self._m3_heads(route, encoder, tokenizer)
        if last.kind == "SpladePooling":
            assert isinstance(encoder, Transformer)
            assert encoder.vocabulary is not None
            return SparsePooler(head=encoder.vocabulary, **last.options)
        if last.kind == "SparseAutoEncoder":
            return self._latents(route, encoder, tokenizer)
        if isinstance(encoder, Transformer) and encoder.head is not None:
            return Pooler.of_head(
                encoder.head,
                pooling=encoder.head.pooling,
                is_late=encoder.head.is_late,
                hidden_size=encoder.width,
                dimension=encoder.head.width,
                device=self.device,
                batch_invariant=self.batch_invariant,
            )
        if self.gives_tokens:
            return Pooler.of_tokens(
                [module for module in route.head if module.kind not in _OF_TOKENS],
                hidden_size=encoder.width,
                device=self.device,
                trust_remote_code=self.trust_remote_code,
                batch_invariant=self.batch_invariant,
            )
        return Pooler.load(
            route.head,
            hidden_size=encoder.width,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            pooled=not isinstance(encoder, Transformer),
            batch_invariant=self.batch_invariant,
        )

    def _before_last(self, route: Route, encoder: Encoder, tokenizer: TextTokenizer) -> Pooler:
        """What makes a vector of a text before the last module."""
        found = self.load(replace(route, modules=route.modules[:-1]), encoder, tokenizer)
        assert isinstance(found, Pooler)
        return found

    def _latents(self, route: Route, encoder: Encoder, tokenizer: TextTokenizer) -> SparsePooler:
        pooler = self._before_last(route, encoder, tokenizer)
        latents = LatentHead.load(
            route.modules[-1],
            width=pooler.dimension,
            device=self.device,
            batch_invariant=self.device.type == "cpu" or bool(self.batch_invariant),
        )
        return SparsePooler(head=latents, pooler=pooler, is_plain=True)

    def _m3_heads(self, route: Route, encoder: Encoder, tokenizer: TextTokenizer) -> M3Pooler:
        *steps, heads = route.head
        return M3Pooler.load(
            heads.path,
            heads.options["gives"],
            dense=self._before_last(route, encoder, tokenizer) if steps else None,
            ignored=sorted(tokenizer.empty_of_meaning),
            vocabulary=encoder.vocab_size,
            hidden_size=encoder.width,
            device=self.device,
            batch_invariant=self.batch_invariant,
        )
