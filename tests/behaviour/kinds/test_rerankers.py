"""Rerankers and classifiers give what sentence-transformers' CrossEncoder gives, in any batch."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agreement import TOLERANCE, VISIBLE, off
from families import ENCODER, MAX_LENGTH
from int8 import needs_int8
from rerankers import (
    DOCUMENTS,
    PAIRS,
    QUERIES,
    RERANKERS,
    TEMPLATE,
    predicted,
    save_answering,
    save_classifier,
    save_modular,
    save_reranker,
)
from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer, pipeline

from millpond import Engine, Label, Pair, TextTooLong, UnsupportedCall, UnsupportedModel


def start(folder: Path, **options: Any) -> Engine:
    return Engine(folder, dtype="float32", device="cpu", max_length=MAX_LENGTH, **options)


def assert_as_predicted(engine: Engine, folder: Path, **options: Any) -> None:
    found, expected = engine.score(PAIRS), predicted(folder, **options)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert off(found, expected) <= TOLERANCE
    assert np.ptp(expected) > VISIBLE  # pairs are told apart


@pytest.mark.parametrize("name", RERANKERS)
def test_a_family_scores_as_sentence_transformers_does_and_bit_for_bit_in_every_batch(
    name: str, tmp_path: Path
) -> None:
    folder = save_reranker(name, tmp_path)
    with start(folder) as engine:
        info = engine.info()
        assert (info.kind, info.labels) == ("score", ("LABEL_0",))
        assert info.execution == ("padded" if name in ("deberta_v2", "mpnet") else "packed")
        assert info.batch_invariant
        assert_as_predicted(engine, folder)
        together = engine.score(PAIRS)
        alone = np.array([engine.score(pair) for pair in PAIRS[::5]])
        assert np.array_equal(alone, together[::5])
        few = engine.score(PAIRS[3:20], priority="bulk")
        assert np.array_equal(few, together[3:20])


@pytest.mark.parametrize("name", ["bert", "qwen3", "deberta_v2"])
def test_several_labels_are_scored_and_classified(name: str, tmp_path: Path) -> None:
    names = {"0": "contradiction", "1": "entailment", "2": "neutral"}
    folder = save_reranker(name, tmp_path, labels=3, id2label={int(k): v for k, v in names.items()})
    with start(folder) as engine:
        assert engine.info().kind == "classify"
        assert_as_predicted(engine, folder)
        probabilities = predicted(folder, apply_softmax=True)
        classes = engine.classify(PAIRS)
        for row, labels in zip(probabilities, classes, strict=True):
            order = np.argsort(-row)
            assert [label.name for label in labels] == [names[str(index)] for index in order]
            np.testing.assert_allclose([label.score for label in labels], row[order], atol=1e-5)
        with pytest.raises(UnsupportedCall, match="call classify"):
            engine.rank("mill", ["pond"])


def test_single_texts_are_classified_as_transformers_does(tmp_path: Path) -> None:
    folder = save_reranker("bert", tmp_path, labels=4)
    reference = CrossEncoder(str(folder), device="cpu", max_length=MAX_LENGTH)
    with torch.inference_mode():
        features = reference.preprocess(list(DOCUMENTS))
        logits = reference(features)["scores"]
    expected = torch.softmax(logits, -1).numpy()
    with start(folder) as engine:
        for row, labels in zip(expected, engine.classify(DOCUMENTS), strict=True):
            order = np.argsort(-row)
            assert [label.name for label in labels] == [f"LABEL_{index}" for index in order]
            np.testing.assert_allclose([label.score for label in labels], row[order], atol=1e-5)
        best = engine.classify(DOCUMENTS[0], top_k=1)
        assert best == engine.classify(list(DOCUMENTS))[0][:1]
        assert isinstance(best[0], Label)


def test_a_modular_reranker_scores_by_its_dense_layers(tmp_path: Path) -> None:
    folder = save_modular(tmp_path)
    with start(folder) as engine:
        assert engine.info().kind == "score"
        assert_as_predicted(engine, folder)
        together = engine.score(PAIRS)
        assert np.array_equal([engine.score(pair) for pair in PAIRS[::7]], together[::7])


@pytest.mark.parametrize("has_false", [True, False])
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_language_model_scores_by_its_answers(
    template: str | None, has_false: bool, tmp_path: Path
) -> None:
    folder = save_answering(
        tmp_path, template=template, has_false=has_false, activation_fn=torch.nn.Identity()
    )
    with start(folder) as engine:
        assert engine.info().kind == "score"
        assert_as_predicted(engine, folder)
        together = engine.score(PAIRS)
        assert np.array_equal([engine.score(pair) for pair in PAIRS[::7]], together[::7])


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gemma2", {"final_logit_softcapping": 5.0}),
        ("granite", {"logits_scaling": 3.0}),
        ("gpt_neox", {}),
    ],
)
def test_what_a_model_does_to_its_logits_is_done_to_the_answers(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_answering(tmp_path, name=name, config=config)
    with start(folder) as engine:
        assert engine.info().execution == "packed"
        assert_as_predicted(engine, folder)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_an_instruction_goes_where_sentence_transformers_puts_it(
    template: str | None, tmp_path: Path
) -> None:
    prompts = {"web": "find what answers"}
    folder = save_answering(tmp_path, template=template, prompts=prompts)
    with start(folder) as engine:
        for options in ({"prompt": "the mill: "}, {"prompt_name": "web"}):
            expected = predicted(folder, **options)
            found = engine.score(PAIRS, **options)
            assert off(found, expected) <= TOLERANCE
            assert not np.allclose(found, engine.score(PAIRS), atol=1e-3)


def test_activations_are_the_checkpoints_own_unless_the_call_names_one(tmp_path: Path) -> None:
    folder = save_reranker(
        "bert",
        tmp_path,
        sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"},
    )
    with start(folder) as engine:
        assert_as_predicted(engine, folder)
        logits = engine.score(PAIRS)
        assert np.array_equal(logits, engine.score(PAIRS, activation="none"))
        sigmoid = predicted(folder, activation_fn=torch.nn.Sigmoid())
        found = engine.score(PAIRS, activation="sigmoid")
        np.testing.assert_allclose(found, sigmoid, rtol=0, atol=TOLERANCE)


def test_a_model_of_one_label_is_ranked_best_first_and_ties_by_index(tmp_path: Path) -> None:
    folder = save_reranker("bert", tmp_path)
    reference = CrossEncoder(str(folder), device="cpu", max_length=MAX_LENGTH)
    documents = [*DOCUMENTS, *DOCUMENTS[:3]]
    with start(folder) as engine:
        ranked = engine.rank(QUERIES[1], documents)
        expected = reference.rank(QUERIES[1], list(documents))
        np.testing.assert_allclose(
            [one.score for one in ranked], [one["score"] for one in expected], atol=TOLERANCE
        )
        assert sorted(one.index for one in ranked) == list(range(len(documents)))
        keys = [(-one.score, one.index) for one in ranked]
        assert keys == sorted(keys)
        assert engine.rank(QUERIES[1], documents, top_n=3) == ranked[:3]


@pytest.mark.parametrize("name", ["bert", "roberta", "qwen3"])
def test_with_truncate_document_the_query_stays_whole(name: str, tmp_path: Path) -> None:
    folder = save_reranker(name, tmp_path)
    query = " ".join(["the stone grinds"] * 5)
    document = " ".join(["the grain of the mill"] * 30)
    with start(folder) as engine:
        tokens = engine.tokenize([query], special_tokens=False)[0]
        assert 15 <= len(tokens) <= MAX_LENGTH - 5
        words, shortest = document.split(), None
        for count in range(len(words)):
            future = engine.submit_score([(query, " ".join(words[:count]))])
            if not future.result().truncated[0]:
                shortest = " ".join(words[:count])
        assert shortest is not None
        result = engine.submit_score([(query, document)], truncate="document").result()
        assert result.truncated.tolist() == [True]
        assert result.token_counts[0] >= MAX_LENGTH - 1
        equal = engine.score((query, document)) == engine.score(
            (query, document), truncate="document"
        )
        assert equal == (len(tokens) <= (MAX_LENGTH - 4) // 2)  # else the query was cut as well
        with pytest.raises(TextTooLong, match="leaves nothing for the document"):
            engine.score((document, "mill"), truncate="document")
        with pytest.raises(TextTooLong, match="tokens are more than"):
            engine.score((query, document), truncate="error")


def test_a_template_keeps_its_query_and_its_end_with_truncate_document(tmp_path: Path) -> None:
    folder = save_answering(tmp_path, template=TEMPLATE)
    document = " ".join(["the grain of the mill"] * 30)
    with start(folder) as engine:
        result = engine.submit_score([("mill", document)], truncate="document").result()
        assert result.truncated.tolist() == [True]
        assert MAX_LENGTH - 8 <= result.token_counts[0] <= MAX_LENGTH
        tokenizer = engine._instance.inputs._tokenizers[0]
        pair = Pair("mill", document)
        ids = tokenizer.encode_pairs([pair], truncate="document").ids  # type: ignore[attr-defined]
        text = engine.detokenize([ids.tolist()])[0]
    assert text.startswith("<|im_start|>mill document: the grain of the mill the grain")
    assert text.endswith("<|im_end|>yes or no: ")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scores_of_half_precision_come_near(dtype: str, tmp_path: Path) -> None:
    folder = save_reranker("modernbert", tmp_path)
    with Engine(folder, dtype=dtype, device="cpu", max_length=MAX_LENGTH) as engine:
        found = engine.score(PAIRS, activation="none")
    expected = predicted(folder, activation_fn=torch.nn.Identity())
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@needs_int8
@pytest.mark.parametrize("kind", ["classifier", "answers"])
def test_scores_of_int8_come_near(kind: str, tmp_path: Path) -> None:
    if kind == "classifier":
        folder = save_reranker("bert", tmp_path)
    else:
        folder = save_answering(tmp_path, template=TEMPLATE)
    with Engine(folder, dtype="int8", device="cpu", max_length=MAX_LENGTH) as engine:
        found = engine.score(PAIRS, activation="none")
    expected = predicted(folder, activation_fn=torch.nn.Identity())
    assert np.corrcoef(found, expected)[0, 1] > 0.97


def test_a_template_for_pairs_takes_no_single_texts(tmp_path: Path) -> None:
    folder = save_answering(tmp_path, template=TEMPLATE)
    with start(folder) as engine:
        for call in (lambda: engine.classify("mill"), lambda: engine.tokenize(["mill"])):
            with pytest.raises(
                UnsupportedCall, match=r"takes no single texts.* Call score or rank"
            ):
                call()
        assert engine.tokenize(["mill"], special_tokens=False)[0]


def test_a_template_for_messages_of_a_user_takes_no_pairs(tmp_path: Path) -> None:
    folder = save_reranker("qwen3", tmp_path)
    template = "{% for m in messages if m.role == 'user' %}<bos>{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    with start(folder) as engine:
        with pytest.raises(UnsupportedCall, match=r"takes no pairs.* Call classify"):
            engine.score(PAIRS)
        assert engine.classify("mill")[0].name == "LABEL_0"


# What every document of a query shares.


@pytest.mark.parametrize("kind", ["answers", "classifier"])
def test_what_the_documents_of_a_query_share_is_computed_once(kind: str, tmp_path: Path) -> None:
    if kind == "answers":
        folder = save_answering(tmp_path, template=TEMPLATE)
    else:
        folder = save_reranker("qwen3", tmp_path, max_position_embeddings=1024)
    query = "the stone grinds the grain of which mill"
    documents = [f"{word} {number}" for number in range(20) for word in ("a", "mill", "pond")]
    documents += [f"water {number}" for number in range(40)]
    instruction = "find what answers the question about mills"
    options = {"dtype": "float32", "device": "cpu", "max_length": 200}
    with Engine(folder, **options) as engine:
        batches: list[Any] = []
        engine.add_stats_hook(batches.append)
        ranked = engine.rank(query, documents, prompt=instruction)
        assert len(ranked) == 100
        tokens = sum(batch.tokens for batch in batches)
        cached = sum(batch.cached_tokens for batch in batches)
        tokenizer = engine._instance.inputs._tokenizers[0]
        shared = tokenizer.shared_pair_prefix_length(query, instruction)  # type: ignore[attr-defined]
        assert shared > 16
        limits = engine._instance.runners[0].limits
        side_by_side = limits.workers + limits.query_workers  # each may compute it once
        assert cached >= (100 - side_by_side) * shared
        assert 0 < tokens - cached < tokens / 2
    with Engine(folder, prefix_cache="off", **options) as engine:
        alone = engine.score([(query, text) for text in documents], prompt=instruction)
        scores = {one.index: one.score for one in ranked}
        np.testing.assert_allclose([scores[i] for i in range(100)], alone, rtol=0, atol=TOLERANCE)


# What a folder is.


def test_a_reranker_of_qwen3_is_known_by_its_name(tmp_path: Path) -> None:
    saved = save_answering(tmp_path)
    folder = tmp_path / "Qwen3-Reranker-0.6B"
    (tmp_path / "bare").rename(folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"] |= {"yes": len(words["model"]["vocab"]) - 1, "no": 5}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    assert saved.is_dir()
    with Engine(folder, dtype="float32", device="cpu") as engine:
        info = engine.info()
        assert info.kind == "score"
        ids = engine._instance.inputs._tokenizers[0].encode_pairs([Pair("mill", "pond")]).ids
        text = engine.detokenize([ids.tolist()])[0]
    assert text.startswith("<|im_start|>system\nJudge whether the Document meets")
    assert "answer the query\n<Query>: mill\n<Document>: pond<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_an_embedder_names_the_call_that_it_answers(tmp_path: Path) -> None:
    folder = save_classifier(
        tmp_path, model="BertModel", tokenizer="word_piece", config=ENCODER, labels=2
    )
    with start(folder) as engine:
        assert engine.info().kind == "embed"
        assert engine.info().labels == ()
        for call in (
            lambda: engine.score([("a", "b")]),
            lambda: engine.rank("a", ["b"]),
            lambda: engine.classify("a"),
            lambda: engine.submit_score([("a", "b")]),
        ):
            with pytest.raises(UnsupportedCall, match="call embed"):
                call()


def test_a_head_that_needs_more_than_hidden_states_is_refused(tmp_path: Path) -> None:
    folder = save_classifier(
        tmp_path,
        model="LongformerForSequenceClassification",
        tokenizer="roberta",
        config={**ENCODER, "attention_window": [8, 8]},
        labels=1,
    )
    with pytest.raises(UnsupportedModel, match="more than the text"):
        start(folder)


# Classes of tokens.


@pytest.mark.parametrize("name", ["bert", "deberta_v2", "modernbert"])
def test_tokens_are_classified_as_transformers_does_and_bit_for_bit_in_every_batch(
    name: str, tmp_path: Path
) -> None:
    folder = save_reranker(name, tmp_path, labels=5, task="ForTokenClassification")
    words = AutoTokenizer.from_pretrained(folder)
    reference = pipeline("token-classification", str(folder), tokenizer=words, ignore_labels=[])
    texts = [text for text in DOCUMENTS if len(text) < 40]
    with Engine(folder, dtype="float32", device="cpu") as engine:
        info = engine.info()
        assert (info.kind, info.execution == "padded") == ("classify", name == "deberta_v2")
        assert info.batch_invariant
        found = engine.classify(texts)
        for text, tokens, expected in zip(texts, found, reference(texts), strict=True):
            places = [(token.name, token.start, token.end) for token in tokens]
            assert places == [(each["entity"], each["start"], each["end"]) for each in expected]
            scores = [float(each["score"]) for each in expected]
            np.testing.assert_allclose([token.score for token in tokens], scores, atol=1e-5)
            assert engine.classify(text) == tokens
        assert asyncio.run(engine.aclassify(texts)) == found
        result = engine.submit_classify(texts, activation="none").result()
        assert [len(rows) for rows in result.rows] == result.token_counts.tolist()
        for call in (
            lambda: engine.score([("a", "b")]),
            lambda: engine.rank("a", ["b"]),
            lambda: engine.classify([("a", "b")]),
            lambda: engine.embed("a"),
        ):
            with pytest.raises(UnsupportedCall, match="call classify"):
                call()


def test_tokens_that_are_cut_off_have_no_class(tmp_path: Path) -> None:
    folder = save_reranker("bert", tmp_path, labels=3, task="ForTokenClassification")
    text = " ".join(["the stone grinds the grain"] * 9)
    with start(folder) as engine:
        whole = engine.classify("the stone grinds the grain", prompt="mill: ")
        assert (whole[0].start, whole[-1].end) == (0, len("the stone grinds the grain"))
        for side in ("end", "start"):
            tokens = engine.classify(text, truncate=side)
            assert len(tokens) == MAX_LENGTH - 2
            assert (tokens[0].start == 0) == (side == "end")
            assert (tokens[-1].end == len(text)) == (side == "start")
            spans = [(token.start, token.end) for token in tokens]
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
