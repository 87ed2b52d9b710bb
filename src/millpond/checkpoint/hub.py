"""The Hugging Face hub and its cache, as `resolve` needs them.

It knows how to ask and to fetch, never whether the answer makes a model.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from tqdm import tqdm

__all__ = ["DisabledProgressBar", "Hub", "Repository"]

_ANSWER_TIMEOUT_S = 5.0  # without a network the answer is wanted now, not after five retries


class DisabledProgressBar(tqdm):  # type: ignore[misc]
    """A progress bar that shows nothing and starts no thread."""

    monitor_interval = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)  # huggingface_hub's own extension of tqdm
        super().__init__(*args, **{**kwargs, "disable": True})


@dataclass(frozen=True, kw_only=True)
class Repository:
    """What the hub has under one name and revision."""

    name: str
    revision: str | None
    """As asked for; `commit` is what it stands for."""
    commit: str | None
    files: tuple[str, ...]
    """Every file of it, relative to its root."""


class Hub:
    """Where models come from that are on no local disk. Its methods may raise anything.

    It goes through `huggingface_hub`, with the cache, endpoint and token that are set for it.
    """

    def offline(self) -> bool:
        """Whether the user has forbidden network access."""
        return bool(huggingface_hub.is_offline_mode())

    def cached_folder(
        self, name: str, *, revision: str | None, cache_dir: str | None
    ) -> Path | None:
        """The folder of a snapshot that is on disk already, whole or not; None without one."""
        for file in ("modules.json", "config.json"):
            found = huggingface_hub.try_to_load_from_cache(
                name, file, cache_dir=cache_dir, revision=revision
            )
            if isinstance(found, str):
                return Path(found).parent
        return None

    def unknown_files(
        self, name: str, files: Iterable[str], *, revision: str | None, cache_dir: str | None
    ) -> tuple[str, ...]:
        """Those of these files that are neither cached nor known to be absent."""
        load = partial(
            huggingface_hub.try_to_load_from_cache, name, cache_dir=cache_dir, revision=revision
        )
        # A path where it is cached, and something else that is not None where it was not found.
        return tuple(file for file in files if load(file) is None)

    def note_absent(
        self, repository: Repository, files: Iterable[str], *, cache_dir: str | None
    ) -> None:
        """Remember that the repository has none of these files, so that no call asks again."""
        if repository.commit is None:
            return
        # As huggingface_hub lays out its cache: an empty file under `.no_exist` and the commit.
        root = Path(cache_dir or constants.HF_HUB_CACHE)
        folder = f"models--{repository.name.replace('/', '--')}"
        for file in files:
            note = root / folder / ".no_exist" / repository.commit / file
            with contextlib.suppress(OSError):  # a cache that cannot be written to
                note.parent.mkdir(parents=True, exist_ok=True)
                note.touch()

    def find(self, name: str, *, revision: str | None) -> Repository:
        """Ask the hub for a model, quickly or not at all."""
        answer = huggingface_hub.HfApi().model_info(
            name, revision=revision, timeout=_ANSWER_TIMEOUT_S
        )
        files = tuple(sibling.rfilename for sibling in answer.siblings or ())
        return Repository(name=name, revision=revision, commit=answer.sha, files=files)

    def fetch(self, repository: Repository, files: Sequence[str], *, cache_dir: str | None) -> Path:
        """Download these files and return the folder that mirrors the repository's root."""
        # By the revision asked for, not the commit: only then does the cache note which
        # commit it stands for, and finds it again without a network.
        folder = huggingface_hub.snapshot_download(
            repository.name,
            revision=repository.revision,
            cache_dir=cache_dir,
            etag_timeout=_ANSWER_TIMEOUT_S,
            allow_patterns=[glob.escape(file) for file in files],
            tqdm_class=DisabledProgressBar,
        )
        return Path(folder)
