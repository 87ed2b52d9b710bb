"""The head gives what sentence-transformers' own modules give, and the same bits in any company."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import (
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    WeightedLayerPooling,
)
from torch import Tensor

from millpond.checkpoint.module_config import read_options
from millpond.checkpoint.modules import Module
from millpond.cpu import scripted
from millpond.errors import InvalidCheckpoint, UnsupportedModel
from millpond.pooler import mean
from millpond.pooler.modules import ModuleContext
from millpond.pooler.pooler import Pooler
from millpond.pooler.pooling import POOLING, TokenRows, pool

CPU = torch.device("cpu")
WIDTH = 32
LENGTHS = (5, 1, 17, 9, 2, 9)
COMBINATIONS = [
    *((mode,) for mode in POOLING),
    ("mean", "max"),
    ("cls", "max", "mean"),
    ("lasttoken", "weightedmean"),
    tuple(POOLING),
]


def pooling(*modes: str, include_prompt: bool = True) -> Module:
    return Module(
        kind="Pooling",
        path=Path("1_Pooling"),
        options={"modes": modes, "include_prompt": include_prompt},
        class_name="Pooling",
    )


def saved(official: Any, folder: Path) -> Module:
    """The module that sentence-transformers saves, read as the checkpoint's reader reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    official.save(str(folder))
    kind = type(official).__name__
    return Module.of(kind, folder, **read_options(kind, folder, trust_remote_code=False))


def head(
    modules: Sequence[Module], width: int = WIDTH, *, trusted: bool = False, pooled: bool = False
) -> Pooler:
    place = ModuleContext(width=width, device=CPU, batch_invariant=True, trust_remote_code=trusted)
    return Pooler.load(modules, place, pooled=pooled)


def texts(lengths: Sequence[int] = LENGTHS, width: int = WIDTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randn(length, width, generator=generator) for length in lengths]


def packed(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.tensor([len(part) for part in parts])
    return torch.cat([*parts]), lengths.cumsum(0) - lengths, lengths


def padded(parts: Sequence[Tensor], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows [n, longest, width] with noise in the padding, and the mask [n, longest]."""
    longest = max(map(len, parts))
    rows = torch.full((len(parts), longest, parts[0].shape[1]), 1e3)
    mask = torch.zeros((len(parts), longest), dtype=torch.int64)
    for row, kept, part in zip(rows, mask, parts, strict=True):
        where = slice(longest - len(part), None) if left else slice(len(part))
        row[where], kept[where] = part, 1
    return rows, mask


def official_vectors(
    modules: Sequence[Any], parts: Sequence[Tensor], *, prompt: int | None = None
) -> Tensor:
    rows, mask = padded(parts)
    features: dict[str, Any] = {"token_embeddings": rows, "attention_mask": mask}
    if prompt is not None:
        features["prompt_length"] = prompt
    with torch.no_grad():
        for module in modules:
            features = module.eval()(features)
    found: Tensor = features["sentence_embedding"]
    return found


def prompts(length: int, count: int = len(LENGTHS)) -> Tensor:
    return torch.full((count,), length, dtype=torch.int64)


@pytest.mark.parametrize("modes", COMBINATIONS, ids="+".join)
def test_every_mode_and_concatenation(modes: tuple[str, ...]) -> None:
    found = head([pooling(*modes)])(*packed(texts()))
    expected = official_vectors([Pooling(WIDTH, modes)], texts())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prompt", [1, 2, 4])
@pytest.mark.parametrize("modes", COMBINATIONS, ids="+".join)
def test_prompts_are_left_out(modes: tuple[str, ...], prompt: int) -> None:
    parts = texts((5, 17, 9, 6))
    loaded = head([pooling(*modes, include_prompt=False)])
    found = loaded(*packed(parts), prompts(prompt, 4))
    official = [Pooling(WIDTH, modes, include_prompt=False)]
    expected = official_vectors(official, parts, prompt=prompt)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert loaded.excludes_prompt


@pytest.mark.parametrize("mode", POOLING)
def test_a_text_that_is_all_prompt(mode: str) -> None:
    found = head([pooling(mode, include_prompt=False)])(*packed(texts()), prompts(9))
    official = [Pooling(WIDTH, mode, include_prompt=False)]
    expected = official_vectors(official, texts(), prompt=9)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", POOLING)
def test_every_text_has_its_own_prompt(mode: str) -> None:
    lengths = torch.tensor([0, 1, 3, 2, 1, 8])
    loaded = head([pooling(mode, include_prompt=False)])
    found = loaded(*packed(texts()), lengths)
    for index, part in enumerate(texts()):
        alone = loaded(*packed([part]), lengths[index : index + 1])
        assert torch.equal(found[index], alone[0])


def test_prompts_count_where_the_checkpoint_does_not_exclude_them() -> None:
    loaded = head([pooling("mean")])
    assert not loaded.excludes_prompt
    assert torch.equal(loaded(*packed(texts()), prompts(2)), loaded(*packed(texts())))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("modes", COMBINATIONS, ids="+".join)
def test_padded_rows_give_the_bits_of_packed_ones(modes: tuple[str, ...], left: bool) -> None:
    loaded = head([pooling(*modes, include_prompt=False)])
    rows, starts, lengths = packed(texts())
    grid, mask = padded(texts(), left=left)
    begins = torch.arange(len(mask)) * mask.shape[1] + mask.argmax(dim=1)
    for prompt in (None, prompts(2)):
        assert torch.equal(
            loaded(rows, starts, lengths, prompt),
            loaded(grid.flatten(0, 1), begins, lengths, prompt),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_any_precision_are_pooled_in_float32(dtype: torch.dtype) -> None:
    rows, starts, lengths = packed(texts())
    found = head([pooling("mean", "cls")])(rows.to(dtype), starts, lengths)
    expected = head([pooling("mean", "cls")])(rows.to(dtype).float(), starts, lengths)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_no_texts_give_no_vectors() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    assert head([pooling("cls", "mean", "max")])(torch.zeros(4, WIDTH), empty, empty).shape == (
        0,
        3 * WIDTH,
    )


ACTIVATIONS = [torch.nn.Tanh(), torch.nn.Identity(), torch.nn.GELU(), torch.nn.PReLU()]


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(("width", "bias"), [(WIDTH, True), (48, False), (7, True)])
def test_dense(
    tmp_path: Path, width: int, bias: bool, activation: Any, residual: bool, safe: bool
) -> None:
    official = Dense(WIDTH, width, bias=bias, activation_function=activation, use_residual=residual)
    module = saved(official, tmp_path)
    if not safe:
        (tmp_path / "model.safetensors").unlink()
        official.save(str(tmp_path), safe_serialization=False)
    loaded = head([pooling("mean"), module])
    expected = official_vectors([Pooling(WIDTH), official], texts())
    torch.testing.assert_close(loaded(*packed(texts())), expected, rtol=0, atol=1e-6)
    assert loaded.dimension == width


def test_a_whole_chain_in_its_order(tmp_path: Path) -> None:
    chain: list[Any] = [
        Dense(WIDTH, 16, module_input_name="token_embeddings"),
        Normalize(module_input_name="token_embeddings"),
        Pooling(16, ("mean", "cls")),
        Dropout(0.5),
        LayerNorm(32),
        Dense(32, 24, activation_function=torch.nn.SiLU()),
        Normalize(),
        Dense(24, 40),
    ]
    torch.nn.init.normal_(chain[4].norm.weight)
    torch.nn.init.normal_(chain[4].norm.bias)
    modules = [saved(module, tmp_path / str(at)) for at, module in enumerate(chain)]
    loaded = head(modules)
    expected = official_vectors(chain, texts())
    torch.testing.assert_close(loaded(*packed(texts())), expected, rtol=0, atol=1e-6)
    assert loaded.dimension == 40
    assert loaded.excludes_prompt is False


@pytest.mark.parametrize(("start", "layers"), [(4, 12), (0, 3), (2, 2)])
def test_weighted_layers(tmp_path: Path, start: int, layers: int) -> None:
    official = WeightedLayerPooling(WIDTH, num_hidden_layers=layers, layer_start=start)
    torch.nn.init.uniform_(official.layer_weights, 0.5, 2.0)
    loaded = head([saved(official, tmp_path), pooling("mean", "cls")])
    states = [[part + layer for part in texts()] for layer in range(layers + 1)]
    grids = tuple(padded(parts)[0] for parts in states)
    mask = padded(texts())[1]
    features = {
        "token_embeddings": grids[-1],
        "attention_mask": mask,
        "all_layer_embeddings": grids,
    }
    with torch.no_grad():
        expected = Pooling(WIDTH, ("mean", "cls"))(official(features))["sentence_embedding"]
    _, starts, lengths = packed(texts())
    found = loaded([torch.cat(parts) for parts in states], starts, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)
    # A transformer that gives only its last layer leaves the module without effect.
    last = loaded(torch.cat(states[-1]), starts, lengths)
    assert torch.equal(last, head([pooling("mean", "cls")])(torch.cat(states[-1]), starts, lengths))


def test_the_unit_length_of_zeros_is_zeros(tmp_path: Path) -> None:
    found = head([pooling("mean"), saved(Normalize(), tmp_path)])(*packed([torch.zeros(3, WIDTH)]))
    assert torch.equal(found, torch.zeros(1, WIDTH))


def test_finish_starts_after_the_pooling(tmp_path: Path) -> None:
    official = Dense(WIDTH, 16)
    modules = [saved(official, tmp_path / "dense"), saved(Normalize(), tmp_path / "norm")]
    loaded = head(modules, pooled=True)
    vectors = torch.randn(5, WIDTH)
    with torch.no_grad():
        projected = official({"sentence_embedding": vectors})["sentence_embedding"]
    expected = torch.nn.functional.normalize(projected)
    torch.testing.assert_close(loaded.finish(vectors), expected, rtol=0, atol=1e-6)
    assert loaded.dimension == 16


LAW_WIDTHS = [(16, 24), (33, 7), (384, 64), (64, 100)]


@pytest.fixture(scope="module")
def law_heads(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[int, int, str], Pooler]:
    heads = {}
    for (width, out), name in itertools.product(LAW_WIDTHS, ("GELU", "SiLU", "Softplus", "Tanh")):
        folder = tmp_path_factory.mktemp("law")
        activation = getattr(torch.nn, name)()
        modules = [
            saved(
                Dense(width, width, activation_function=activation,
                      module_input_name="token_embeddings"),
                folder / "tokens",
            ),
            pooling(*POOLING, include_prompt=False),
            saved(LayerNorm(6 * width), folder / "layer_norm"),
            saved(
                Dense(6 * width, out, activation_function=activation, use_residual=True),
                folder / "dense",
            ),
            saved(Normalize(), folder / "normalize"),
        ]  # fmt: skip
        heads[width, out, name] = head(modules, width)
    return heads


@settings(max_examples=40, deadline=None, database=None)
@given(data=st.data())
def test_the_same_bits_alone_and_in_company(
    law_heads: Mapping[tuple[int, int, str], Pooler], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(law_heads)))
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=50))
    place = data.draw(st.integers(0, len(lengths) - 1))
    prompt = data.draw(st.integers(0, 5))
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(length, key[0], generator=generator) for length in lengths]
    loaded = law_heads[key]
    together = loaded(*packed(parts), prompts(prompt, len(parts)))
    alone = loaded(*packed([parts[place]]), prompts(prompt, 1))
    expected, found = alone[0].numpy(), together[place].numpy()
    assert expected.tobytes() == found.tobytes() or not np.isfinite(expected).all()


def test_many_texts_have_the_bits_of_each_alone(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 60, (300,), generator=generator).tolist()
    parts = [torch.randn(length, 384, generator=generator) for length in lengths]
    loaded = head([pooling("mean", "weightedmean", "max"), saved(Normalize(), tmp_path)], 384)
    together = loaded(*packed(parts))
    for index in range(0, 300, 17):
        assert torch.equal(loaded(*packed([parts[index]]))[0], together[index])


class TestRefusals:
    def test_no_pooling(self) -> None:
        with pytest.raises(UnsupportedModel, match="no Pooling"):
            head([])

    def test_two_poolings(self) -> None:
        with pytest.raises(UnsupportedModel, match="2 Pooling"):
            head([pooling("mean"), pooling("cls")])

    def test_an_unknown_mode(self) -> None:
        with pytest.raises(InvalidCheckpoint, match=r"median.*choose among cls"):
            head([pooling("median")])

    def test_widths_that_do_not_fit(self, tmp_path: Path) -> None:
        module = saved(Dense(WIDTH + 1, 4), tmp_path / "dense")
        with pytest.raises(InvalidCheckpoint, match="expects 33 numbers per vector and gets 32"):
            head([pooling("mean"), module])
        module = saved(LayerNorm(WIDTH), tmp_path / "norm")
        with pytest.raises(InvalidCheckpoint, match="expects 32 numbers per vector and gets 64"):
            head([pooling("mean", "cls"), module])

    def test_weights_that_are_missing_or_of_another_shape(self, tmp_path: Path) -> None:
        module = saved(Dense(WIDTH, 4), tmp_path)
        Dense(WIDTH, 4, bias=False).save(str(tmp_path))
        with pytest.raises(InvalidCheckpoint, match=r"needs the weights.*linear\.bias"):
            head([pooling("mean"), module])
        (tmp_path / "model.safetensors").write_bytes(b"short")
        with pytest.raises(InvalidCheckpoint, match="is incomplete"):
            head([pooling("mean"), module])
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(InvalidCheckpoint, match=r"neither model\.safetensors nor"):
            head([pooling("mean"), module])

    def test_a_vector_module_before_the_pooling(self, tmp_path: Path) -> None:
        module = saved(Dense(WIDTH, WIDTH), tmp_path)
        with pytest.raises(InvalidCheckpoint, match="stands before the Pooling"):
            head([module, pooling("mean")])

    def test_a_module_between_two_features(self, tmp_path: Path) -> None:
        official = Dense(WIDTH, WIDTH, module_output_name="token_embeddings")
        with pytest.raises(UnsupportedModel, match="'sentence_embedding' to 'token_embeddings'"):
            head([pooling("mean"), saved(official, tmp_path)])

    def test_an_activation_with_weights_of_another(self, tmp_path: Path) -> None:
        module = saved(Dense(WIDTH, 4, activation_function=torch.nn.PReLU()), tmp_path)
        options = {**module.options, "activation_function": "torch.nn.modules.activation.Tanh"}
        wrong = Module(kind="Dense", path=tmp_path, options=options, class_name="Dense")
        with pytest.raises(InvalidCheckpoint, match="Unexpected key"):
            head([pooling("mean"), wrong])


CODE = """
import torch

class Half(torch.nn.Module):
    def forward(self, features):
        half = features["sentence_embedding"].shape[1] // 2
        return {"sentence_embedding": features["sentence_embedding"][:, :half]}

    @classmethod
    def load(cls, path):
        return cls()
"""


class TestCodeOfTheCheckpoint:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
        cache = tmp_path / "modules"
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
        monkeypatch.syspath_prepend(str(cache))
        (tmp_path / "2_Half").mkdir()
        (tmp_path / "half_of_it.py").write_text(CODE, encoding="utf-8")
        return Module(
            kind="custom", path=tmp_path / "2_Half", options={}, class_name="half_of_it.Half"
        )

    def test_runs_only_when_trusted(self, module: Module) -> None:
        with pytest.raises(UnsupportedModel, match=r"half_of_it\.Half.*trust_remote_code=True"):
            head([pooling("mean"), module])
        found = head([pooling("mean"), module], trusted=True)
        whole = head([pooling("mean")])(*packed(texts()))
        assert found.dimension == WIDTH // 2
        assert torch.equal(found(*packed(texts())), whole[:, : WIDTH // 2])

    def test_stands_after_the_pooling(self, module: Module) -> None:
        with pytest.raises(UnsupportedModel, match="only on finished vectors"):
            head([module, pooling("mean")], trusted=True)

    def test_that_fails_is_named(self, module: Module) -> None:
        (module.path.parent / "half_of_it.py").write_text("raise OSError", encoding="utf-8")
        with pytest.raises(InvalidCheckpoint, match=r"half_of_it\.Half .*does not load or run"):
            head([pooling("mean"), module], trusted=True)


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    modules = [pooling("mean"), saved(Dense(WIDTH, 4, use_residual=True), tmp_path)]
    before = torch.get_rng_state()
    loaded = head(modules)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(loaded) == "Pooler(dimension=4, pooling=mean, token_steps=0, vector_steps=1)"
    assert math.prod(loaded(*packed(texts())).shape) == 4 * len(LENGTHS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(1,), (9,), LENGTHS])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_mean_in_one_call_has_the_bits_of_its_operators(
    dtype: torch.dtype, lengths: tuple[int, ...], normalized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean is most models' pooling, and is compiled; the other modes share `pooling`'s code."""
    assert scripted.is_compiled(mean)
    taken = torch.tensor(lengths)
    starts = taken.cumsum(0) - taken + torch.arange(len(lengths))  # a row between any two texts
    rows = torch.randn(int(starts[-1] + taken[-1]) + 2, WIDTH).to(dtype)
    expected = pool(TokenRows.of(rows.float(), starts, taken, None), ("mean",))
    if normalized:
        expected = torch.nn.functional.normalize(expected)
    assert torch.equal(scripted.run(mean.mean_of_texts, rows, starts, taken, normalized), expected)
    monkeypatch.setattr(scripted, "_compiled", lambda _: None)
    assert torch.equal(scripted.run(mean.mean_of_texts, rows, starts, taken, normalized), expected)
