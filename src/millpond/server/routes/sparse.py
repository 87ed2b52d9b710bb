"""`POST /embed_sparse`: the weights of a text's terms."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request, Response

from ...sparse.vectors import SparseVector
from ..calls.encoding import SLICE_LENGTH, SlicedResponse, item_slices
from ..calls.engine_call import model_for
from ..calls.texts import ask_for_texts, options_of
from ..models import GIVES_SPARSE
from ..schemas.token_vectors import EmbedSparseRequest

__all__ = ["embed_sparse"]


async def embed_sparse(body: EmbedSparseRequest, request: Request) -> Response:
    """Of each text its terms by their ids, as Text Embeddings Inference gives them."""
    model = model_for(request, body.model, GIVES_SPARSE)
    options = options_of(body, "max_active_dims", "min_weight")
    answer = await ask_for_texts(request, model, model.engine.submit_sparse, body, options)
    items = (_parts(vector) for vector in answer.result.vectors)
    return await SlicedResponse.of(item_slices(b"[", items, b"]"), answer.headers)


def _parts(vector: SparseVector) -> Iterator[bytes]:
    """A JSON array of objects, in parts that do not hold the interpreter for long."""
    yield b"["
    for start in range(0, len(vector), SLICE_LENGTH):
        part = slice(start, start + SLICE_LENGTH)
        indices, values = vector.indices[part].tolist(), vector.values[part].astype(str).tolist()
        pairs = zip(indices, values, strict=True)
        written = ",".join(f'{{"index":{index},"value":{value}}}' for index, value in pairs)
        yield (b"," if start else b"") + written.encode()
    yield b"]"
