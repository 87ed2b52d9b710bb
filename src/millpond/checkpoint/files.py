"""Files of a checkpoint folder: JSON, weight files, the folders modules.json names.

It knows which files a checkpoint of each layout needs, not what their contents mean.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import InvalidCheckpoint

__all__ = [
    "ASSUMED_WITHOUT",
    "TOKENIZER_FILES",
    "damage_of",
    "find_weights",
    "has_file",
    "has_tokenizer",
    "inside",
    "iter_missing_files",
    "module_kind",
    "own_classes",
    "read_json",
    "read_json_object",
    "require_whole",
    "router_config",
    "safetensors_header",
    "whole_number",
]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)

# Files that a checkpoint may do without, and what is taken for granted then.
ASSUMED_WITHOUT = {
    "modules.json": "plain pooling, and nothing after it",
    "config_sentence_transformers.json": "no prompts",
    "sentence_bert_config.json": "the tokenizer's length limit",
    "tokenizer_config.json": "the tokenizer's defaults",
    "special_tokens_map.json": "the tokenizer's special tokens",
    "chat_template.jinja": "no chat template",
}

# PyLate's, as it saves their type; the files are those of the class of the same name.
_PYLATE_MODULES = frozenset({"pylate.models.Dense.Dense"})

_ROUTER = "router_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

_KINDS_WITH_WEIGHTS = frozenset(
    {
        *("Transformer", "StaticEmbedding", "Dense", "LayerNorm", "WeightedLayerPooling"),
        *("MLMTransformer", "SparseAutoEncoder"),
    }
)

_LFS_POINTER = b"version https://git-lfs"
_ZIP = b"PK\x03\x04"  # what torch.save writes begins like any zip file
_LARGEST_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


def damage_of(path: Path) -> str | None:
    """What a file is in place of what its name says, and what to do; None where it looks whole.

    A file that is not there is none of it, unless a link stands in its place.
    """
    if path.is_symlink() and not path.exists():
        return f"is a link to {os.readlink(path)}, which is not there: download it again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return None
    if start.startswith(_LFS_POINTER):
        return "is a git-lfs pointer and not the file itself: run `git lfs pull`, or download it"
    if not start:
        return "is empty: download it again"
    if start.lstrip()[:9].lower() in (b"<!doctype", b"<html>") or b"<html" in start.lower():
        return "is a web page: the download needs a login or another address"
    if path.suffix == ".safetensors" and size < (whole := _safetensors_size(path, start)):
        return f"is incomplete, {size} of {whole} bytes: download it again"
    if path.suffix == ".bin" and _ZIP.startswith(start[:4]) and not zipfile.is_zipfile(path):
        return f"is incomplete, it ends after {size} bytes: download it again"
    return None


def has_file(path: Path) -> bool:
    """Whether the file is there. Raises `InvalidCheckpoint` for a link to one that is not."""
    if path.is_file():
        return True
    require_whole([path])
    return False


def _safetensors_size(path: Path, start: bytes) -> int:
    """Bytes that a safetensors file has by its own header; 0 where that cannot be read."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > _LARGEST_HEADER_BYTES:
        return 8 if len(start) < 8 else 0
    if path.stat().st_size < 8 + length:
        return 8 + length
    try:
        ends = [entry["data_offsets"][1] for entry in _safetensors_entries(path).values()]
        return 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        return 0


def _safetensors_entries(path: Path) -> dict[str, Any]:
    """Eight bytes of little-endian length, then that many bytes of JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LARGEST_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def require_whole(paths: Iterable[Path]) -> None:
    """Raise `InvalidCheckpoint` for a file that is not what its name says, or is cut short."""
    for path in paths:
        if (damage := damage_of(path)) is not None:
            raise InvalidCheckpoint(f"{path} {damage}")


def read_json(path: Path) -> Any:
    """The parsed file. Raises `InvalidCheckpoint` when it is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        require_whole([path])
        raise InvalidCheckpoint(f"{path} is missing; download the checkpoint again") from error
    except (OSError, ValueError, RecursionError) as error:
        require_whole([path])
        raise InvalidCheckpoint(
            f"{path} cannot be read as JSON ({error}); download the checkpoint again"
        ) from error


def read_json_object(path: Path, *, required: bool = False) -> dict[str, Any]:
    """Like `read_json`, for a file that holds an object; `{}` when it may be absent and is."""
    if not required and not has_file(path):
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise InvalidCheckpoint(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def whole_number(saved: Mapping[str, Any], key: str, path: Path, *, of: str) -> int | None:
    """A number of at least 1 in what the file at `path` says; None where it says none.

    Raises `InvalidCheckpoint` for anything else, which is to be a number `of` something.
    """
    value = saved.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidCheckpoint(f"{path}: {key} is {value!r}, not a number of {of}")
    return value


def inside(root: Path, relative: object, *, named_by: Path) -> Path:
    """`root / relative`, for a path read from the file `named_by`.

    Raises `InvalidCheckpoint` when it is rooted or climbs out of `root`, in POSIX or in
    Windows spelling.
    """
    if isinstance(relative, str) and "\0" not in relative:
        parts = PureWindowsPath(relative)
        if not parts.anchor and ".." not in parts.parts:
            return root / relative
    raise InvalidCheckpoint(
        f"{named_by} names the folder {relative!r}; only folders inside the checkpoint are read"
    )


def find_weights(folder: Path) -> tuple[Path, ...]:
    """The weight files of `folder`, safetensors before PyTorch's own, all shards of them.

    Empty when there are none, or when an index names a shard that is not there. Raises
    `InvalidCheckpoint` where one is a link to a file that is not there.
    """
    for name in _WEIGHTS:
        if has_file(folder / name):
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if has_file(index):
            weight_map = read_json_object(index, required=True).get("weight_map")
            names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
            shards = [inside(folder, shard, named_by=index) for shard in sorted(names, key=str)]
            if shards and all(has_file(shard) for shard in shards):
                return tuple(shards)
    return ()


def has_tokenizer(folder: Path) -> bool:
    """Whether any file that transformers can make a tokenizer from is in `folder`.

    Raises `InvalidCheckpoint` where one is a link to a file that is not there.
    """
    found = [has_file(folder / name) for name in TOKENIZER_FILES]
    return any(found)


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor name to `dtype`, `shape` and `data_offsets`.

    Raises `InvalidCheckpoint` when the file is cut short or is something else.
    """
    try:
        return _safetensors_entries(path)
    except (OSError, ValueError, struct.error) as error:
        require_whole([path])
        raise InvalidCheckpoint(
            f"{path} is not a whole safetensors file ({error}); download the checkpoint again"
        ) from error


def module_kind(class_name: str) -> str | None:
    """The last part of a module type of sentence-transformers or PyLate; None for any other."""
    is_known = class_name.startswith("sentence_transformers.") or class_name in _PYLATE_MODULES
    return class_name.rpartition(".")[2] if is_known else None


def iter_missing_files(root: Path, *, trust_remote_code: bool = False) -> Iterator[str]:
    """What a checkpoint in `root` still needs before it can be loaded, relative to `root`.

    Nothing when it is complete. Used to tell a whole download from an interrupted one.
    """
    if has_file(root / "modules.json"):
        entries = read_json(root / "modules.json")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict):
                yield from _missing_of_module(root, entry.get("path"), str(entry.get("type")))
    else:
        yield from _missing_of_module(root, "", "sentence_transformers.Transformer")
    if trust_remote_code:
        yield from _missing_code(root)


def _missing_of_module(root: Path, relative: object, class_name: str) -> Iterator[str]:
    folder = inside(root, relative, named_by=root / "modules.json")
    kind = module_kind(class_name)
    if kind in ("Router", "Asym"):
        yield from _missing_of_router(root, folder)
        return
    is_transformer = kind in ("Transformer", "MLMTransformer")
    if (is_transformer or kind in ("Pooling", "Dense")) and not has_file(folder / "config.json"):
        yield _shown(root, folder / "config.json")
    if kind in _KINDS_WITH_WEIGHTS and not find_weights(folder):
        yield _shown(root, folder / "model.safetensors")
    if (is_transformer or kind == "SparseStaticEmbedding") and not has_tokenizer(folder):
        yield _shown(root, folder / "tokenizer.json")
    if kind == "StaticEmbedding" and not has_file(folder / "tokenizer.json"):
        yield _shown(root, folder / "tokenizer.json")


def _missing_of_router(root: Path, folder: Path) -> Iterator[str]:
    config = router_config(folder)
    if not has_file(config):
        yield _shown(root, config)
        return
    types = read_json_object(config).get("types")
    prefix = _shown(root, folder)
    for module_id, class_name in (types if isinstance(types, dict) else {}).items():
        yield from _missing_of_module(root, f"{prefix}/{module_id}", str(class_name))


def router_config(folder: Path) -> Path:
    """The file that describes a Router, there or not."""
    old = folder / "config.json"
    return old if has_file(old) and not has_file(folder / _ROUTER) else folder / _ROUTER


def _missing_code(root: Path) -> Iterator[str]:
    """The Python files that config.json's auto_map names and that live in this checkpoint."""
    for reference in own_classes(root / "config.json"):
        name = f"{reference.split('.')[0]}.py"
        if "--" not in reference and not (root / name).is_file():
            yield name


def own_classes(*files: Path) -> list[str]:
    """The classes of its own that a checkpoint names, as the `auto_map`s of these files spell them:
    `module.Class`, or `organisation/repository--module.Class`."""
    found: set[str] = set()
    for path in files:
        auto_map = read_json_object(path).get("auto_map")
        found.update(_strings(auto_map.values() if isinstance(auto_map, dict) else ()))
    return sorted(found)


def _strings(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Sequence):
            yield from _strings(value)


def _shown(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
