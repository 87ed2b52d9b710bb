"""`AllCalls`: all that a model gives of texts, of one pass where it gives several kinds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Unpack

from ...all_embeddings import AllEmbeddings, AllOutput
from ...checkpoint.routes import Route
from ...checkpoint.spec import ModelSpec
from ...errors import UnsupportedCall
from ...sparse.vectors import Terms
from ...stats import ProgressHook
from ..params.embed import (
    EmbedParams,
    TextOptions,
    TextsInput,
    params_of,
    require_known,
    unsupported,
)
from .sparse import SparseCalls
from .token_vectors import TokenCalls

__all__ = ["AllCalls"]


@dataclass(frozen=True, kw_only=True)
class AllParams(EmbedParams):
    """The options of one call, and what the engine adds to them."""

    dimensions_by_route: Mapping[str, int]
    terms: Terms

    @staticmethod
    def require(spec: ModelSpec, call: str) -> None:
        """It has been looked at."""

    def route(self, spec: ModelSpec) -> Route:
        """The way through the model to all that it gives."""
        assert spec.multi_vector is not None
        assert spec.multi_vector.all_route is not None
        return spec.route_named(spec.multi_vector.all_route)

    def output(self, spec: ModelSpec, dimension: int) -> AllOutput:
        """What becomes of the rows of the pass."""
        sizes = self.dimensions_by_route
        return AllOutput(
            dense_dimension=sizes[spec.route_for(self.task).name],
            token_dimension=sizes[spec.token_route_for(self.task).name],
            vocabulary=sizes[spec.sparse_route_for(self.task).name],
            terms=self.terms,
        )


class AllCalls(TokenCalls, SparseCalls):
    """What an engine answers with all that its model gives."""

    def embed_all(
        self,
        texts: TextsInput,
        *,
        progress: bool | ProgressHook = False,
        **options: Unpack[TextOptions],
    ) -> dict[str, Any]:
        """All kinds of embeddings that the model gives, by name: "dense", "sparse", "tokens".

        Of a list of texts float32 `[n, dim]`, `SparseVectors` and `TokenVectors`; of one text what
        `embed`, `embed_sparse` and `embed_tokens` give of one. bge-m3 gives all three, of one pass;
        other models those that they have, each of a pass of its own.

        The options are those of `embed`. Raises `UnsupportedCall` where the model gives no
        embeddings, and else as `embed`.
        """
        spec = self._instance.spec
        if _one_pass(spec):
            params = self._all_params(options)
            return _by_kind(*self._run(texts, params, progress, call="embed_all"))
        require_known(options, TextOptions)
        calls = self._calls("")
        return {kind: call(texts, progress=progress, **options) for kind, call in calls.items()}

    async def aembed_all(
        self,
        texts: TextsInput,
        *,
        progress: bool | ProgressHook = False,
        **options: Unpack[TextOptions],
    ) -> dict[str, Any]:
        """`embed_all` for any event loop."""
        if _one_pass(self._instance.spec):
            params = self._all_params(options)
            return _by_kind(*await self._arun(texts, params, progress, call="embed_all"))
        require_known(options, TextOptions)
        calls = self._calls("a")
        found = (call(texts, progress=progress, **options) for call in calls.values())
        return dict(zip(calls, await asyncio.gather(*found), strict=True))

    def submit_all(
        self, texts: TextsInput, *, wait: bool = True, **options: Unpack[TextOptions]
    ) -> Future[AllEmbeddings]:
        """Hand texts in and go on; the future gives `AllEmbeddings`, with an error per failed text.

        It raises, blocks and is cancelled as `submit` is. Raises `UnsupportedCall` where the model
        does not give all kinds of one pass, as bge-m3 does.
        """
        spec = self._instance.spec
        if not _one_pass(spec):
            raise UnsupportedCall(
                f"{spec.name} does not give several kinds of embeddings of one pass; call "
                f"{' or '.join(call.__name__ for call in self._calls('').values())}"
            )
        return self._submit(texts, self._all_params(options), wait, call="embed_all")

    def _calls(self, prefix: str) -> dict[str, Callable[..., Any]]:
        """By kind the call for it, asynchronous with "a". Raises `UnsupportedCall`."""
        spec, names = self._instance.spec, {}
        if spec.kind == "embed":
            names["dense"] = "embed"
        if spec.sparse is not None:
            names["sparse"] = "embed_sparse"
        if spec.multi_vector is not None:
            names["tokens"] = "embed_tokens"
        if not names:
            raise unsupported(spec, "embed_all", "embeddings")
        return {kind: getattr(self, prefix + name) for kind, name in names.items()}

    def _all_params(self, options: TextOptions) -> AllParams:
        sizes = {route.name: route.dimension for route in self._instance.info().routes}
        own = {"dimensions_by_route": sizes, "terms": self._inputs.names}
        return params_of(AllParams, TextOptions, options, **own)


def _one_pass(spec: ModelSpec) -> bool:
    return spec.multi_vector is not None and spec.multi_vector.all_route is not None


def _by_kind(result: AllEmbeddings, single: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "dense": result.dense,
        "sparse": result.sparse,
        "tokens": result.tokens,
    }
    return {kind: each[0] for kind, each in found.items()} if single else found
