"""Every model is verified at load: it runs packed if it can, padded if not, and never wrong.

A few sequences run packed, and the same ones run one by one through the model's stock attention.
If the hidden states agree, the model runs packed. If not, the same question is put to padding;
a model whose padding leaks into its texts (a convolution over tokens, say) only ever sees texts
of equal length together. No list of architectures is kept anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...attention.packed import AttentionOptions, PackedSequences, Sequences
from ...attention.varlen import uses_varlen
from ...attention.verify import AttentionShape
from ...errors import first_line, summary
from ...layers.cpu.encoder import FusedEncoder
from ...layers.rotary import rotates_by_length
from ..transformer import HiddenStates, Transformer

__all__ = [
    "LENGTHS",
    "ExecutionMode",
    "WatchedSequences",
    "check_texts",
    "disagreement",
    "drop_unused_pooler",
    "last_layer",
    "run_alone",
    "run_packed",
    "run_row",
    "verify_execution",
    "verify_fused",
]

logger = logging.getLogger("millpond")

PAD_TO = 16
FAR_PAD_TO = 3 * PAD_TO
MOST_WINDOW_TOKENS = 1024  # a sliding window up to this is checked with a text longer than it
MOST_ERRORS = 4  # tokens of two quantised runs are as many of its errors apart, at the most
MOST_NOISE = 0.5  # a wrong mask or position is further off
MOST_POSITIONS_TRIED = 4096  # a batch has hardly more tokens
LENGTHS = (9, 4, 13, 1, 9, 6)
ROWS_BESIDE = (16, 17, 23, 31, 33, 64, 100, 257, 1000)  # rows beside a text; kernels have tails
_Kind = Literal["packed", "padded", "equal_length"]
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True, kw_only=True)
class ExecutionMode:
    """How a model runs, and why."""

    kind: _Kind
    reason: str
    finite: bool = True
    """Whether every hidden state of the check was finite; float16 overflows in some models."""
    attention: frozenset[AttentionShape] = frozenset()
    """Sizes of its layers' attention, as far as it lets others attend for it."""

    @property
    def pad_to(self) -> int | None:
        """What texts of a batch are padded to a multiple of; None when packed."""
        return {"packed": None, "padded": PAD_TO, "equal_length": 1}[self.kind]


@torch.inference_mode()
def verify_execution(
    transformer: Transformer, *, token_ids: Sequence[int], pad_id: int
) -> ExecutionMode:
    """Find the fastest way of running the model that gives its own results.

    `token_ids` are ordinary ids of the vocabulary to make texts of. The transformer is left with
    the attention that the result needs.
    """
    texts = check_texts(transformer, token_ids)
    attention = _attention_shapes(transformer, texts[: len(LENGTHS)])
    expected = [run_alone(transformer, text) for text in texts]
    kind, reason = _choose_execution(transformer, texts, expected, pad_id)
    finite = all(bool(rows.isfinite().all()) for rows in expected)
    return ExecutionMode(kind=kind, reason=reason, finite=finite, attention=attention)


def _choose_execution(
    transformer: Transformer, texts: list[list[int]], expected: list[Tensor], pad_id: int
) -> tuple[_Kind, str]:
    if rotates_by_length(transformer.model):
        # Only texts longer than the model was trained on would show it.
        return "equal_length", "its rotary embedding depends on the longest text of a batch"
    try:
        packed_reason = _check_packed(transformer, texts, expected, pad_id)
    except Exception as error:  # whatever a model's code objects with, it can still run padded
        packed_reason = summary(error)
    if packed_reason is None:
        return "packed", "hidden states equal the one-by-one run"
    transformer.use_stock_attention()
    padded_reason = _check_padded(transformer, texts, expected, pad_id)
    if padded_reason is None:
        return "padded", f"not packed: {packed_reason}"
    return "equal_length", f"not packed: {packed_reason}; not padded: {padded_reason}"


@torch.inference_mode()
def drop_unused_pooler(transformer: Transformer, *, token_ids: Sequence[int]) -> None:
    """Remove a model's own pooler where the model runs without it: its output is not used."""
    model = transformer.model
    pooler = getattr(model, "pooler", None)
    if not isinstance(pooler, nn.Module):
        return
    text = list(token_ids[:4])
    expected = run_alone(transformer, text)
    model.register_module("pooler", None)
    try:
        agrees = torch.equal(run_alone(transformer, text), expected)
    except Exception:  # whatever a model objects with that needs one
        agrees = False
    if not agrees:
        model.register_module("pooler", pooler)


@torch.inference_mode()
def verify_fused(
    transformer: Transformer, execution: ExecutionMode, *, token_ids: Sequence[int]
) -> None:
    """Leave out the model's own forward where the fused encoder gives the same."""
    if execution.kind != "packed":
        return
    texts = check_texts(transformer, token_ids)
    expected = run_packed(transformer, texts)
    try:
        transformer.fused = FusedEncoder(
            transformer.model, needs_token_type_ids=transformer.needs_token_type_ids
        )
        rows = run_packed(transformer, texts)
        if transformer.is_int8:  # which has an attention of its own
            longest = max(range(len(texts)), key=lambda i: len(texts[i]))
            reason = disagreement(rows, expected, quantisation_error=transformer.quantisation_error)
            is_invariant = _is_batch_invariant(transformer, texts[longest], rows[longest])
        else:
            reason, is_invariant = None, all(map(torch.equal, rows, expected))
    except Exception as error:  # other layers, or embeddings that are called otherwise
        reason, is_invariant = first_line(error), False
    if reason is not None or not is_invariant:
        logger.debug("the model's own forward stays: %s", reason or "other bits without it")
        transformer.fused = None


def _is_batch_invariant(transformer: Transformer, text: list[int], rows: Tensor) -> bool:
    for beside in ROWS_BESIDE:
        others = [text[:1]] * beside
        first = run_packed(transformer, [text, *others])[0]
        last = run_packed(transformer, [*others, text])[-1]
        if not (torch.equal(first, rows) and torch.equal(last, rows)):
            return False
    return True


def check_texts(transformer: Transformer, token_ids: Sequence[int]) -> list[list[int]]:
    """Texts to check a model with: short ones, and one longer than each sliding window."""
    random = np.random.default_rng(20)
    lengths = [*LENGTHS, *(window + 5 for window in _windows(transformer))]
    return [random.choice(token_ids, length).tolist() for length in lengths]


def _windows(transformer: Transformer) -> list[int]:
    """The model's sliding windows, as far as a text longer than one fits and is cheap."""
    config = transformer.model.config
    room = getattr(config, "max_position_embeddings", None) or MOST_WINDOW_TOKENS
    found = _values(config, "sliding_window") | _values(config, "local_attention")
    most = min(MOST_WINDOW_TOKENS, room - 8)
    return sorted(window for window in found if isinstance(window, int) and 0 < window <= most)


def _values(config: Any, name: str) -> set[Any]:
    """What a configuration says of its layers, by an attribute that not all may have.

    One whose layers differ in it refuses to be asked as a whole.
    """
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    return {getattr(layer, name, None) for layer in layers}


@torch.inference_mode()
def run_alone(transformer: Transformer, text: list[int]) -> Tensor:
    """Hidden states of one text, `[length, hidden]`, by the attention the model is set to."""
    ids = torch.tensor([text], device=transformer.device)
    return last_layer(transformer.padded(ids, torch.ones_like(ids)))


def _check_packed(
    transformer: Transformer, texts: list[list[int]], expected: list[Tensor], pad_id: int
) -> str | None:
    if not (transformer.takes_positions and transformer.takes_boundaries):
        return "its forward takes no position ids or no further arguments"
    if any(_values(transformer.model.config, "attention_chunk_size")):
        # Only texts longer than a chunk would show it, and they are too long to check at load.
        return "its attention works in chunks"
    transformer.use_packed_attention()
    reason = None
    for offset in _position_offsets(transformer, pad_id, max(map(len, texts))):
        transformer.position_offset = offset
        rows = run_packed(transformer, texts)
        reason = disagreement(rows, expected, quantisation_error=transformer.quantisation_error)
        if reason is None:
            return _refusal_of_long_rows(transformer, token_ids=texts[0])
    return reason


class _ReachedLayers(Exception):
    """The model's own code has come as far as its layers."""


def _refusal_of_long_rows(transformer: Transformer, token_ids: list[int]) -> str | None:
    """What the model says of a packed row with more tokens than it has positions, if it refuses.

    Layers do not see how long a row is, so only what comes before them runs.
    """
    positions = transformer.max_positions
    layers = [m for m in transformer.model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if positions is None or positions > MOST_POSITIONS_TRIED or not layers:
        return None

    def stop(*_: Any) -> None:
        raise _ReachedLayers

    texts = [token_ids] * (positions // len(token_ids) + 1)
    hooks = [layer.register_forward_pre_hook(stop) for each in layers for layer in each]
    try:
        run_packed(transformer, texts)
    except _ReachedLayers:
        return None
    except Exception as error:
        return summary(error)
    finally:
        for hook in hooks:
            hook.remove()
    return None


@dataclass(frozen=True)
class WatchedSequences(PackedSequences):
    """Sequences that keep what each layer asks its attention for, and its sizes."""

    asked: list[AttentionOptions] = field(default_factory=list)
    shapes: set[AttentionShape] = field(default_factory=set)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        sizes = query.shape[0], key.shape[0], query.shape[2]
        self.shapes.add(AttentionShape(*sizes, options.causal))
        self.asked.append(options)
        return super().attend(query, key, value, options)


def _attention_shapes(
    transformer: Transformer, texts: list[list[int]]
) -> frozenset[AttentionShape]:
    shapes: set[AttentionShape] = set()
    try:
        transformer.use_packed_attention()
        run_packed(transformer, texts, partial(WatchedSequences, shapes=shapes))
    except Exception as error:  # whatever a model's code objects with, it attends by itself
        logger.debug("its attention was not looked at: %s", first_line(error))
    transformer.use_stock_attention()
    return frozenset(shapes)


def _position_offsets(transformer: Transformer, pad_id: int, longest: int) -> list[int]:
    """Where positions may start: at 0, or after the padding id, as in RoBERTa-style models."""
    positions = getattr(transformer.model.config, "max_position_embeddings", None) or 0
    return [0] if pad_id + 1 + longest > positions else [0, pad_id + 1]


def run_packed(
    transformer: Transformer,
    texts: list[list[int]],
    kind: Callable[..., PackedSequences] = PackedSequences,
) -> list[Tensor]:
    """Hidden states of each text, `[length, hidden]`, all in one packed row."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    device = transformer.device
    boundaries = None
    if uses_varlen(device, transformer.dtype):
        edges = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        boundaries = torch.from_numpy(edges).to(device)
    described = PackedSequences.of(lengths, boundaries=boundaries)
    sequences = kind(described.groups, described.longest, described.boundaries)
    return run_row(transformer, texts, sequences)


def run_row(
    transformer: Transformer,
    texts: list[list[int]],
    sequences: Sequences,
    before: Sequence[int] | None = None,
) -> list[Tensor]:
    """The same of texts that attend as these sequences do, with tokens `before` each of them."""
    device = transformer.device
    ids = torch.tensor([token for text in texts for token in text], device=device)
    starts, lengths = before or [0] * len(texts), [len(text) for text in texts]
    positions = [
        torch.arange(start, start + length, device=device)
        for start, length in zip(starts, lengths, strict=True)
    ]
    rows = transformer.packed(ids, torch.cat(positions), sequences)
    return list(torch.split(last_layer(rows), lengths))


def _check_padded(
    transformer: Transformer, texts: list[list[int]], expected: list[Tensor], pad_id: int
) -> str | None:
    """Padded as little as a batch is, and further: some models look from the first tokens of a row
    at its last ones."""
    texts, expected = texts[: len(LENGTHS)], expected[: len(LENGTHS)]
    room = transformer.max_positions or FAR_PAD_TO
    for length in (PAD_TO, min(FAR_PAD_TO, room)):
        try:
            found = _run_padded(transformer, texts, pad_id, length)
        except Exception as error:
            return summary(error)
        reason = disagreement(found, expected, quantisation_error=transformer.quantisation_error)
        if reason is not None:
            return reason
    return None


def _run_padded(
    transformer: Transformer, texts: list[list[int]], pad_id: int, length: int
) -> list[Tensor]:
    ids = torch.full((len(texts), length), pad_id, device=transformer.device)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    rows = last_layer(transformer.padded(ids, mask)).view(*ids.shape, -1)
    return [rows[i, : len(text)] for i, text in enumerate(texts)]


def disagreement(
    rows: list[Tensor], expected: list[Tensor], *, quantisation_error: float = 0.0
) -> str | None:
    """The worst token's distance relative to its length, if it is more than rounding explains.

    A quantised model is as far from itself as from what it was, since a bit of difference has
    values rounded the other way: `quantisation_error` says how far that is.
    """
    worst = 0.0
    for got, wanted in zip(rows, expected, strict=True):
        got, wanted = got.float(), wanted.float()
        if not torch.equal(got.isfinite(), wanted.isfinite()):
            return "hidden states are not finite"
        distance = (got - wanted).nan_to_num().norm(dim=-1)
        scale = wanted.nan_to_num().norm(dim=-1).clamp(min=1e-6)
        worst = max(worst, float((distance / scale).max()))
    noise = min(MOST_ERRORS * quantisation_error, MOST_NOISE)
    if worst <= max(TOLERANCE[expected[0].dtype], noise):
        return None
    return f"hidden states differ from the one-by-one run by {worst:.2g} of their length"


def last_layer(hidden: HiddenStates) -> Tensor:
    """The hidden states of the last layer, `[rows, hidden]`."""
    return hidden if isinstance(hidden, Tensor) else hidden[-1]
