"""`embed`, `embed_sparse`, `score` and `rank`: a Ray dataset in, the same with new columns out.

They only describe the work: Ray does it when rows of the dataset are asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Unpack, cast

from ray.data import Dataset

from ..config import EngineConfig, EngineOptions, is_count, require
from ..engine.calls.scoring import ScoreOptions
from ..engine.calls.sparse import SparseOptions
from ..engine.params.embed import CallOptions
from ..errors import InvalidOption
from .actors import BATCH_ROWS, ActorPool, ActorsOption, engine_options
from .batches import Columns, EmbedBatch, EngineBatch, OnError, RankBatch, ScoreBatch, SparseBatch

__all__ = ["embed", "embed_sparse", "rank", "score"]

logger = logging.getLogger("millpond.ray")

Model = str | os.PathLike[str]


class DatasetOptions(EngineOptions, total=False):
    """What all of these functions take, as `embed` explains it; among it an engine's options."""

    on_error: OnError
    error_column: str | None
    actors: ActorsOption
    gpus: float | None
    cpus: float | None
    batch_rows: int
    ray_options: Mapping[str, Any] | None


class EmbedArguments(CallOptions, DatasetOptions, total=False):
    """And those of `Engine.embed`."""


class SparseArguments(SparseOptions, DatasetOptions, total=False):
    """And those of `Engine.embed_sparse`."""


class ScoreArguments(ScoreOptions, DatasetOptions, total=False):
    """And those of `Engine.score`."""


def embed(
    dataset: Dataset,
    model: Model,
    *,
    column: str = "text",
    output_column: str = "embedding",
    **options: Unpack[EmbedArguments],
) -> Dataset:
    """The dataset with a column of vectors: fixed-size lists, as wide as the model's.

    ```python
    ds = embed(ray.data.read_parquet("s3://…"), "BAAI/bge-base-en-v1.5", actors=(1, 8), gpus=1)
    ```

    - `model`: a name on the hub, or a folder that every machine of the cluster has.
    - `column`: the texts, strings or lists of token ids.
    - `output_column`: the column with the vectors.
    - `on_error`: a text without a vector, for it is missing, no string, too long with
      `truncate="error"`, or the model fails on it, is null, and `error_column` says why ("report",
      the default); its row is left out ("drop"); or its error ends the dataset ("raise").
    - `error_column`: `output_column` followed by `_error`, where nothing is given.
    - `task`, `prompt`, `prompt_name`, `dimensions`, `normalize`, `truncate`, `output_dtype` and
      the others of a call: as `Engine.embed`, at bulk priority. int8 and uint8 need all vectors at
      once: see `millpond.quantize`.
    - `actors`: how many, or `(least, most)`; None as the most is what the cluster has room for, as
      in the default, `(1, None)`.
    - `gpus`, `cpus`: what each actor has. Without `gpus` one where the cluster has any, else the
      CPU, on which an actor computes with `cpus` threads, or one.
    - `batch_rows`: rows that an actor is handed at a time, by default 4096, and 64 of `rank`. It
      does not change the batches of the model, which are made by tokens.
    - `ray_options`: further arguments of `Dataset.map_batches`, such as `runtime_env`.
    - `options`: the engine's, the fields of `EngineConfig`.

    A batch whose actor died is computed again by another. Raises `InvalidOption`. What is wrong
    with the model is raised when rows are asked for, as the cause of Ray's error.
    """
    output_dtype = options.get("output_dtype")
    if output_dtype in ("int8", "uint8"):
        raise InvalidOption(
            f"output_dtype={output_dtype!r} takes each dimension's range from all vectors at once: "
            "ask for float32 and call millpond.quantize on it"
        )
    return _mapped(dataset, EmbedBatch, model, (column,), output_column, CallOptions, options)


def embed_sparse(
    dataset: Dataset,
    model: Model,
    *,
    column: str = "text",
    output_column: str = "sparse",
    **options: Unpack[SparseArguments],
) -> Dataset:
    """The dataset with a column of sparse vectors, by a model such as SPLADE.

    A vector is `{"indices": list[int32], "values": list[float32]}`, the dimensions ascending.
    `task`, `prompt`, `prompt_name`, `max_active_dims`, `min_weight` and `truncate` are those of
    `Engine.embed_sparse`, everything else is as with `embed`.
    """
    return _mapped(dataset, SparseBatch, model, (column,), output_column, SparseOptions, options)


def score(
    dataset: Dataset,
    model: Model,
    *,
    query_column: str = "query",
    document_column: str = "document",
    output_column: str = "score",
    **options: Unpack[ScoreArguments],
) -> Dataset:
    """The dataset, a pair of texts a row, with a column of a reranker's scores, float32.

    A model with several labels gives a fixed-size list of them. `activation`, `prompt`,
    `prompt_name` and `truncate` are those of `Engine.score`, everything else is as with `embed`.
    """
    read = (query_column, document_column)
    return _mapped(dataset, ScoreBatch, model, read, output_column, ScoreOptions, options)


def rank(
    dataset: Dataset,
    model: Model,
    *,
    query_column: str = "query",
    documents_column: str = "documents",
    output_column: str = "ranking",
    top_n: int | None = None,
    **options: Unpack[ScoreArguments],
) -> Dataset:
    """The dataset, a query and a list of documents a row, with a column of rankings.

    A ranking is a list of `{"index": int64, "score": float32}`, the best first and at most `top_n`
    of them; `index` is the document's place in its list. A row of which one document has no score
    has no ranking, see `on_error`. Everything else is as with `score`.
    """
    require(
        top_n is None or is_count(top_n), f"top_n={top_n!r}: it must be a whole number, at least 1"
    )
    options.setdefault("batch_rows", 64)
    read = (query_column, documents_column)
    more = {"top_n": top_n}
    return _mapped(dataset, RankBatch, model, read, output_column, ScoreOptions, options, **more)


def _mapped(
    dataset: Dataset,
    batch: type[EngineBatch],
    model: Model,
    read: tuple[str, ...],
    output_column: str,
    of_call: Any,
    options: DatasetOptions,
    **more: Any,
) -> Dataset:
    """The dataset after an actor's `batch`; `of_call` has the names of the call's options."""
    if not isinstance(dataset, Dataset):
        raise InvalidOption(f"expected a Ray dataset, not {type(dataset).__name__}")
    given = cast(dict[str, Any], options)
    call = {"priority": "bulk", **_taken(given, of_call)}
    batch_rows = given.pop("batch_rows", BATCH_ROWS)
    message = f"batch_rows={batch_rows!r}: it must be a number of rows, at least 1"
    require(is_count(batch_rows), message)
    error_column = given.pop("error_column", None) or f"{output_column}_error"
    on_error = given.pop("on_error", "report")
    columns = Columns(read=read, output=output_column, error=error_column, on_error=on_error)
    pool = ActorPool(**_taken(given, ActorPool))
    engine = cast(EngineOptions, given)
    EngineConfig.of(model, engine)  # before the cluster is asked
    known = dataset.schema(fetch_if_missing=False)
    if known is not None:
        columns.require_in(known.names)
    gpus = pool.gpus_each()
    if lack := pool.lack():
        logger.warning("%s now; Ray waits for one when rows are asked for", lack)
    return dataset.map_batches(
        batch,
        batch_size=batch_rows,
        batch_format="pyarrow",
        fn_constructor_args=(os.fspath(model), engine_options(model, engine, gpus), columns, call),
        fn_constructor_kwargs=more,
        udf_modifying_row_count=columns.on_error == "drop",
        **pool.map_options(gpus),
    )


def _taken(options: dict[str, Any], declared: Any) -> dict[str, Any]:
    """Those that a class declares, taken out of the others."""
    return {name: options.pop(name) for name in declared.__annotations__.keys() & options.keys()}
