"""LangChain's own unit tests for embeddings, all of them."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_millpond import MillpondEmbeddings

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.usefixtures("real_engine")
class TestMillpondEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[MillpondEmbeddings]:
        return MillpondEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": MODEL}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"MILLPOND_MODEL": MODEL, "MILLPOND_DEVICE": "cpu"}
        return environment, {}, {"model": MODEL, "device": "cpu"}
