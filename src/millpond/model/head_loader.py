"""`HeadLoader`: what follows the encoder of a route, by the modules that the route has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..checkpoint.routes import Route
from ..pooler.m3_heads import M3Pooler
from ..pooler.modules import ModuleContext
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
    batch_invariant: bool
    gives_tokens: bool
    """Whether the result is a vector for each token."""

    def load(self, route: Route, encoder: Encoder, tokenizer: TextTokenizer) -> AnyPooler:
        """The head of a route. Raises `InvalidCheckpoint` or a subclass."""
        last = route.modules[-1]
        place = self._place(encoder.width)
        if last.kind == "M3Heads":
            return self._m3_heads(route, encoder, tokenizer)
        if last.kind == "SpladePooling":
            assert isinstance(encoder, Transformer)
            assert encoder.vocabulary is not None
            return SparsePooler(head=encoder.vocabulary, **last.options)
        if last.kind == "SparseAutoEncoder":
            pooler = self._before_last(route, encoder, tokenizer)
            latents = LatentHead.load(last, self._place(pooler.dimension))
            return SparsePooler(head=latents, pooler=pooler, is_plain=True)
        if isinstance(encoder, Transformer) and encoder.head is not None:
            own = encoder.head
            return Pooler.of_head(
                own, place, pooling=own.pooling, is_late=own.is_late, dimension=own.width
            )
        if self.gives_tokens:
            modules = [module for module in route.head if module.kind not in _OF_TOKENS]
            return Pooler.of_tokens(modules, place)
        return Pooler.load(route.head, place, pooled=not isinstance(encoder, Transformer))

    def _place(self, width: int) -> ModuleContext:
        return ModuleContext(
            width=width,
            device=self.device,
            batch_invariant=self.batch_invariant,
            trust_remote_code=self.trust_remote_code,
        )

    def _before_last(self, route: Route, encoder: Encoder, tokenizer: TextTokenizer) -> Pooler:
        """What makes a vector of a text before the last module."""
        found = self.load(replace(route, modules=route.modules[:-1]), encoder, tokenizer)
        assert isinstance(found, Pooler)
        return found

    def _m3_heads(self, route: Route, encoder: Encoder, tokenizer: TextTokenizer) -> M3Pooler:
        *steps, heads = route.head
        return M3Pooler.load(
            heads.path,
            heads.options["gives"],
            self._place(encoder.width),
            dense=self._before_last(route, encoder, tokenizer) if steps else None,
            ignored=sorted(tokenizer.empty_of_meaning),
            vocabulary=encoder.vocab_size,
        )
