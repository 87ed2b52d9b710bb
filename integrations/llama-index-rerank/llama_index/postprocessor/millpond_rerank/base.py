"""`MillpondRerank`: LlamaIndex's interface for rerankers on a shared Millpond engine.

What lives here is a translation: LlamaIndex's fields to the options of an engine and of a call,
and scores to nodes. Batching, threads and devices are the engine's business.
"""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self, TypedDict, Unpack

from llama_index.core.bridge.pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from millpond import Engine, InvalidOption, Ranked

OF_ENGINE = ("device", "dtype", "max_length", "revision", "trust_remote_code")
"""The engine's everyday options, which are fields; the others are in `engine_options`."""
FIELDS_OF_ENGINE = {"model", "cache_folder", "engine_options", *OF_ENGINE}

PathText = BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)
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


class RerankOptions(TypedDict, total=False):
    """What `MillpondRerank` takes beside a model or an engine, for type checkers."""

    top_n: int
    keep_retrieval_score: bool
    activation: str
    truncate: Literal["end", "start", "document", "error"] | None
    prompt: str | None
    prompt_name: str | None
    device: str | Sequence[str] | None
    dtype: str
    revision: str | None
    trust_remote_code: bool
    max_length: int | None
    cache_folder: str | os.PathLike[str] | None
    engine_options: Mapping[str, Any]
    callback_manager: CallbackManager


class MillpondRerank(BaseNodePostprocessor):
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

    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,  # it may be a token
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    model: Annotated[str, PathText] = Field(frozen=True)
    """A folder, the name of a reranker on the Hugging Face hub, or a name that an installed
    package carries. Without it, `engine`: an engine that is already built, whose options are
    read."""
    top_n: int = Field(default=2, gt=0)
    """Number of nodes to return sorted by score."""
    keep_retrieval_score: bool = False
    """Whether to keep the retrieval score in metadata, as `retrieval_score`."""

    # The call's.
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

    # The engine's: fixed once it is built.
    device: str | list[str] | None = Field("auto", frozen=True)
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`, or several of them."""
    dtype: str = Field("auto", frozen=True)
    """Precision of the transformer: `auto`, `float32`, `bfloat16`, `float16` or, on a CPU,
    `int8`."""
    revision: str | None = Field(None, frozen=True)
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = Field(False, frozen=True)
    """Run Python code that comes with the checkpoint."""
    max_length: int | None = Field(None, frozen=True)
    """Longest query and node together, in tokens; None for the model's own."""
    cache_folder: Annotated[str | None, PathText] = Field(None, frozen=True)
    """Where downloaded models are kept; None for Hugging Face's own cache."""
    engine_options: dict[str, Any] = Field({}, frozen=True)
    """Any other option of `millpond.EngineConfig`, by name."""

    _engine: Engine | None = PrivateAttr(None)  # None only in a pickle

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        engine: Engine | None = None,
        **options: Unpack[RerankOptions],
    ) -> None:
        fields: dict[str, Any] = {**options}
        fields.pop("class_name", None)  # part of what `model_dump` gives
        if model is not None:
            fields["model"] = model
        if engine is not None:
            fields |= _fields_for(engine, fields)
        known = {*type(self).model_fields, "engine"}
        error = InvalidOption.of_unknown("MillpondRerank", fields, known, RENAMED)
        if error is not None:
            raise error
        super().__init__(**fields)
        self._engine = engine
        self.engine.rank("", [], **self._call())  # refuses bad options now

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised form."""
        return "MillpondRerank"

    @property
    def engine(self) -> Engine:
        """The engine behind this object, for its `info()`, `stats()` and hooks."""
        if self._engine is None:
            self._engine = Engine.shared(**self._engine_options())
        return self._engine

    def _engine_options(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in OF_ENGINE}
        options |= {"model": self.model, "cache_dir": self.cache_folder}
        if twice := options.keys() & self.engine_options.keys():
            raise InvalidOption(
                f"engine_options holds {', '.join(sorted(twice))}, which is a field of its own "
                "(cache_dir is cache_folder)"
            )
        return options | self.engine_options

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy on the same engine, or with `update` one that is built and checked anew.

        Raises as the constructor does.
        """
        copied = super().model_copy(deep=deep)
        if not update:
            return copied
        kept = dict(copied)
        changed = FIELDS_OF_ENGINE & update.keys()
        engine = update.get("engine", None if changed else copied.engine)
        if engine is not None:  # it has its own
            kept = {name: kept[name] for name in kept.keys() - FIELDS_OF_ENGINE}
        return type(self)(**kept | dict(update) | {"engine": engine})

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex's `__setstate__` calls `__init__` and passes over its errors. So a model that
        # cannot be loaded is reported by the first call.
        pickle.dumps(self._engine)  # refuses one that its options do not bring back
        state: dict[str, Any] = super().__getstate__()
        return state | {"__pydantic_private__": {"_engine": None}}

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


def _fields_for(engine: Engine, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that bring an equal engine back."""
    if not isinstance(engine, Engine):
        raise InvalidOption(f"engine={engine!r}: it must be a millpond.Engine")
    if taken := FIELDS_OF_ENGINE & given.keys():
        raise InvalidOption(
            f"{', '.join(sorted(taken))}: the engine is built and has its own; leave out `engine` "
            "or the options"
        )
    config = engine.config
    others = config.options()
    fields = {name: getattr(config, name) for name in OF_ENGINE}
    fields |= {"model": config.model, "cache_folder": others.pop("cache_dir", None)}
    options = {name: value for name, value in others.items() if name not in OF_ENGINE}
    return fields | {"engine_options": options}
