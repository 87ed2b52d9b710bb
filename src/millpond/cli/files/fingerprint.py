"""`run_fingerprint`: everything the rows of an output depend on, compared when a run is resumed.

The input's content, the model's files, how it runs, and the versions of the libraries.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .partial_output import Fingerprint

if TYPE_CHECKING:
    from ...engine.info import EngineInfo

__all__ = ["file_digest", "run_fingerprint"]

SAMPLE_BYTES = 1 << 20  # of each end of a weight file; training changes all of it


def run_fingerprint(engine_info: EngineInfo, flags: Fingerprint) -> Fingerprint:
    """`flags` are the input and the options."""
    return {
        **flags,
        "model": engine_info.model.name,
        "model_files": _model_digest(engine_info),
        "device": engine_info.device,
        "dtype": engine_info.dtype,
        "max_length": engine_info.max_length,
        "millpond": version("millpond"),
        "torch": version("torch"),
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a file of any length."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model_digest(engine_info: EngineInfo) -> str:
    """SHA-256 of the names, sizes and both ends of the model's files."""
    modules = (module.path for route in engine_info.model.routes for module in route.modules)
    digest = hashlib.sha256()
    for path in _files({engine_info.model.path, *modules}):
        name = os.path.relpath(path, engine_info.model.path)
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, path.stat().st_size - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _files(folders: Iterable[Path]) -> list[Path]:
    existing = (folder for folder in folders if folder.is_dir())  # Normalize has none
    return sorted({path for folder in existing for path in folder.iterdir() if path.is_file()})
