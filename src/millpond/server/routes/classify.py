"""`POST /classify` and `/predict`: the classes of texts, and of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import Request, Response

from ...engine.params.score import INTERACTIVE_PAIRS
from ...scores import Scores
from ..calls.encoding import SlicedResponse, item_slices, json_bytes
from ..calls.engine_call import Answer, model_for
from ..calls.pairs import ask_for_scores, list_slices
from ..errors import ApiError
from ..models import CLASSIFIES, ServedModel
from ..schemas.scores import ClassifyRequest, PredictRequest

__all__ = ["classify", "predict"]


async def classify(body: ClassifyRequest, request: Request) -> Response:
    """Classify texts, as vLLM does; or as infinity does, where `raw_scores` is given."""
    model = _classifier(request, body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    answer = await _classes(request, model, body, texts)
    result, is_infinity = answer.result, body.raw_scores is not None
    items = _class_lists(result) if is_infinity else _probabilities(result)
    kind = "classify" if is_infinity else "list"
    slices = list_slices(request, kind, body.model or model.name, items, answer.tokens)
    return await SlicedResponse.of(slices, answer.headers)


async def predict(body: PredictRequest, request: Request) -> Response:
    """Classify texts or pairs, as Text Embeddings Inference does."""
    model = _classifier(request, body.model)
    sequences, is_batch = _sequences(body.inputs)
    pairs_or_texts = [one[0] if len(one) == 1 else tuple(one) for one in sequences]
    answer = await _classes(request, model, body, pairs_or_texts)
    before, after = (b"[", b"]") if is_batch else (b"", b"")
    slices = item_slices(before, _class_lists(answer.result), after)
    return await SlicedResponse.of(slices, answer.headers)


def _classifier(request: Request, name: str | None) -> ServedModel:
    model = model_for(request, name, CLASSIFIES)
    model.require_text_classes()
    return model


def _sequences(inputs: str | list[str] | list[list[str]]) -> tuple[list[list[str]], bool]:
    """Lists of one text or two, and whether several were asked for.

    Raises `ApiError` 400 where some are pairs and some are not.
    """
    if isinstance(inputs, str):
        return [[inputs]], False
    sequences: list[Any] = inputs
    if isinstance(inputs[0], str):
        return [sequences], False
    if len({len(one) for one in sequences}) > 1:
        why = "some are pairs and some are single texts; send them in two requests"
        raise ApiError.about("inputs", why)
    return sequences, True


async def _classes(
    request: Request,
    model: ServedModel,
    body: ClassifyRequest | PredictRequest,
    inputs: Sequence[Any],
) -> Answer[Scores]:
    """The scores of texts, or of pairs as tuples."""
    lengths = [len(one) if isinstance(one, str) else sum(map(len, one)) for one in inputs]
    few = 1 if isinstance(inputs[0], str) else INTERACTIVE_PAIRS
    return await ask_for_scores(
        request,
        model,
        model.engine.submit_classify,
        lambda: inputs,
        lengths,
        body,
        activation="none" if body.raw_scores else "auto",
        few=few,
    )


def _class_lists(result: Scores) -> Iterator[tuple[bytes]]:
    """Of each text a list of its classes, the best first."""
    for row in result.rows:
        order = (-row).argsort(kind="stable")
        found = [{"label": result.labels[place], "score": row[place]} for place in order]
        yield (json_bytes(found),)


def _probabilities(result: Scores) -> Iterator[tuple[bytes]]:
    """Of each text vLLM's object."""
    for index, row in enumerate(result.rows):
        found = {
            "index": index,
            "label": result.labels[int(row.argmax())],
            "probs": row,
            "num_classes": len(row),
        }
        yield (json_bytes(found),)
