"""Loading a transformer: which class, which weights, which facts, and how quietly."""

from __future__ import annotations

import json
import logging
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import reference, save_checkpoint, save_transformer
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers.utils import logging as transformers_logging

from millpond import Engine
from millpond.checkpoint.modules import Module
from millpond.errors import InvalidCheckpoint, InvalidOption, UnsupportedModel
from millpond.model import build
from millpond.model.device import choose_device, choose_dtype
from millpond.model.loading.loaded import LoadedTransformer
from millpond.model.loading.transformer import checkpoint_dtype, load_transformer

CPU = torch.device("cpu")
TINY = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 20,
}


def save(folder: Path, name: str, **config: Any) -> Path:
    """A random model of `transformers.<name>Model`, saved in `folder`."""
    config_class = getattr(transformers, f"{name}Config")
    getattr(transformers, f"{name}Model")(config_class(**config)).save_pretrained(folder)
    return folder


def module_in(folder: Path, **options: Any) -> Module:
    return Module(kind="Transformer", path=folder, options=options, class_name="Transformer")


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> LoadedTransformer:
    module = module_in(folder, **options)
    return load_transformer(module, device=CPU, dtype=dtype, trust_remote_code=False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bert"), "Bert", **TINY)


def test_the_weights_are_those_on_disk(bert: Path) -> None:
    loaded = load(bert)
    saved = load_file(bert / "model.safetensors")
    state = loaded.model.state_dict()
    assert state
    assert all(torch.equal(tensor, saved[name]) for name, tensor in state.items())
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_in_the_dtype_asked_for(bert: Path, dtype: torch.dtype) -> None:
    loaded = load(bert, dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    assert torch.get_default_dtype() == torch.float32


def test_arguments_of_the_checkpoint_are_passed_on(bert: Path) -> None:
    loaded = load(
        bert, model_kwargs={"add_pooling_layer": False}, config_kwargs={"layer_norm_eps": 0.5}
    )
    assert loaded.model.pooler is None
    assert loaded.config.layer_norm_eps == 0.5


@pytest.mark.parametrize(
    ("name", "config", "max_positions", "needs_token_type_ids"),
    [
        ("Bert", TINY, 20, True),
        ("Roberta", TINY, 18, True),
        ("Nystromformer", TINY, 20, True),
        ("Qwen3", {**TINY, "num_key_value_heads": 1, "head_dim": 4}, None, False),
        ("GPT2", {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 20}, 20, False),
        (
            "OPT",
            {**TINY, "ffn_dim": 8, "word_embed_proj_dim": 8},
            20,
            False,
        ),
    ],
)
def test_facts_of_a_model(
    tmp_path: Path,
    name: str,
    config: dict[str, Any],
    max_positions: int | None,
    needs_token_type_ids: bool,
) -> None:
    loaded = load(save(tmp_path, name, **{**config, "vocab_size": 30}))
    assert (loaded.hidden_size, loaded.vocab_size) == (8, 30)
    assert loaded.max_positions == max_positions
    assert loaded.needs_token_type_ids is needs_token_type_ids
    assert not getattr(loaded.config, "use_cache", False)


def test_a_position_table_is_used_to_its_last_row_and_no_further(tmp_path: Path) -> None:
    loaded = load(save(tmp_path, "Roberta", **TINY))
    assert loaded.max_positions is not None
    fits = torch.full((1, loaded.max_positions), 5)
    assert loaded.model(input_ids=fits).last_hidden_state.shape == (1, 18, 8)
    with pytest.raises((IndexError, RuntimeError)):
        loaded.model(input_ids=torch.full((1, loaded.max_positions + 1), 5))


def test_of_t5_only_the_encoder_is_loaded(tmp_path: Path) -> None:
    config = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    loaded = load(save(tmp_path, "T5", vocab_size=30, **config))
    assert type(loaded.model).__name__ == "T5EncoderModel"
    assert (loaded.hidden_size, loaded.max_positions) == (8, None)


def test_of_a_translation_model_only_the_encoder_is_kept(tmp_path: Path) -> None:
    config = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
    config |= {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 30}
    config |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config |= {"pad_token_id": 1, "decoder_start_token_id": 1, "max_position_embeddings": 20}
    loaded = load(save(tmp_path / "whole", "Marian", **config))
    assert type(loaded.model).__name__ == "MarianEncoder"
    ids = torch.tensor([[5, 6]])
    hidden = loaded.model(input_ids=ids).last_hidden_state
    loaded.model.save_pretrained(tmp_path / "encoder")
    again = load(tmp_path / "encoder")
    assert torch.equal(again.model(input_ids=ids).last_hidden_state, hidden)


def drop_weights(folder: Path, part: str) -> None:
    path = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if part not in name}
    save_file(kept, path, metadata={"format": "pt"})


def test_missing_weights_of_a_layer_are_an_error(tmp_path: Path) -> None:
    save(tmp_path, "Bert", **TINY)
    drop_weights(tmp_path, "layer.0.attention")
    with pytest.raises(InvalidCheckpoint, match=r"weights of BertModel are missing.*attention"):
        load(tmp_path)


def test_a_missing_pooler_is_none(tmp_path: Path) -> None:
    save(tmp_path, "Bert", **TINY)
    drop_weights(tmp_path, "pooler")
    assert load(tmp_path).hidden_size == 8


def test_weights_of_another_shape_are_an_error(tmp_path: Path) -> None:
    save(tmp_path, "Bert", **TINY)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 16}))
    with pytest.raises(InvalidCheckpoint):
        load(tmp_path)


def test_damaged_weights_are_an_error(tmp_path: Path) -> None:
    save(tmp_path, "Bert", **TINY)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidCheckpoint, match=r"is incomplete"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(InvalidCheckpoint, match=r"no model\.safetensors"):
        load(tmp_path)


def test_an_architecture_nobody_knows_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never_heard_of"}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UnsupportedModel, match="does not know this kind"):
        load(tmp_path)


def test_code_of_the_checkpoint_needs_trust(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    config = {"model_type": "own", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UnsupportedModel, match="trust_remote_code=True"):
        load(tmp_path)


def test_fewer_layers_than_the_weights_have_are_a_warning_that_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tmp_path, "Bert", **{**TINY, "num_hidden_layers": 3})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    load(folder)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "32 weights were left out, such as encoder.layer.1." in record.getMessage()


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_a_head_for_another_task_is_left_out_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    getattr(transformers, head)(transformers.BertConfig(**TINY)).save_pretrained(tmp_path)
    load(tmp_path)
    assert not caplog.records


def test_weights_that_only_the_checkpoints_own_code_has_a_place_for_need_trust(
    tmp_path: Path,
) -> None:
    folder = save(tmp_path, "Bert", **TINY)
    drop_weights(folder, "query")
    with pytest.raises(InvalidCheckpoint, match="belongs to another model"):
        load(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="pass trust_remote_code=True"):
        load(folder)


def test_code_in_another_repository_that_is_not_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    auto_map = {"AutoConfig": "acme/code--own.OwnConfig", "AutoModel": "acme/code--own.OwnModel"}
    config = {"model_type": "own", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UnsupportedModel, match="of the repository acme/code, which is not on"):
        load_transformer(
            module_in(tmp_path), device=CPU, dtype=torch.float32, trust_remote_code=True
        )


def test_loading_prints_nothing_and_leaves_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, "Bert", **TINY)
    drop_weights(tmp_path, "pooler")  # which transformers reports in a table
    capfd.readouterr()
    logger = logging.getLogger("transformers.modeling_utils")
    library = logging.getLogger("transformers")
    before = (list(logger.filters), [list(handler.filters) for handler in library.handlers])
    hook = transformers_logging.set_tqdm_hook(None)
    transformers_logging.set_tqdm_hook(hook)
    load(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert before == (list(logger.filters), [list(h.filters) for h in library.handlers])
    assert transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.set_tqdm_hook(hook) is hook


def test_a_failed_load_leaves_no_trace_either(tmp_path: Path) -> None:
    logger = logging.getLogger("transformers.modeling_utils")
    save(tmp_path, "Bert", **TINY)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    before = list(logger.filters)
    with pytest.raises(InvalidCheckpoint):
        load(tmp_path)
    assert logger.filters == before


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidOption, match="cpu"):
        choose_device("cuda:99")
    with pytest.raises(InvalidOption, match="choose auto or one of cpu"):
        choose_device("tpu")


@pytest.mark.parametrize(
    ("name", "build", "reason"),
    [
        ("cuda", {"cuda": None, "hip": None}, f"torch {torch.__version__} is built without CUDA"),
        ("cuda:0", {"cuda": "13.0"}, f"torch {torch.__version__} finds no GPU"),
        ("xpu", {}, "runs on CPUs, CUDA and MPS"),
    ],
)
def test_a_device_that_is_not_there_is_told_with_the_reason(
    name: str, build: dict[str, str | None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for attribute, value in build.items():
        monkeypatch.setattr(torch.version, attribute, value)
    with pytest.raises(InvalidOption, match=re.escape(reason)):
        choose_device(name)


@pytest.mark.parametrize(("built", "reason"), [(False, "without MPS"), (True, "finds none")])
def test_a_missing_mps_is_told_with_the_reason(
    built: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
    with pytest.raises(InvalidOption, match=reason):
        choose_device("mps")


def test_auto_takes_the_best_device_there_is() -> None:
    assert choose_device("cpu") == CPU
    if torch.cuda.is_available():
        assert choose_device("auto") == choose_device("cuda")
        assert choose_device("auto").type == "cuda"
    elif not torch.backends.mps.is_available():
        assert choose_device("auto") == CPU


@pytest.mark.parametrize("own", [None, torch.float32, torch.bfloat16])
def test_a_dtype_asked_for_is_the_one_used(own: torch.dtype | None) -> None:
    for name in ("float32", "bfloat16"):
        assert choose_dtype(name, device=CPU, checkpoint_dtype=own) == getattr(torch, name)


def test_auto_on_a_cpu_never_is_float16() -> None:
    for own in (None, torch.float32, torch.float16):
        chosen = choose_dtype("auto", device=CPU, checkpoint_dtype=own)
        assert chosen in (torch.float32, torch.bfloat16)


def test_float16_on_a_cpu_is_honoured_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="millpond"):
        chosen = choose_dtype("float16", device=CPU, checkpoint_dtype=None)
    assert chosen == torch.float16
    assert "slower" in caplog.text


def test_a_dtype_of_another_name_is_refused() -> None:
    with pytest.raises(InvalidOption, match="float64"):
        choose_dtype("float64", device=CPU, checkpoint_dtype=None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (torch.float32, torch.float16),
        (None, torch.float16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_auto_on_cuda_keeps_the_half_type(own: torch.dtype | None, expected: torch.dtype) -> None:
    device = choose_device("cuda")
    assert choose_dtype("auto", device=device, checkpoint_dtype=own) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"text_config": {"torch_dtype": "torch.float16"}}, torch.float16),
        ({"dtype": "auto"}, None),
        ({}, None),
    ],
)
def test_the_dtype_of_a_checkpoint_is_in_its_config(
    tmp_path: Path, config: dict[str, Any], expected: torch.dtype | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint_dtype(module_in(tmp_path)) == expected


def test_or_else_in_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensors = {
        "small": torch.zeros(2),
        "large": torch.zeros(9, dtype=torch.bfloat16),
        "ids": torch.zeros(99, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert checkpoint_dtype(module_in(tmp_path)) == torch.bfloat16
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(InvalidCheckpoint, match="not a whole safetensors file"):
        checkpoint_dtype(module_in(tmp_path))


@contextmanager
def doubled() -> Iterator[None]:
    class Doubled(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            return result * 2 if function in (torch.add, functional.linear) else result

    with Doubled():
        yield


@contextmanager
def double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "function mode": doubled,
    "double precision": double_precision,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_what_the_loading_thread_has_set_changes_nothing(
    checkpoint: Callable[[str], Path], name: str, state: str
) -> None:
    texts = ["a text", "the stone grinds the grain of the mill"]
    with Engine(checkpoint(name), device="cpu", dtype="float32") as engine:
        expected, info = engine.embed(texts), engine.info().routes
    with STATES[state]():
        engine = Engine(checkpoint(name), device="cpu", dtype="float32")
    with engine:
        assert engine.info().routes == info
        assert np.array_equal(engine.embed(texts), expected)


def test_an_error_of_a_load_on_another_thread_is_the_callers(bare_bert: Path) -> None:
    with torch.inference_mode(), pytest.raises(InvalidOption, match="cuda:77"):
        Engine(bare_bert, device="cuda:77")


def test_a_model_without_a_table_of_tokens_is_refused_for_that(tmp_path: Path) -> None:
    folder = save(tmp_path, "Canine", hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(UnsupportedModel, match="CanineModel has no table of tokens"):
        load(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_where_the_dtype_is_not_the_reason_none_is_blamed(tmp_path: Path, dtype: str) -> None:
    config = {"d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1]}
    folder = save_transformer(tmp_path, model="FunnelBaseModel", config=config)
    with pytest.raises(UnsupportedModel, match=r"does not run \(.*more than one token") as raised:
        Engine(folder, device="cpu", dtype=dtype)
    assert "another dtype" not in str(raised.value)


MAMBA = {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "intermediate_size": 128}
JAMBA = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "num_experts": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_state": 8,
}


@pytest.mark.parametrize(
    ("name", "config"),
    [("MambaModel", MAMBA), ("FalconMambaModel", MAMBA), ("JambaModel", JAMBA)],
)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_layers_whose_weights_others_read_stay_as_they_are(
    tmp_path: Path, name: str, config: dict[str, Any], dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer in another's place has no weight to read, and such a model would give noise."""
    caplog.set_level("INFO", logger="millpond")
    bare = save_transformer(tmp_path / "bare", model=name, config=config)
    modules = [Transformer(str(bare), max_seq_length=40), Pooling(64, "lasttoken")]
    folder = save_checkpoint(tmp_path / "saved", modules)
    texts = ["mill", "the stone grinds the grain of the mill"]
    expected = reference(folder).encode(texts, batch_size=1)
    with Engine(folder, device="cpu", dtype=dtype) as engine:
        found = engine.embed(texts)
    assert "own layers" not in caplog.text, "only those are left, not all of them"
    if dtype == "float32":
        assert np.abs(found - expected).max() < 1e-5
    else:
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((found * expected).sum(axis=1) > 0.99 * lengths).all()


def test_only_one_of_two_models_is_in_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where faster layers or a precision do not fit a model, it is loaded again."""
    folder = save_transformer(tmp_path)
    loaded: list[weakref.ref[Any]] = []

    def load_alone(*args: Any, **options: Any) -> LoadedTransformer:
        assert all(model() is None for model in loaded), "the last one is still there"
        found = load_transformer(*args, **options)
        loaded.append(weakref.ref(found.model))
        return found

    def fails_once(transformer: Any, *_: Any, **__: Any) -> None:
        if len(loaded) == 2:
            raise RuntimeError("no such operator in this precision")

    monkeypatch.setattr(build, "choose_dtype", lambda *_, **__: torch.bfloat16)
    monkeypatch.setattr(build, "load_transformer", load_alone)
    monkeypatch.setattr(
        build, "disagreement", lambda *_: "hidden states differ" if len(loaded) == 1 else None
    )
    monkeypatch.setattr(build, "drop_unused_pooler", fails_once)
    with Engine(folder, device="cpu", dtype="auto") as engine:
        assert engine.info().dtype == "float32"
    assert len(loaded) == 3


@pytest.mark.skipif(not hasattr(transformers, "NeoMMEModel"), reason="of newer transformers")
def test_windows_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    windows = (6, 12, None, None)
    config = {
        **TINY,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "embedding_rank": 16,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
        "per_layer_config": {layer: {"sliding_window": w} for layer, w in enumerate(windows)},
    }
    del config["vocab_size"]
    folder = save_transformer(tmp_path, model="NeoMMEModel", config=config)
    texts = ["mill", "the stone grinds the grain of the mill while the water of the pond falls"]
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        hidden = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in texts]
    with Engine(folder, device="cpu", dtype="float32") as engine:
        assert engine.info().execution == "packed"
        found = engine.embed(texts)
    for vector, rows in zip(found, hidden, strict=True):
        assert np.abs(vector - rows[0].mean(0).numpy()).max() < 1e-5
