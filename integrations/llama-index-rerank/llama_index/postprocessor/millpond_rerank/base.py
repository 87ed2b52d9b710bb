"""`MillpondRerank`: LlamaIndex's interface for rerankers on a shared Millpond engine.

What lives here is a translation: LlamaIndex's fields to the options of an engine and of a call,
and scores to nodes. Batching, threads and devices are the engine's business.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Unpack

from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from millpond import Engine, InvalidOption, Ranked
from millpond.integrations.engine_fields import EngineFieldOptions, EngineFields, PathText

dispatcher = get_dispatcher(__name__)

_FIELDS = "device, trust_remote_code, revision, max_length"
RENAMED = {
    "model_name": "model",
    "batch_size": "none: batches are sized in tokens",
    "backend": "none: the model runs in PyTorch",
    "cross_encoder_kwargs": _FIELDS,
    "model_kwargs": _FIELDS,
}
"""What parameters of other rerankers are called here."""


class RerankOptions(EngineFieldOptions, total=False):
    """What `MillpondRerank` takes beside a model or an engine, for type checkers."""

    top_n: int
    keep_retrieval_score: bool
    activation: str
    truncate: Literal["end", "start", "document", "error"] | None
    prompt: str | None
    prompt_name: str | None
    callback_manager: CallbackManager


class MillpondRerank(EngineFields, BaseNodePostprocessor):
    """
    Reranks nodes with a cross-encoder in a Millpond engine inside this process.

    Objects with the same engine options share one engine: the weights are loaded once, and the
    calls of all threads and event loops are batched together. A call does not wait behind larger
    ones.

    The options that configure the engine cannot be changed afterwards. Copies use the same
    engine. A pickle holds the options, and finds or makes the shared engine where it is loaded.

    Raises:
        MillpondError: One of its kinds; `UnsupportedCall` for a model that is no reranker.

    Examples:
        `pip install llama-index-postprocessor-millpond-rerank`

        ```python
        from llama_index.postprocessor.millpond_rerank import MillpondRerank

        reranker = MillpondRerank(model="cross-encoder/ms-marco-MiniLM-L6-v2", top_n=3)
        query_engine = index.as_query_engine(
            similarity_top_k=50, node_postprocessors=[reranker]
        )
        ```

    """

    model: Annotated[str, PathText] = Field(frozen=True)
    """A folder, the name of a reranker on the Hugging Face hub, or a name that an installed
    package carries. Without it, `engine`: an engine that is already built, whose options are
    read."""
    top_n: int = Field(default=2, gt=0)
    """Number of nodes to return sorted by score."""
    keep_retrieval_score: bool = False
    """Whether to keep the retrieval score in metadata, as `retrieval_score`."""
    activation: str = "auto"
    """What is applied to the model's logits: `auto` is what the checkpoint says, mostly a sigmoid;
    `none`, `sigmoid` and others."""
    truncate: Literal["end", "start", "document", "error"] | None = None
    """What to cut of a query and a node that are too long: `document` leaves the query whole,
    `error` raises `TextTooLong`; None cuts the longer of the two."""
    prompt: str | None = None
    """Text in front of every query, or the instruction where the checkpoint has a chat template;
    None for the checkpoint's own."""
    prompt_name: str | None = None
    """Name of a prompt that the checkpoint saved."""

    _renamed = RENAMED
    _ignored = ("class_name",)

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        engine: Engine | None = None,
        **options: Unpack[RerankOptions],
    ) -> None:
        super().__init__(model, engine=engine, **options)

    def _require_valid(self) -> None:
        self.engine.rank("", [], **self._call())

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised form."""
        return "MillpondRerank"

    def _call(self) -> dict[str, Any]:
        return {
            "top_n": self.top_n,
            "activation": self.activation,
            "truncate": self.truncate,
            "prompt": self.prompt,
            "prompt_name": self.prompt_name,
        }

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _required(query_bundle)
        with self._reported(nodes, query) as returned:
            if nodes:
                ranked = self.engine.rank(query.query_str, _texts(nodes), **self._call())
                returned += self._best(nodes, ranked)
        return returned

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _required(query_bundle)
        with self._reported(nodes, query) as returned:
            if nodes:
                ranked = await self.engine.arank(query.query_str, _texts(nodes), **self._call())
                returned += self._best(nodes, ranked)
        return returned

    @contextmanager
    def _reported(
        self, nodes: list[NodeWithScore], query: QueryBundle
    ) -> Iterator[list[NodeWithScore]]:
        """The list for the nodes to return, with LlamaIndex's events before and after."""
        returned: list[NodeWithScore] = []
        dispatcher.event(
            ReRankStartEvent(query=query, nodes=nodes, top_n=self.top_n, model_name=self.model)
        )
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield returned
            event.on_end(payload={EventPayload.NODES: returned})
        dispatcher.event(ReRankEndEvent(nodes=returned))

    def _best(
        self, nodes: Sequence[NodeWithScore], ranked: Sequence[Ranked]
    ) -> list[NodeWithScore]:
        return [self._scored(nodes[one.index], one.score) for one in ranked]

    def _scored(self, given: NodeWithScore, score: float) -> NodeWithScore:
        metadata = dict(given.node.metadata)
        if self.keep_retrieval_score:
            metadata["retrieval_score"] = given.score
        node = given.node.model_copy(update={"metadata": metadata})
        return given.model_copy(update={"node": node, "score": score})


MillpondRerank.__doc__ = f"{MillpondRerank.__doc__}\n    Args:\n" + "\n".join(
    f"        {name} ({inspect.formatannotation(field.annotation)}): {field.description}"
    for name, field in MillpondRerank.model_fields.items()
)


def _required(query: QueryBundle | None) -> QueryBundle:
    if query is None:
        raise InvalidOption("a reranker needs a query: pass query_bundle or query_str")
    return query


def _texts(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [one.node.get_content(metadata_mode=MetadataMode.EMBED) for one in nodes]
