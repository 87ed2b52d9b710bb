"""Files that are not what their names say: every one is named, with what it is instead."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoints import save_checkpoint
from families import WIDTH
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

from millpond import Engine, InvalidCheckpoint

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 90868376\n"
INSTEAD = {
    "is a git-lfs pointer": POINTER.encode(),
    "is empty": b"",
    "is a web page": b"<!DOCTYPE html>\n<html><title>Sign in</title></html>",
}
FILES = (
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, bare_bert: Path) -> Path:
    modules = [Transformer(str(bare_bert)), Pooling(WIDTH, "mean"), Dense(WIDTH, 8)]
    return save_checkpoint(tmp_path_factory.mktemp("whole"), modules)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_something_else_is_named(folder: Path, file: str, instead: str) -> None:
    (folder / file).write_bytes(INSTEAD[instead])
    with pytest.raises(InvalidCheckpoint, match=rf"{file} {instead}"):
        Engine(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("file", ["model.safetensors", "2_Dense/model.safetensors"])
@pytest.mark.parametrize("kept", [0.999, 0.5, 100, 7])
def test_weights_that_are_cut_short_are_incomplete(folder: Path, file: str, kept: float) -> None:
    weights = (folder / file).read_bytes()
    (folder / file).write_bytes(weights[: int(kept if kept > 1 else kept * len(weights))])
    with pytest.raises(InvalidCheckpoint, match=rf"{file} is incomplete, .* download it again"):
        Engine(folder, device="cpu", dtype="float32")


def test_a_pointer_to_weights_in_a_format_that_is_not_read_is_no_matter(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_text(POINTER)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        assert engine.embed("a text").shape == (8,)
