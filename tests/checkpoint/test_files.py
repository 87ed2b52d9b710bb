"""Files that are not what their names say: every one is named, with what it is instead."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import save_checkpoint
from families import WIDTH
from safetensors.torch import load_file
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


@pytest.mark.parametrize("kept", [0.999, 0.5, 100, 3])
@pytest.mark.parametrize("place", ["", "2_Dense"])
def test_pickled_weights_that_are_cut_short_are_incomplete(
    folder: Path, place: str, kept: float
) -> None:
    weights = folder / place / "model.safetensors"
    pickled = weights.with_name("pytorch_model.bin")
    torch.save(load_file(weights), pickled)
    weights.unlink()
    with Engine(folder, device="cpu", dtype="float32") as engine:
        assert engine.embed("a text").shape == (8,)
    content = pickled.read_bytes()
    pickled.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(InvalidCheckpoint, match=r"pytorch_model.bin is incomplete, .* after \d+"):
        Engine(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("file", FILES)
def test_a_link_to_a_file_that_is_gone_is_named(folder: Path, file: str) -> None:
    """As in a cache whose blobs were deleted, or that was copied without them."""
    (folder / file).unlink()
    (folder / file).symlink_to("../../blobs/0123")
    with pytest.raises(InvalidCheckpoint, match=rf"{file} is a link to .*blobs/0123, which is not"):
        Engine(folder, device="cpu", dtype="float32")


def test_a_pointer_to_weights_in_a_format_that_is_not_read_is_no_matter(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_text(POINTER)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        assert engine.embed("a text").shape == (8,)
