"""`TokenCalls`: the calls of an engine for a vector of each token, on the engine's own queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Unpack

from ...multi_vector.token_embeddings import TokenEmbeddings
from ...multi_vector.token_vectors import TokenVectors
from ...scheduler.request import Priority
from ...stats import ProgressHook
from ..params.embed import TextInput, TextOptions, TextsInput, params_of
from ..params.token import TokenParams
from .base import Calls

__all__ = ["TokenCalls", "TokenOptions"]


class TokenOptions(TextOptions, total=False):
    """The options of one call, as `Engine.embed_tokens` explains them."""

    dimensions: int | None
    normalize: bool | None
    pool_factor: float


class TokenCalls(Calls):
    """What an engine answers with a multi-vector model."""

    def embed_tokens(
        self,
        texts: TextsInput,
        *,
        progress: bool | ProgressHook = False,
        **options: Unpack[TokenOptions],
    ) -> Any:
        """A vector for each token of each text, by a multi-vector model such as ColBERT.

        One text gives float32 `[tokens, dim]`, a list of them `TokenVectors`. Which tokens have a
        vector is the checkpoint's to say: queries may be filled up with `[MASK]`, and punctuation
        of documents left out. `millpond.maxsim` compares them, and `rank` does all of it.

        - `task`: "query" or "document"; a text without one is a document, with no prompt.
        - `pool_factor`: one vector of a document stays for N, for an index that is as much
          smaller: the means of clusters, as sentence-transformers' `HierarchicalTokenPooling`.
        - the others are those of `embed`.

        Raises `UnsupportedCall` where the model gives no token vectors, and else as `embed`.
        """
        result, single = self._run(texts, _params(options), progress, call="embed_tokens")
        return result.vectors[0] if single else result.vectors

    async def aembed_tokens(
        self,
        texts: TextsInput,
        *,
        progress: bool | ProgressHook = False,
        **options: Unpack[TokenOptions],
    ) -> Any:
        """`embed_tokens` for any event loop. A cancelled call is taken out of the queue."""
        result, single = await self._arun(texts, _params(options), progress, call="embed_tokens")
        return result.vectors[0] if single else result.vectors

    def submit_tokens(
        self, texts: TextsInput, *, wait: bool = True, **options: Unpack[TokenOptions]
    ) -> Future[TokenEmbeddings]:
        """Hand texts in and go on; the future gives `TokenEmbeddings`, with an error per failed
        text.

        It raises, blocks and is cancelled as `submit` is.
        """
        return self._submit(texts, _params(options), wait, call="embed_tokens")

    def embed_tokens_iter(
        self,
        texts: Iterable[TextInput],
        *,
        chunk_size: int = 1024,
        progress: ProgressHook | None = None,
        **options: Unpack[TokenOptions],
    ) -> Iterator[TokenVectors]:
        """Token vectors of a corpus of any length: those of `chunk_size` texts at a time, in order.

        It reads ahead, and raises for texts of a chunk, as `embed_iter` does.
        """
        params = _params({"priority": Priority.BULK, **options})
        return self._stream(texts, params, chunk_size, progress, call="embed_tokens")


def _params(options: TokenOptions) -> TokenParams:
    return params_of(TokenParams, TokenOptions, options)
