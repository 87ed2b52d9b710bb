"""`Pooler`: everything after the transformer, from token rows to finished vectors, in float32.

It knows the modules of one route and the order they stand in. It knows no texts, no ids and
not how the rows were computed: packed and padded rows are the same to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize as l2_normalize

from ..checkpoint.modules import Module
from ..cpu import scripted
from ..errors import InvalidCheckpoint, UnsupportedModel
from . import mean
from .modules import LOADERS, ModuleContext, Step, invariant_step, load_layer_weights
from .pooling import POOLING, TokenRows, pool, weighted_layers

__all__ = ["Pooler"]

_TOKENS, _VECTOR, _SCORES = "token_embeddings", "sentence_embedding", "scores"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pooler:
    """The modules after a transformer (or after static embeddings), loaded and in order."""

    is_sparse: ClassVar = False
    """Whether a text has few dimensions that are not zero, as `SparsePooler` gives them."""

    dimension: int
    """The length of a vector."""
    layers: tuple[int, Tensor] | None = None
    """The first layer whose hidden states are taken, and a weight for each; None for the last."""
    token_steps: tuple[Step, ...] = ()
    modes: tuple[str, ...] = ()
    excludes_prompt: bool = False
    """Whether it uses `prompt_lengths`."""
    vector_steps: tuple[Step, ...] = ()
    keeps_rows: bool = False
    """Whether it pools nothing: a text has as many rows as it has tokens."""

    @classmethod
    def load(
        cls, modules: Sequence[Module], place: ModuleContext, *, pooled: bool = False
    ) -> Pooler:
        """Load `modules`, which follow a first module that gives rows of the place's width.

        `pooled` says that those rows are one per text already, as static embeddings are; then only
        `finish` is of use.

        Raises `InvalidCheckpoint` for modules that contradict each other or their weights, and
        `UnsupportedModel` for those Millpond cannot run.
        """
        if pooled:
            steps, dimension = _load_steps(modules, _VECTOR, place)
            return cls(vector_steps=steps, dimension=dimension)
        at = _pooling_index(modules)
        modes, includes_prompt = _pooling_options(modules[at])
        layers, token_modules = _token_modules(modules[:at], place.device)
        token_steps, width = _load_steps(token_modules, _TOKENS, place)
        place = replace(place, width=width * len(modes))
        vector_steps, dimension = _load_steps(modules[at + 1 :], _VECTOR, place)
        return cls(
            layers=layers,
            token_steps=token_steps,
            modes=modes,
            excludes_prompt=not includes_prompt,
            vector_steps=vector_steps,
            dimension=dimension,
        )

    @classmethod
    def of_head(
        cls,
        head: Step,
        place: ModuleContext,
        *,
        pooling: str | None,
        is_late: bool = False,
        dimension: int,
    ) -> Pooler:
        """A pooling, and then a head that gives `dimension` numbers of a row.

        With `is_late` the head is for the rows of tokens, and what it gives of them is pooled;
        without a `pooling` nothing is. A batch-invariant one runs on a fixed number of rows.
        """
        step = head
        if place.batch_invariant:
            step = invariant_step(head, place.width, place.device)
        return cls(
            token_steps=(step,) if is_late else (),
            modes=() if pooling is None else (pooling,),
            vector_steps=() if is_late else (step,),
            dimension=dimension,
            keeps_rows=pooling is None,
        )

    @classmethod
    def of_tokens(cls, modules: Sequence[Module], place: ModuleContext) -> Pooler:
        """The modules that change token vectors, of a model that pools none. Raises as `load`."""
        steps, dimension = _load_steps(modules, _TOKENS, place)
        return cls(vector_steps=steps, dimension=dimension, keeps_rows=True)

    @cached_property
    def _is_mean(self) -> bool:
        """Whether it is the mean of all tokens, and at most of unit length."""
        is_plain = self.layers is None and not self.token_steps and not self.excludes_prompt
        return is_plain and self.modes == ("mean",) and self.vector_steps in ((), (l2_normalize,))

    @property
    def reads_last_token_only(self) -> bool:
        """Whether a text's vector comes of the hidden state of its last token alone."""
        return self.layers is None and self.modes == ("lasttoken",)

    @property
    def reads_first_token_only(self) -> bool:
        """Whether it comes of the hidden state of its first token alone, of the last layer."""
        is_first = self.layers is None and self.modes == ("cls",)
        return is_first and not self.token_steps and not self.excludes_prompt

    def __repr__(self) -> str:
        return (
            f"Pooler(dimension={self.dimension}, pooling={'+'.join(self.modes) or None}, "
            f"token_steps={len(self.token_steps)}, vector_steps={len(self.vector_steps)})"
        )

    @torch.inference_mode()
    def __call__(
        self,
        hidden: Tensor | Sequence[Tensor],
        starts: Tensor,
        lengths: Tensor,
        prompt_lengths: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """The finished vectors of a batch, float32 [n, dimension].

        `hidden` [rows, hidden_size], of any float dtype, holds every text's tokens as consecutive
        rows; with `layers` it is the sequence of all hidden states, the embeddings first.
        Text i has `lengths[i]` ≥ 1 rows from `starts[i]` on, its prompt's `prompt_lengths[i]` among
        them; all three are int64 [n] on the device of `hidden`. Texts lie in ascending order, and
        rows between them are ignored. With `keeps_rows` the rows that are `kept`, int64, have a
        vector each.
        """
        if self._is_mean and isinstance(hidden, Tensor) and hidden.device.type == "cpu":
            taken = hidden, starts, lengths, bool(self.vector_steps)
            vectors: Tensor = scripted.run(mean.mean_of_texts, *taken)
            return vectors
        rows = self._token_rows(hidden)
        if self.keeps_rows:
            assert kept is not None
            return self.finish(rows[kept])
        for step in self.token_steps:
            rows = step(rows)
        prompts = prompt_lengths if self.excludes_prompt else None
        return self.finish(pool(TokenRows.of(rows, starts, lengths, prompts), self.modes))

    @torch.inference_mode()
    def finish(self, vectors: Tensor) -> Tensor:
        """Only what follows the pooling: float32 [n, width] to float32 [n, dimension]."""
        for step in self.vector_steps:
            vectors = step(vectors)
        return vectors

    def _token_rows(self, hidden: Tensor | Sequence[Tensor]) -> Tensor:
        if isinstance(hidden, Tensor):
            return hidden.float()
        if self.layers is None:
            return hidden[-1].float()
        start, weights = self.layers
        return weighted_layers(hidden, start=start, weights=weights)


def _pooling_index(modules: Sequence[Module]) -> int:
    found = [index for index, module in enumerate(modules) if module.kind == "Pooling"]
    if len(found) == 1:
        return found[0]
    raise UnsupportedModel(
        f"the checkpoint has {len(found) or 'no'} Pooling modules between its transformer and its "
        "vectors; Millpond runs exactly one"
    )


def _pooling_options(module: Module) -> tuple[tuple[str, ...], bool]:
    modes = tuple(module.options["modes"])
    unknown = [mode for mode in modes if mode not in POOLING]
    if unknown or not modes:
        raise InvalidCheckpoint(
            f"{module.path}: pooling modes {list(modes)}; choose among {', '.join(POOLING)}"
        )
    return modes, bool(module.options["include_prompt"])


def _token_modules(
    modules: Sequence[Module], device: torch.device
) -> tuple[tuple[int, Tensor] | None, Sequence[Module]]:
    """The last WeightedLayerPooling, which replaces all that came before, and what follows it."""
    layers: tuple[int, Tensor] | None = None
    following: list[Module] = []
    for module in modules:
        if module.kind == "WeightedLayerPooling":
            start = int(module.options["layer_start"])
            layers, following = (start, load_layer_weights(module, device)), []
        else:
            following.append(module)
    return layers, following


def _load_steps(
    modules: Sequence[Module], feature: str, place: ModuleContext
) -> tuple[tuple[Step, ...], int]:
    """The modules that work on `feature`, as steps, and the width of the rows after them."""
    steps: list[Step] = []
    for module in modules:
        if not _works_on(module, feature):
            continue
        step, width = LOADERS[module.kind](module, place)
        place = replace(place, width=width)
        steps.append(step)
    return tuple(steps), place.width


def _works_on(module: Module, feature: str) -> bool:
    """Whether it changes `feature`; refuses what would have no meaning at its place."""
    if module.kind == "Dropout":
        return False
    if module.kind not in LOADERS:
        raise UnsupportedModel(
            f"{module.class_name} stands where Millpond can run only {', '.join(LOADERS)}"
        )
    source = module.options.get("module_input_name") or _VECTOR
    target = module.options.get("module_output_name") or source
    if (source, target) == (_VECTOR, _SCORES):
        return feature == _VECTOR
    if source != target or source not in (_TOKENS, _VECTOR):
        raise UnsupportedModel(
            f"{module.path}: {module.kind} goes from {source!r} to {target!r}; "
            f"Millpond runs modules that keep to {_TOKENS!r} or to {_VECTOR!r}"
        )
    if module.kind == "custom" and feature == _TOKENS:
        raise UnsupportedModel(
            f"{module.class_name} stands before the Pooling module; Millpond runs the checkpoint's "
            "own code only on finished vectors"
        )
    if source == feature:
        return True
    if feature == _TOKENS and module.kind != "Normalize":
        raise InvalidCheckpoint(
            f"{module.path}: {module.kind} works on the text's vector and stands before the "
            "Pooling module, where there is none yet"
        )
    return False
