"""Chroma: `MillpondEmbeddingFunction`, which a collection keeps beside its vectors.

    from millpond.integrations.chroma import MillpondEmbeddingFunction

    function = MillpondEmbeddingFunction("BAAI/bge-base-en-v1.5")
    collection = client.create_collection("notes", embedding_function=function)

Chroma saves its name and configuration with the collection. Where this module has been imported,
`client.get_collection("notes")` finds it again.
"""

from __future__ import annotations

import os
from typing import Any, Unpack, cast

import numpy as np
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from ..config import EngineConfig, EngineOptions
from ..engine.engine import Engine
from ..errors import InvalidOption

__all__ = ["MillpondEmbeddingFunction"]

_SPACES: dict[str | None, Space] = {"dot": "ip", "euclidean": "l2"}


@register_embedding_function
class MillpondEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents with the model's prompt for documents, and queries with that for queries.

    `dimensions`, `normalize` and `truncate` are those of `Engine.embed`, `options` the engine's.
    The model is loaded at the first call. Raises `InvalidOption`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: str | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        config = EngineConfig.of(model, options)
        self._model = config.model
        self._options = config.options()
        call: dict[str, Any] = {
            "dimensions": dimensions,
            "normalize": normalize,
            "truncate": truncate,
        }
        self._call = {name: value for name, value in call.items() if value is not None}
        self._engine: Engine | None = None  # set once, at the first call

    @property
    def engine(self) -> Engine:
        """The engine, shared with everything else that has the same configuration."""
        if self._engine is None:
            self._engine = Engine.shared(self._model, **cast(EngineOptions, self._options))
        return self._engine

    def __call__(self, input: Documents) -> Embeddings:
        """The vectors of documents, float32."""
        return self._vectors(input, "document")

    def embed_query(self, input: Documents) -> Embeddings:
        """The vectors of queries, float32."""
        return self._vectors(input, "query")

    def _vectors(self, texts: Documents, task: str) -> Embeddings:
        return list(np.asarray(self.engine.embed(list(texts), task=task, **self._call)))

    def default_space(self) -> Space:
        """What the model was trained for; cosine where it does not say."""
        return _SPACES.get(self.engine.info().model.similarity_fn_name, "cosine")

    @staticmethod
    def name() -> str:
        """What Chroma saves with a collection."""
        return "millpond"

    def get_config(self) -> dict[str, Any]:
        """What Chroma saves with a collection, in types that JSON has."""
        return {"model": self._model, "options": self._options, **self._call}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> MillpondEmbeddingFunction:
        """The function that `get_config` is of. Raises `InvalidOption`."""
        call = {name: value for name, value in config.items() if name not in ("model", "options")}
        return MillpondEmbeddingFunction(config["model"], **config.get("options", {}), **call)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise `InvalidOption` for one that `build_from_config` would refuse."""
        if "model" not in config:
            raise InvalidOption("the configuration names no model")
        MillpondEmbeddingFunction.build_from_config(config)

    def validate_config_update(
        self, old_config: dict[str, Any], new_config: dict[str, Any]
    ) -> None:
        """Raise `InvalidOption` where new vectors would not fit the old ones.

        The model may be another name or folder, since a folder may be moved.
        """
        for name in ("dimensions", "normalize"):
            if old_config.get(name) != new_config.get(name):
                raise InvalidOption(
                    f"{name} was {old_config.get(name)!r} for the vectors that the collection "
                    f"has, and cannot become {new_config.get(name)!r}: make another collection"
                )

    def __repr__(self) -> str:
        return f"MillpondEmbeddingFunction({self._model!r})"
