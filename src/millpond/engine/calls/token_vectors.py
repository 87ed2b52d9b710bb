"""`TokenCalls`: the calls of an engine for a vector of each token, on the engine's own queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict, Unpack, cast

from ...config import require_bool
from ...multi_vector.token_embeddings import TokenEmbeddings
from ...multi_vector.token_vectors import TokenVectors
from ...scheduler.request import Priority, Request, TruncateSide
from ...stats import ProgressHook
from ..params.embed import TextInput, TextsInput, require_known
from ..params.token import TokenParams
from .base import Calls
from .progress import progress_hook
from .stream import EmbeddingStream, require_stream_options

__all__ = ["TokenCalls", "TokenOptions"]


class TokenOptions(TypedDict, total=False):
    """The options of one call, as `Engine.embed_tokens` explains them."""

    task: str | None
    prompt: str | None
    prompt_name: str | None
    dimensions: int | None
    normalize: bool | None
    pool_factor: float
    truncate: TruncateSide | None
    priority: Priority | str | None
    timeout: float | None


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
        with progress_hook(texts, progress) as hook:
            params = replace(_params(options), progress=hook, reports_truncation=hook is progress)
            request, single = self._submit_tokens(texts, params, strict=True, inline=True)
            return _token_vectors(self._wait(request, params.timeout), single)

    async def aembed_tokens(
        self,
        texts: TextsInput,
        *,
        progress: bool | ProgressHook = False,
        **options: Unpack[TokenOptions],
    ) -> Any:
        """`embed_tokens` for any event loop. A cancelled call is taken out of the queue."""
        with progress_hook(texts, progress) as hook:
            params = replace(_params(options), progress=hook, reports_truncation=hook is progress)
            request, single = self._submit_tokens(texts, params, strict=True)
            return _token_vectors(await self._await(request, params.timeout), single)

    def submit_tokens(
        self, texts: TextsInput, *, wait: bool = True, **options: Unpack[TokenOptions]
    ) -> Future[TokenEmbeddings]:
        """Hand texts in and go on; the future gives `TokenEmbeddings`, with an error per failed
        text.

        It raises, blocks and is cancelled as `submit` is.
        """
        require_bool("wait", wait)
        request, _ = self._submit_tokens(texts, _params(options), wait=wait, block=wait)
        return cast("Future[TokenEmbeddings]", request.future)

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
        spec = self._instance.spec
        TokenParams.require(spec, "embed_tokens_iter")
        require_stream_options(texts, chunk_size, progress, None)
        params = replace(
            _params(options),
            priority=options.get("priority", Priority.BULK),
            progress=progress,
            reports_truncation=progress is not None,
        )
        params.validate(spec)

        def submit(chunk: list[TextInput]) -> Request:
            return self._submit_tokens(chunk, params, several=True)[0]

        wait = partial(self._wait, timeout=params.timeout)
        return EmbeddingStream(iter(texts), chunk_size=chunk_size, submit=submit, wait=wait)

    def _submit_tokens(
        self, texts: TextsInput, params: TokenParams, **how: bool
    ) -> tuple[Request, bool]:
        return self._send_texts(texts, params, call="embed_tokens", **how)


def _params(options: TokenOptions) -> TokenParams:
    require_known(options, TokenOptions)
    return TokenParams(**options)


def _token_vectors(result: TokenEmbeddings, single: bool) -> Any:
    result.raise_for_errors()
    return result.vectors[0] if single else result.vectors
