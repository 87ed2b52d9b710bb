"""`EngineConfig`: validated once, frozen, and equal where it means the same."""

from __future__ import annotations

import dataclasses
import json
import pickle
import typing
from pathlib import Path
from typing import Any

import pytest

from millpond import EngineConfig, InvalidOption
from millpond.config import RENAMED, EngineOptions


def test_the_defaults_are_those_of_the_documentation() -> None:
    config = EngineConfig(model="a/b")
    assert (config.device, config.dtype, config.max_batch_tokens) == ("auto", "auto", "auto")
    assert config.trust_remote_code is False
    assert config.batch_invariant is False


def test_the_keyword_arguments_are_the_fields_but_the_model_in_name_and_type() -> None:
    fields = typing.get_type_hints(EngineConfig)
    assert typing.get_type_hints(EngineOptions) == {
        name: kind for name, kind in fields.items() if name != "model"
    }


def test_a_device_is_one_name_or_several() -> None:
    assert EngineConfig(model="a").device_names == ("auto",)
    assert EngineConfig(model="a", device=["cuda:0", "cpu"]).device_names == ("cuda:0", "cpu")


def test_help_describes_every_option() -> None:
    shown = EngineConfig.__doc__ or ""
    for option in dataclasses.fields(EngineConfig):
        assert f"    {option.name}: {option.type}" in shown
        if option.name != "model":
            assert option.metadata["help"].endswith(".")
            assert option.metadata["help"].split()[-1] in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"wramup": True},
            r"unknown option wramup \(did you mean warmup\?\); an engine takes batch_inv",
        ),
        ({"devcie": "cpu"}, r"devcie \(did you mean device\?\);"),
        ({"batch_size": 32}, r"batch_size \(batches are sized in tokens; max_batch_tokens bounds"),
        ({"torch_dtype": "half"}, r"torch_dtype \(it is called dtype\);"),
        ({"b": 1, "a": 2}, "unknown option a, b;"),
        ({"deterministic": True}, r"option deterministic \(it is called batch_invariant\);"),
        ({"devices": ["cpu"]}, r"option devices \(device takes one or several\);"),
        ({"normalize": True}, r"option normalize \(it is an option of a call\);"),
        ({"compile": True}, r"option compile \(it is gone\);"),
    ],
)
def test_an_unknown_option_is_refused_by_name(options: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        EngineConfig.of("a/b", options)
    assert not RENAMED.keys() & EngineOptions.__annotations__.keys()


OPTIONS = [
    {},
    {"device": "cpu", "max_length": 7},
    {"device": ["cuda:0", "cuda:1"], "pooling": "mean", "prompts": {"b": "2", "a": "1"}},
    {"cache_dir": Path("x"), "warmup": True, "dtype": "float32"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_its_options_make_an_equal_one_also_as_json(options: Any) -> None:
    config = EngineConfig.of("a/b", options)
    assert config.options().keys() == options.keys()
    again = json.loads(json.dumps(config.options()))
    assert again == config.options()
    assert EngineConfig.of("a/b", again) == config == pickle.loads(pickle.dumps(config))


def test_it_is_frozen_and_keyword_only() -> None:
    config = EngineConfig(model="a/b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model = "c"  # type: ignore[misc]
    with pytest.raises(TypeError):
        EngineConfig("a/b")  # type: ignore[misc]
    with pytest.raises(TypeError, match="batch_size"):
        EngineConfig(model="a/b", batch_size=3)  # type: ignore[call-arg]


class BytesPath:
    """A path, as `os.fspath` has it, and no string."""

    def __fspath__(self) -> bytes:
        return b"folder"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"pooling": "mean"}, {"pooling": ("mean",)}),
        ({"pooling": ["cls", "mean"]}, {"pooling": ("cls", "mean")}),
        ({"prompts": {"a": "1", "b": "2"}}, {"prompts": {"b": "2", "a": "1"}}),
        ({"prompts": {"a": "1"}}, {"prompts": (("a", "1"),)}),
        ({"cache_dir": Path("x")}, {"cache_dir": "x"}),
        ({"device": None}, {"device": "auto"}),
        ({"device": ["cpu"]}, {"device": "cpu"}),
        ({"device": ["cuda:0", "cuda:1"]}, {"device": ("cuda:0", "cuda:1")}),
        ({"model": Path("x")}, {"model": "x"}),
    ],
)
def test_what_means_the_same_is_equal_and_hashes_alike(one: Any, other: Any) -> None:
    first, second = (EngineConfig(**({"model": "a/b"} | options)) for options in (one, other))
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize("field", ["device", "revision", "max_length", "dtype"])
def test_what_means_something_else_is_not_equal(field: str) -> None:
    values = {
        "device": "cpu",
        "revision": "main",
        "max_length": 5,
        "dtype": "float32",
    }
    assert EngineConfig(model="a", **{field: values[field]}) != EngineConfig(model="a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": ""}, "model is empty"),
        ({"model": 7}, "model=7"),
        ({"dtype": "float64"}, "bfloat16"),
        ({"device": ""}, "choose auto"),
        ({"device": 0}, "cuda:N"),
        ({"device": []}, "or a list of them"),
        ({"device": ["cpu", ""]}, "or a list of them"),
        ({"device": {"cpu", "cuda"}}, "or a list of them"),
        ({"pooling": "median"}, "lasttoken"),
        ({"pooling": ()}, "pooling is empty"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": True}, "max_length=True"),
        ({"max_length": 8.0}, "max_length=8.0"),
        ({"max_batch_tokens": 0}, "max_batch_tokens=0"),
        ({"max_batch_tokens": "many"}, "max_batch_tokens='many'"),
        ({"max_queue_tokens": None}, "max_queue_tokens=None"),
        ({"max_queue_tokens": "auto"}, "max_queue_tokens='auto'"),
        ({"max_query_wait_ms": 0}, "above 0"),
        ({"max_query_wait_ms": float("inf")}, "above 0"),
        ({"max_query_wait_ms": float("nan")}, "above 0"),
        ({"max_query_wait_ms": "30"}, "milliseconds"),
        ({"max_query_wait_ms": True}, "milliseconds"),
        ({"tokenizer_process": True}, "choose 'auto' or 'on' or 'off'"),
        ({"prefix_cache": "on"}, "choose 'auto' or 'off'"),
        ({"revision": 7}, "revision=7"),
        ({"revision": ""}, "revision=''"),
        ({"pooling": 7}, "pooling=7"),
        ({"memory_utilization": True}, "memory_utilization=True"),
        ({"model": BytesPath()}, "a string or a path"),
        ({"trust_remote_code": "false"}, "trust_remote_code='false': it must be True or False"),
        ({"batch_invariant": 1}, "True or False"),
        ({"prompts": "query: "}, "prompts"),
        ({"prompts": {"query": 7}}, r"prompts\['query'\]=7"),
        ({"prompts": {7: "x"}}, r"prompts\[7\]"),
        ({"prompts": 7}, "map names to texts"),
        ({"cache_dir": 7}, "cache_dir=7"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(options: Any, says: str) -> None:
    with pytest.raises(InvalidOption, match=says):
        EngineConfig(**({"model": "a/b"} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_utilization": 0}, "above 0 and at most 1"),
        ({"memory_utilization": 1.1}, "above 0 and at most 1"),
        ({"memory_utilization": True}, "above 0 and at most 1"),
        ({"memory_bytes": 0}, "a whole number of bytes"),
        ({"memory_bytes": 1.5}, "a whole number of bytes"),
        ({"memory_bytes": 10, "memory_utilization": 0.5}, "give one of them"),
        ({"warmup": 1}, "must be True or False"),
    ],
)
def test_memory_and_switches_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        EngineConfig(model="model", **options)
