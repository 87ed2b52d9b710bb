"""What the components have in common: a model, by which they are saved, and texts of documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

from haystack import Document, default_from_dict, default_to_dict

from millpond import Engine, EngineConfig

__all__ = ["MillpondComponent", "require_string"]


class MillpondComponent:
    """A model and its options, by which a component is saved."""

    _engine: Engine | None

    def keep(self, model: str, engine_options: dict[str, Any] | None, **own: Any) -> None:
        """What `__init__` does. Haystack makes another class of a component, without `super`."""
        config = EngineConfig.of(model, cast(Any, engine_options or {}))
        self.arguments = {"model": config.model, "engine_options": config.options(), **own}
        self._engine = None  # set once, by warm_up

    @property
    def model(self) -> str:
        """A folder, or a name on the Hugging Face hub."""
        return str(self.arguments["model"])

    def warm_up(self) -> None:
        """Load the model, unless the process has it. Raises `ModelError`."""
        if self._engine is None:
            self._engine = Engine.shared(self.model, **self.arguments["engine_options"])

    @property
    def engine(self) -> Engine:
        """The engine, shared with everything else that has the same configuration."""
        self.warm_up()
        assert self._engine is not None
        return self._engine

    def close(self) -> None:
        """Let the model go, unless others have it."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def to_dict(self) -> dict[str, Any]:
        """For a saved pipeline."""
        return default_to_dict(self, **self.arguments)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From a saved pipeline. Raises `InvalidOption`."""
        return default_from_dict(cls, data)

    def options(self, *names: str) -> dict[str, Any]:
        """Arguments that are options of a call."""
        return {name: self.arguments[name] for name in names}

    def texts(self, documents: Any) -> list[str]:
        """Of each document the fields that are to be embedded, and its content.

        Raises `TypeError` for what are no documents.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise TypeError("expected a list of documents; a text goes to a text embedder")
        arguments = self.arguments
        names, separator = arguments["meta_fields_to_embed"], arguments["embedding_separator"]
        return [_text(document, names, separator) for document in documents]


def require_string(text: Any) -> str:
    """The text. Raises `TypeError` for anything else."""
    if not isinstance(text, str):
        raise TypeError(
            f"expected a string, not {type(text).__name__}; documents go to a document embedder"
        )
    return text


def _text(document: Document, names: Sequence[str], separator: str) -> str:
    values = (document.meta.get(name) for name in names)
    parts = [str(value) for value in values if value is not None]
    return separator.join([*parts, document.content or ""])
