"""What the rows of an output depend on, so that a resumed run can tell whether it is the same run.

The input by its content, the model by what is in its files and how it runs, and the versions that
compute.
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

SAMPLE_BYTES = 1 << 20  # of each end of a weight file: training changes every part of it


def run_fingerprint(about: EngineInfo, flags: Fingerprint) -> Fingerprint:
    """Everything the rows depend on; `flags` are the input and what was asked for."""
    return {
        **flags,
        "model": about.model.name,
        "model_files": _model_digest(about),
        "device": about.device,
        "dtype": about.dtype,
        "max_length": about.max_length,
        "millpond": version("millpond"),
        "torch": version("torch"),
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a file of any length."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model_digest(about: EngineInfo) -> str:
    """Of the names, sizes and both ends of the files in the folders the model is read from."""
    modules = (module.path for route in about.model.routes for module in route.modules)
    digest = hashlib.sha256()
    for path in _files({about.model.path, *modules}):
        name = os.path.relpath(path, about.model.path)
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, path.stat().st_size - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _files(folders: Iterable[Path]) -> list[Path]:
    existing = (folder for folder in folders if folder.is_dir())  # a Normalize needs none
    return sorted({path for folder in existing for path in folder.iterdir() if path.is_file()})
