"""`Engine`, the public object: texts in, vectors out, from any thread and any event loop.

It turns calls into requests and results into arrays. The model, the queue and the threads behind it
belong to a `ModelInstance`, which several engines may hold.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, Self, Unpack

import numpy.typing as npt

from ..checkpoint.spec import ModelSpec
from ..config import EngineConfig, EngineOptions, require_bool
from ..embeddings import Embeddings, OutputDType
from ..runner.base import ModelRunner
from ..scheduler.request import Priority, TruncateSide
from ..stats import EngineStats, ProgressHook, StatsHook
from .calls.all_kinds import AllCalls
from .calls.base import while_running
from .calls.scoring import ScoringCalls
from .core.core import Health
from .info import EngineInfo
from .instance import Handle, ModelInstance
from .params.embed import (
    CallOptions,
    EmbedParams,
    TextInput,
    TextsInput,
    params_of,
    require_lists_of_ids,
)
from .settings import KEPT
from .tokenizer import Tokenizer

__all__ = ["Engine"]


class Engine(ScoringCalls, AllCalls):
    """An embedding model, a reranker or a classifier served inside this process.

    ```python
    with Engine("sentence-transformers/all-MiniLM-L6-v2") as engine:
        vectors = engine.embed(["one text", "another"])   # float32 [2, 384]
        query = engine.embed("which text?", task="query")  # float32 [384]
    ```

    `options` are the fields of `EngineConfig`. Raises `ModelNotFound`, `InvalidCheckpoint` or
    `UnsupportedModel` for the model and `InvalidOption` for the rest.

    An engine that is no longer referenced finishes what it accepted and stops by itself.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Unpack[EngineOptions]) -> None:
        self._hold(ModelInstance.load(EngineConfig.of(model, options)).acquire())

    @classmethod
    def shared(cls, model: str | os.PathLike[str], **options: Unpack[EngineOptions]) -> Self:
        """An engine on the process-wide instance of the model for this configuration.

        Equal configurations share one copy of the weights and one queue; the last engine to be
        closed, or collected, lets them go.
        """
        return cls._on(ModelInstance.shared(EngineConfig.of(model, options)))

    @classmethod
    def with_runner(
        cls,
        runner: ModelRunner | Sequence[ModelRunner],
        spec: ModelSpec,
        *,
        tokenizers: Sequence[Tokenizer],
        **options: Unpack[EngineOptions],
    ) -> Self:
        """An engine on runners of your own: a fake for tests, or another way to run a model.

        One for each device, with a tokenizer for each route.
        """
        runners = runner if isinstance(runner, Sequence) else [runner]
        config = EngineConfig.of(spec.name, options)
        instance = ModelInstance(spec, runners, tokenizers, config, reloadable=False)
        return cls._on(instance.acquire())

    @classmethod
    def _on(cls, handle: Handle) -> Self:
        engine = cls.__new__(cls)
        engine._hold(handle)
        return engine

    def _hold(self, handle: Handle) -> None:
        """Keep an acquired instance until this engine is closed or collected."""
        instance = handle.instance
        self._instance = instance
        self._handle = handle
        self._release = handle.when_collected
        self._info = instance.info()

    # Embedding.

    def embed(
        self,
        texts: TextsInput,
        *,
        task: str | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: TruncateSide | None = None,
        output_dtype: OutputDType = "float32",
        priority: Priority | str | None = None,
        timeout: float | None = None,
        progress: bool | ProgressHook = False,
    ) -> npt.NDArray[Any]:
        """Embed one text, `[dim]`, or a list of them, `[n, dim]`; row *i* is text *i*'s.

        A text is a string or its token ids.

        - `task`: "query" or "document"; adds the prompt the model saved for it and takes its route.
        - `prompt`: text to put in front of every text; wins over `prompt_name`, which wins over
          the task's prompt.
        - `dimensions`: keep only the first N and restore unit length (Matryoshka).
        - `normalize`: scale vectors to unit length (True), or not even those cut short (False);
          None leaves that to the model.
        - `truncate`: cut a text longer than the model reads at its "end" or "start", or raise
          `TextTooLong` ("error"); None cuts where the checkpoint says, the end as a rule.
        - `output_dtype`: float32, float16, int8, uint8, binary or ubinary.
        - `priority`: "interactive" or "bulk"; None is interactive for a single text or a query.
        - `timeout`: seconds until `DeadlineExceeded`.
        - `progress`: show a progress bar (True), or call a function with a `CallProgress` after
          every batch; texts cut short are then that function's to report, and not logged.

        Raises `InvalidOption` for what cannot be meant, `InvalidInput` for a text that cannot be
        accepted, and then the others are not embedded either; `TextFailed` for a text the model
        failed on (`TextsFailed` for several), `EngineClosed` and `EngineFailed`. `submit` gives
        errors by text and the vectors of the others.
        """
        params = EmbedParams(
            task=task,
            prompt=prompt,
            prompt_name=prompt_name,
            dimensions=dimensions,
            normalize=normalize,
            truncate=truncate,
            output_dtype=output_dtype,
            priority=priority,
            timeout=timeout,
        )
        result, single = self._run(texts, params, progress)
        vectors: npt.NDArray[Any] = result.vectors[0] if single else result.vectors
        return vectors

    async def aembed(
        self,
        texts: TextsInput,
        *,
        progress: bool | ProgressHook = False,
        **options: Unpack[CallOptions],
    ) -> npt.NDArray[Any]:
        """`embed` for any event loop. A cancelled call is taken out before its next forward."""
        result, single = await self._arun(texts, _params(options), progress)
        vectors: npt.NDArray[Any] = result.vectors[0] if single else result.vectors
        return vectors

    def submit(
        self, texts: TextsInput, *, wait: bool = True, **options: Unpack[CallOptions]
    ) -> Future[Embeddings]:
        """Hand texts in and go on; the future gives `Embeddings`, with an error per failed text.

        A text that cannot be accepted (`InvalidInput`) has its error there too, beside the vectors
        of the others; raised is what concerns the call: `InvalidOption`, `EngineClosed`, or
        `InvalidText` for what holds no texts at all.

        Blocks while the queue of its priority is full, or raises `QueueFull` where `wait` is False.
        Cancelling the future takes out the texts that have not run.
        """
        return self._submit(texts, _params(options), wait)

    def embed_iter(
        self,
        texts: Iterable[TextInput],
        *,
        chunk_size: int = 1024,
        progress: ProgressHook | None = None,
        **options: Unpack[CallOptions],
    ) -> Iterator[npt.NDArray[Any]]:
        """Embed a corpus of any length: a matrix `[≤ chunk_size, dim]` at a time, in order.

        Reads no more than a few chunks ahead of what the caller has taken, so memory does not
        grow with the corpus. `progress` is called as in `embed`, with shares of a chunk's work and
        from several threads.

        Where texts of a chunk have no vector, `next` raises in its place: `InvalidInput` for each
        that cannot be accepted, then `TextFailed` or `TextsFailed` for those the model failed on,
        all with the place in the corpus. Nothing is lost by that: called again it gives the
        chunk's other rows, and goes on.
        """
        params = _params({"priority": Priority.BULK, **options})
        return self._stream(texts, params, chunk_size, progress)

    # Tokens.

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        special_tokens: bool = True,
    ) -> list[list[int]]:
        """The token ids of each text, its prompt in front, as `embed` finds them.

        Nothing is cut, so their number tells which texts are too long for the model.
        `special_tokens=False` leaves out those that the tokenizer adds. Raises as `embed` does.
        """
        require_bool("special_tokens", special_tokens)
        params = EmbedParams(task=task, prompt=prompt, prompt_name=prompt_name)
        return while_running(
            lambda: self._instance.inputs.token_ids(texts, params, special_tokens=special_tokens)
        )

    def detokenize(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of token ids, special tokens spelled out.

        Raises `InvalidTokenIds` for an id that the model does not know.
        """
        require_lists_of_ids(ids)
        return while_running(lambda: self._instance.inputs.detokenize(ids))

    # About it.

    def info(self) -> EngineInfo:
        """The model, how it runs and why, and the budgets."""
        return self._info

    @property
    def dimension(self) -> int:
        """Numbers in a vector of `embed`, as for an index; labels of a model that scores.

        A call's `dimensions` gives fewer.
        """
        return min(self._info.dimension, self._info.model.truncate_dim or self._info.dimension)

    @property
    def max_length(self) -> int | None:
        """Longest text in tokens, special tokens included; None for no limit."""
        return self._info.max_length

    @property
    def config(self) -> EngineConfig:
        """What it was asked for; an equal configuration shares the model, see `shared`."""
        return self._instance.config

    def stats(self) -> EngineStats:
        """Totals since the model was loaded, and what is waiting now."""
        return self._instance.core.stats()

    @property
    def health(self) -> Health:
        """`ready`, `closing`, `closed`, or `failed` when no call can succeed any more."""
        health = self._instance.health
        return "closed" if health == "ready" and not self._release.alive else health

    def add_stats_hook(self, hook: StatsHook) -> None:
        """Call `hook` with a `BatchStats` after every batch, on the thread that ran it.

        That is one of the engine's own or, for a lone query on a CPU, its caller's; with several
        workers, two may call it at a time. Inside it the engine cannot be waited for. What it
        raises is logged.
        """
        self._instance.hooks.add(hook)

    def remove_stats_hook(self, hook: StatsHook) -> None:
        """Stop calling a hook."""
        self._instance.hooks.remove(hook)

    # Its end, and its copies.

    def close(self, *, drain: bool = True) -> None:
        """Finish what was accepted (`drain`) or fail it with `EngineClosed`, then stop.

        Where other engines share the model, it goes on for them. Closing twice does nothing.
        """
        require_bool("drain", drain)
        if self._release.alive:
            # Twice is as good as once: an interrupt in between leaves it to the next call.
            self._instance.release(self._handle, drain=drain)
            self._release.detach()
            self._instance.wait_if_let_go(drain=drain)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close(drain=error is None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        await asyncio.to_thread(self.close, drain=error is None)

    def __copy__(self) -> Self:
        return self._on(self._instance.acquire())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._instance.reloadable:
            raise TypeError("an engine made with_runner cannot be pickled")
        return _unpickle, (self._instance.config,)

    def __repr__(self) -> str:
        info = self._info
        return (
            f"Engine({info.model.name!r}, device={info.device!r}, dtype={info.dtype!r}, "
            f"execution={info.execution!r}, health={self.health!r})"
        )


@lru_cache(KEPT, typed=True)
def _known_params(**options: Any) -> EmbedParams:
    return params_of(EmbedParams, CallOptions, options)


def _params(options: CallOptions) -> EmbedParams:
    """Thousands of queries a second have the same options."""
    try:
        return _known_params(**options)
    except TypeError:  # an option without a hash, or one that there is not
        return params_of(EmbedParams, CallOptions, options)


def _unpickle(config: EngineConfig) -> Engine:
    return Engine._on(ModelInstance.shared(config))
