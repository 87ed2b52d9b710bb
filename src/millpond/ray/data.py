"""`embed`, `embed_sparse`, `score` and `rank`: a Ray dataset in, the same with new columns out.

They only describe the work: Ray does it when rows of the dataset are asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Unpack, get_args

from ray.data import Dataset

from ..config import EngineConfig, EngineOptions
from ..embeddings import OutputDType
from ..errors import InvalidOption
from .actors import BATCH_ROWS, ActorPool, ActorsOption, engine_options
from .batches import Columns, EmbedBatch, EngineBatch, OnError, RankBatch, ScoreBatch, SparseBatch
from .columns import require_columns

__all__ = ["embed", "embed_sparse", "rank", "score"]

logger = logging.getLogger("millpond.ray")

Model = str | os.PathLike[str]


def embed(
    dataset: Dataset,
    model: Model,
    *,
    column: str = "text",
    output_column: str = "embedding",
    on_error: OnError = "report",
    error_column: str | None = None,
    task: str | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    dimensions: int | None = None,
    normalize: bool | None = None,
    truncate: str | None = None,
    output_dtype: OutputDType = "float32",
    actors: ActorsOption = (1, None),
    gpus: float | None = None,
    cpus: float | None = None,
    batch_rows: int = BATCH_ROWS,
    ray_options: Mapping[str, Any] | None = None,
    **options: Unpack[EngineOptions],
) -> Dataset:
    """The dataset with a column of vectors: fixed-size lists, as wide as the model's.

    ```python
    ds = embed(ray.data.read_parquet("s3://…"), "BAAI/bge-base-en-v1.5", actors=(1, 8), gpus=1)
    ```

    - `model`: a name on the hub, or a folder that every machine of the cluster has.
    - `column`: the texts, strings or lists of token ids.
    - `on_error`: a text without a vector, for it is missing, no string, too long with
      `truncate="error"`, or the model fails on it, is null, and `error_column` says why ("report");
      its row is left out ("drop"); or its error ends the dataset ("raise").
    - `error_column`: `output_column` followed by `_error`, where nothing is given.
    - `task`, `prompt`, `prompt_name`, `dimensions`, `normalize`, `truncate`, `output_dtype`: as
      `Engine.embed`. int8 and uint8 need all vectors at once: see `millpond.quantize`.
    - `actors`: how many, or `(least, most)`; None as the most is what the cluster has room for.
    - `gpus`, `cpus`: what each actor has. Without `gpus` one where the cluster has any, else the
      CPU, on which an actor computes with `cpus` threads, or one.
    - `batch_rows`: rows that an actor is handed at a time. It does not change the batches of the
      model, which are made by tokens.
    - `ray_options`: further arguments of `Dataset.map_batches`, such as `runtime_env`.
    - `options`: the engine's, the fields of `EngineConfig`.

    A batch whose actor died is computed again by another. Raises `InvalidOption`. What is wrong
    with the model is raised when rows are asked for, as the cause of Ray's error.
    """
    if output_dtype in ("int8", "uint8"):
        raise InvalidOption(
            f"output_dtype={output_dtype!r} takes each dimension's range from all vectors at once: "
            "ask for float32 and call millpond.quantize on it"
        )
    columns = _columns((column,), output_column, error_column, on_error)
    call = {
        "task": task,
        "prompt": prompt,
        "prompt_name": prompt_name,
        "dimensions": dimensions,
        "normalize": normalize,
        "truncate": truncate,
        "output_dtype": output_dtype,
        "priority": "bulk",
    }
    pool = ActorPool(actors=actors, gpus=gpus, cpus=cpus, ray_options=ray_options or {})
    return _mapped(dataset, EmbedBatch, model, options, columns, call, pool, batch_rows)


def embed_sparse(
    dataset: Dataset,
    model: Model,
    *,
    column: str = "text",
    output_column: str = "sparse",
    on_error: OnError = "report",
    error_column: str | None = None,
    task: str | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    max_active_dims: int | None = None,
    min_weight: float = 0.0,
    truncate: str | None = None,
    actors: ActorsOption = (1, None),
    gpus: float | None = None,
    cpus: float | None = None,
    batch_rows: int = BATCH_ROWS,
    ray_options: Mapping[str, Any] | None = None,
    **options: Unpack[EngineOptions],
) -> Dataset:
    """The dataset with a column of sparse vectors, by a model such as SPLADE.

    A vector is `{"indices": list[int32], "values": list[float32]}`, the dimensions ascending.
    `task`, `prompt`, `prompt_name`, `max_active_dims`, `min_weight` and `truncate` are those of
    `Engine.embed_sparse`, everything else is as with `embed`.
    """
    columns = _columns((column,), output_column, error_column, on_error)
    call = {
        "task": task,
        "prompt": prompt,
        "prompt_name": prompt_name,
        "max_active_dims": max_active_dims,
        "min_weight": min_weight,
        "truncate": truncate,
        "priority": "bulk",
    }
    pool = ActorPool(actors=actors, gpus=gpus, cpus=cpus, ray_options=ray_options or {})
    return _mapped(dataset, SparseBatch, model, options, columns, call, pool, batch_rows)


def score(
    dataset: Dataset,
    model: Model,
    *,
    query_column: str = "query",
    document_column: str = "document",
    output_column: str = "score",
    on_error: OnError = "report",
    error_column: str | None = None,
    activation: str = "auto",
    prompt: str | None = None,
    prompt_name: str | None = None,
    truncate: str | None = None,
    actors: ActorsOption = (1, None),
    gpus: float | None = None,
    cpus: float | None = None,
    batch_rows: int = BATCH_ROWS,
    ray_options: Mapping[str, Any] | None = None,
    **options: Unpack[EngineOptions],
) -> Dataset:
    """The dataset, a pair of texts a row, with a column of a reranker's scores, float32.

    A model with several labels gives a fixed-size list of them. `activation`, `prompt`,
    `prompt_name` and `truncate` are those of `Engine.score`, everything else is as with `embed`.
    """
    columns = _columns((query_column, document_column), output_column, error_column, on_error)
    call = _score_options(activation, prompt, prompt_name, truncate)
    pool = ActorPool(actors=actors, gpus=gpus, cpus=cpus, ray_options=ray_options or {})
    return _mapped(dataset, ScoreBatch, model, options, columns, call, pool, batch_rows)


def rank(
    dataset: Dataset,
    model: Model,
    *,
    query_column: str = "query",
    documents_column: str = "documents",
    output_column: str = "ranking",
    top_n: int | None = None,
    on_error: OnError = "report",
    error_column: str | None = None,
    activation: str = "auto",
    prompt: str | None = None,
    prompt_name: str | None = None,
    truncate: str | None = None,
    actors: ActorsOption = (1, None),
    gpus: float | None = None,
    cpus: float | None = None,
    batch_rows: int = 64,
    ray_options: Mapping[str, Any] | None = None,
    **options: Unpack[EngineOptions],
) -> Dataset:
    """The dataset, a query and a list of documents a row, with a column of rankings.

    A ranking is a list of `{"index": int64, "score": float32}`, the best first and at most `top_n`
    of them; `index` is the document's place in its list. A row of which one document has no score
    has no ranking, see `on_error`. Everything else is as with `score`.
    """
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise InvalidOption(f"top_n={top_n!r}: it must be a whole number, at least 1")
    columns = _columns((query_column, documents_column), output_column, error_column, on_error)
    call = _score_options(activation, prompt, prompt_name, truncate)
    pool = ActorPool(actors=actors, gpus=gpus, cpus=cpus, ray_options=ray_options or {})
    return _mapped(dataset, RankBatch, model, options, columns, call, pool, batch_rows, top_n=top_n)


def _columns(read: tuple[str, ...], output: str, error: str | None, on_error: OnError) -> Columns:
    if on_error not in get_args(OnError):
        raise InvalidOption(f"on_error={on_error!r}: choose one of {', '.join(get_args(OnError))}")
    return Columns(read=read, output=output, error=error or f"{output}_error", on_error=on_error)


def _score_options(
    activation: str, prompt: str | None, prompt_name: str | None, truncate: str | None
) -> dict[str, Any]:
    return {
        "activation": activation,
        "prompt": prompt,
        "prompt_name": prompt_name,
        "truncate": truncate,
        "priority": "bulk",
    }


def _mapped(
    dataset: Dataset,
    batch: type[EngineBatch],
    model: Model,
    options: EngineOptions,
    columns: Columns,
    call: Mapping[str, Any],
    pool: ActorPool,
    batch_rows: int,
    **more: Any,
) -> Dataset:
    if not isinstance(dataset, Dataset):
        raise InvalidOption(f"expected a Ray dataset, not {type(dataset).__name__}")
    if isinstance(batch_rows, bool) or not isinstance(batch_rows, int) or batch_rows < 1:
        raise InvalidOption(f"batch_rows={batch_rows!r}: it must be a number of rows, at least 1")
    EngineConfig.of(model, options)  # before the cluster is asked
    known = dataset.schema(fetch_if_missing=False)
    if known is not None:
        require_columns(known.names, columns.read, columns.written)
    gpus = pool.gpus_each()
    if lack := pool.lack():
        logger.warning("%s now; Ray waits for one when rows are asked for", lack)
    return dataset.map_batches(
        batch,
        batch_size=batch_rows,
        batch_format="pyarrow",
        fn_constructor_args=(
            os.fspath(model),
            engine_options(model, options, gpus),
            columns,
            call,
        ),
        fn_constructor_kwargs=more,
        udf_modifying_row_count=columns.on_error == "drop",
        **pool.map_options(gpus),
    )
