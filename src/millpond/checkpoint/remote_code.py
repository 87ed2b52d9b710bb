"""Python code that a checkpoint runs and that lives in another repository of the hub.

transformers finds it in the Hugging Face cache, by the names in the checkpoint's `auto_map`s. It
knows where code is, and never runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelNotFound, summary
from .files import own_classes

if TYPE_CHECKING:
    from .hub import Hub

__all__ = ["classes_of", "code_repositories", "fetch_code"]

_NAMING_FILES = ("config.json", "tokenizer_config.json")


def classes_of(folder: Path) -> list[str]:
    """The classes of its own that a Transformer's files name."""
    return own_classes(*(folder / name for name in _NAMING_FILES))


def code_repositories(folder: Path) -> dict[str, set[str]]:
    """The files of each other repository that a Transformer's classes are in."""
    found: dict[str, set[str]] = {}
    for reference in classes_of(folder):
        repository, elsewhere, name = reference.partition("--")
        if elsewhere:
            found.setdefault(repository, set()).add(f"{name.split('.')[0]}.py")
    return found


def fetch_code(root: Path, hub: Hub, *, cache_dir: str | None) -> None:
    """Download the code of other repositories that a checkpoint needs and the cache has not.

    Offline nothing is done. Raises `ModelNotFound` where the hub does not give it.
    """
    for folder in (root, *(path for path in sorted(root.iterdir()) if path.is_dir())):
        for name, files in code_repositories(folder).items():
            is_known = not hub.unknown_files(name, files, revision=None, cache_dir=cache_dir)
            if is_known or hub.offline():
                continue
            try:
                repository = hub.find(name, revision=None)
                code = [file for file in repository.files if file.endswith(".py")]
                hub.fetch(repository, code, cache_dir=cache_dir)
            except Exception as error:  # whatever its HTTP library raises
                raise ModelNotFound(
                    f"{folder} runs Python code of the repository {name}, which the hub did not "
                    f"give ({summary(error)}); check the network and the name"
                ) from error
