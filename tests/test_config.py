"""`EngineConfig`: validated once, frozen, and equal where it means the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from millpond import EngineConfig, InvalidOption
from millpond.config import EngineOptions


def test_the_defaults_are_those_of_the_documentation() -> None:
    config = EngineConfig(model="a/b")
    assert (config.device, config.dtype, config.max_batch_tokens) == ("auto", "auto", "auto")
    assert config.trust_remote_code is False
    assert config.batch_invariant is False


def test_the_options_of_an_engine_are_the_fields_but_the_model() -> None:
    fields = {field.name for field in dataclasses.fields(EngineConfig)} - {"model"}
    assert set(EngineOptions.__annotations__) == fields


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
        ({"model": Path("x")}, {"model": "x"}),
    ],
)
def test_what_means_the_same_is_equal_and_hashes_alike(one: Any, other: Any) -> None:
    first, second = (EngineConfig(**({"model": "a/b"} | options)) for options in (one, other))
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize("field", ["device", "revision", "max_length", "normalize", "dtype"])
def test_what_means_something_else_is_not_equal(field: str) -> None:
    values = {
        "device": "cpu",
        "revision": "main",
        "max_length": 5,
        "normalize": False,
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
        ({"normalize": "false"}, "normalize='false': it must be True or False"),
        ({"normalize": 1}, "normalize=1"),
        ({"revision": 7}, "revision=7"),
        ({"revision": ""}, "revision=''"),
        ({"pooling": 7}, "pooling=7"),
        ({"memory_utilization": True}, "memory_utilization=True"),
        ({"model": BytesPath()}, "a string or a path"),
        ({"trust_remote_code": "yes"}, "True or False"),
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
