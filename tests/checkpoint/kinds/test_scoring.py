"""What kind a checkpoint is, its labels and its activation, as CrossEncoder reads them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from millpond.checkpoint.kinds.answer_rerankers import answer_reranker
from millpond.checkpoint.resolve import Checkpoint
from millpond.checkpoint.spec import ModelSpec, read_spec
from millpond.errors import InvalidCheckpoint, InvalidOption, UnsupportedModel

BASE = "sentence_transformers.base.modules"
TRANSFORMER = f"{BASE}.transformer.Transformer"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
DENSE = f"{BASE}.dense.Dense"
LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"


def write(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def write_model(
    folder: Path, architecture: str = "BertForSequenceClassification", **config: Any
) -> None:
    write(folder, "config.json", {"model_type": "bert", "architectures": [architecture], **config})
    write(folder, "tokenizer.json", {"model": {"vocab": {"yes": 7, "no": 8, "1": 9, "0": 10}}})


def write_modules(
    folder: Path, *types: str, model_type: str = "CrossEncoder", **saved: Any
) -> None:
    entries = [
        {"path": "" if index == 0 else f"{index}_{name.rpartition('.')[2]}", "type": name}
        for index, name in enumerate(types)
    ]
    write(folder, "modules.json", entries)
    write(folder, "config_sentence_transformers.json", {"model_type": model_type, **saved})


def task_config(task: str, output: str, feature: str) -> dict[str, Any]:
    return {
        "transformer_task": task,
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
        "module_output_name": feature,
    }


def spec_of(folder: Path, *, name: str | None = None, **options: Any) -> ModelSpec:
    checkpoint = Checkpoint(name=name or str(folder), path=folder, source="folder", revision=None)
    return read_spec(checkpoint, **options)


def write_classifier(folder: Path, **saved: Any) -> None:
    write_model(folder, id2label={"0": "LABEL_0"})
    write_modules(folder, TRANSFORMER, **saved)
    config = task_config("sequence-classification", "logits", "scores")
    write(folder, "sentence_bert_config.json", config)


def write_answering(folder: Path, *types: str, **score: Any) -> None:
    write_model(folder, "Qwen3ForCausalLM")
    write_modules(folder, TRANSFORMER, *(types or (LOGIT_SCORE,)))
    write(
        folder,
        "sentence_bert_config.json",
        task_config("text-generation", "logits", "causal_logits"),
    )
    write(folder / "1_LogitScore", "config.json", score)


# Labels and kinds.


@pytest.mark.parametrize(
    ("config", "kind", "labels"),
    [
        ({}, "classify", ("LABEL_0", "LABEL_1")),
        ({"id2label": {"0": "relevance"}}, "score", ("relevance",)),
        ({"num_labels": 1}, "score", ("LABEL_0",)),
        ({"id2label": {"1": "yes", "0": "no", "2": "maybe"}}, "classify", ("no", "yes", "maybe")),
        ({"num_labels": 3, "id2label": {"0": "a"}}, "classify", ("LABEL_0", "LABEL_1", "LABEL_2")),
    ],
)
def test_a_model_with_a_head_is_no_embedder(
    tmp_path: Path, config: dict[str, Any], kind: str, labels: tuple[str, ...]
) -> None:
    write_model(tmp_path, **config)
    spec = spec_of(tmp_path)
    assert spec.kind == kind
    assert spec.scoring is not None
    assert spec.scoring.labels == labels
    assert [module.options["task"] for module in spec.routes[0].modules] == [
        "sequence-classification"
    ]


def test_its_encoder_embeds_if_its_user_says_so(tmp_path: Path) -> None:
    write_model(tmp_path)
    spec = spec_of(tmp_path, pooling=("mean",))
    assert spec.kind == "embed"
    assert [module.kind for module in spec.routes[0].modules] == ["Transformer", "Pooling"]


def test_a_saved_reranker_takes_no_pooling(tmp_path: Path) -> None:
    write_classifier(tmp_path)
    with pytest.raises(InvalidOption, match="a head of its own"):
        spec_of(tmp_path, pooling=("mean",))


def test_labels_that_are_no_object_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path, id2label=["a", "b"])
    with pytest.raises(InvalidCheckpoint, match="id2label is not an object"):
        spec_of(tmp_path)


def test_a_model_with_a_class_for_each_token_classifies(tmp_path: Path) -> None:
    write_model(tmp_path, "BertForTokenClassification", id2label={"0": "O", "1": "NAME"})
    spec = spec_of(tmp_path)
    assert spec.kind == "classify"
    assert spec.scoring is not None
    assert spec.scoring.per_token
    assert spec.scoring.class_activation == "softmax"


# Activations.

IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"


@pytest.mark.parametrize(
    ("saved", "config", "activation"),
    [
        ({}, {}, "sigmoid"),
        ({}, {"id2label": {"0": "a", "1": "b"}}, "none"),
        ({"activation_fn": IDENTITY}, {}, "none"),
        ({"activation_fn": SIGMOID}, {"id2label": {"0": "a", "1": "b"}}, "sigmoid"),
        (
            {"activation_fn": "torch.nn.Tanh"},
            {"sbert_ce_default_activation_function": IDENTITY},
            "tanh",
        ),
        ({}, {"sbert_ce_default_activation_function": IDENTITY}, "none"),
        ({}, {"sentence_transformers": {"activation_fn": IDENTITY}}, "none"),
        (
            {},
            {
                "sentence_transformers": {"activation_fn": IDENTITY},
                "sbert_ce_default_activation_function": SIGMOID,
            },
            "none",
        ),
        ({}, {"sbert_ce_default_activation_function": None}, "sigmoid"),
    ],
)
def test_the_activation_is_the_one_that_is_saved_or_the_usual_one(
    tmp_path: Path, saved: dict[str, Any], config: dict[str, Any], activation: str
) -> None:
    write_classifier(tmp_path, **saved)
    write_model(tmp_path, **({"id2label": {"0": "LABEL_0"}} | config))
    scoring = spec_of(tmp_path).scoring
    assert scoring is not None
    assert scoring.activation == activation


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({"id2label": {"0": "a"}}, "sigmoid"),
        ({"id2label": {"0": "a"}, "problem_type": "regression"}, "none"),
        ({}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"sbert_ce_default_activation_function": IDENTITY}, "softmax"),
        ({"sbert_ce_default_activation_function": SIGMOID}, "sigmoid"),
    ],
)
def test_classes_have_probabilities(
    tmp_path: Path, config: dict[str, Any], activation: str
) -> None:
    write_model(tmp_path, **config)
    scoring = spec_of(tmp_path).scoring
    assert scoring is not None
    assert scoring.class_activation == activation


def test_an_activation_that_is_not_torch_s_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_classifier(tmp_path, activation_fn="own_code.Swish")
    with caplog.at_level(logging.WARNING):
        scoring = spec_of(tmp_path).scoring
    assert scoring is not None
    assert scoring.activation == "sigmoid"
    assert "own_code.Swish is not torch's own" in caplog.text


@pytest.mark.parametrize("path", ["torch.nn.GELU", "torch.optim.Sigmoid.x"])
def test_an_activation_that_is_not_known_is_refused_by_name(tmp_path: Path, path: str) -> None:
    write_classifier(tmp_path, activation_fn=path)
    with pytest.raises(UnsupportedModel, match=f"go through {path}; only"):
        spec_of(tmp_path)


def test_trusted_code_is_no_activation_either(tmp_path: Path) -> None:
    write_classifier(tmp_path, activation_fn="own_code.Sigmoid")
    with pytest.raises(UnsupportedModel, match=r"go through own_code\.Sigmoid"):
        spec_of(tmp_path, trust_remote_code=True)


# Modules.


def test_dense_layers_that_end_in_scores_are_a_reranker(tmp_path: Path) -> None:
    write_model(tmp_path, "ModernBertModel")
    write_modules(tmp_path, TRANSFORMER, POOLING, DENSE)
    write(tmp_path / "1_Pooling", "config.json", {"pooling_mode": "cls"})
    dense = {"in_features": 8, "out_features": 1, "module_output_name": "scores"}
    write(tmp_path / "2_Dense", "config.json", dense)
    spec = spec_of(tmp_path)
    assert spec.kind == "score"
    assert [module.kind for module in spec.routes[0].modules] == ["Transformer", "Pooling", "Dense"]


@pytest.mark.parametrize(("saved", "ids"), [({"false_token_id": 3}, (5, 3)), ({}, (5,))])
def test_a_language_model_with_a_logit_score_is_a_reranker(
    tmp_path: Path, saved: dict[str, Any], ids: tuple[int, ...]
) -> None:
    write_answering(tmp_path, true_token_id=5, **saved)
    spec = spec_of(tmp_path)
    assert (spec.kind, spec.scoring and spec.scoring.activation) == ("score", "sigmoid")
    (encoder,) = spec.routes[0].modules
    assert encoder.options["answer_ids"] == ids


@pytest.mark.parametrize("token", [None, -1, "yes", True])
def test_an_answer_is_a_token_id(tmp_path: Path, token: Any) -> None:
    write_answering(tmp_path, true_token_id=token)
    with pytest.raises(InvalidCheckpoint, match="true_token_id is"):
        spec_of(tmp_path)


def test_a_language_model_without_a_logit_score_gives_no_scores(tmp_path: Path) -> None:
    write_answering(tmp_path, POOLING)
    write(tmp_path / "1_Pooling", "config.json", {"pooling_mode": "cls"})
    with pytest.raises(UnsupportedModel, match=r"one LogitScore module, and this one .*Pooling"):
        spec_of(tmp_path)


def test_nothing_follows_a_model_that_gives_scores_itself(tmp_path: Path) -> None:
    write_classifier(tmp_path)
    write_modules(tmp_path, TRANSFORMER, POOLING)
    write(tmp_path / "1_Pooling", "config.json", {"pooling_mode": "cls"})
    with pytest.raises(UnsupportedModel, match="follows a model that gives scores itself"):
        spec_of(tmp_path)


def test_a_classifier_that_is_saved_as_a_sparse_encoder_is_refused(tmp_path: Path) -> None:
    write_classifier(tmp_path, model_type="SparseEncoder")
    with pytest.raises(UnsupportedModel, match="gives no sparse vector"):
        spec_of(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [("SentenceTransformer", "give scores"), ("CrossEncoder", "no scores")],
)
def test_modules_that_contradict_what_a_model_is_saved_as_are_refused(
    tmp_path: Path, model_type: str, message: str
) -> None:
    if model_type == "SentenceTransformer":
        write_classifier(tmp_path, model_type=model_type)
    else:
        write_model(tmp_path, "BertModel")
        write_modules(tmp_path, TRANSFORMER, POOLING)
        write(tmp_path / "1_Pooling", "config.json", {"pooling_mode": "cls"})
    with pytest.raises(UnsupportedModel, match=message):
        spec_of(tmp_path)


# Rerankers that their name alone tells.


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", (7, 8)),
        ("mixedbread-ai/mxbai-rerank-large-v2", (9, 10)),
    ],
)
def test_a_language_model_is_known_as_a_reranker_by_its_name(
    tmp_path: Path, name: str, ids: tuple[int, int]
) -> None:
    write_model(tmp_path, "Qwen3ForCausalLM")
    spec = spec_of(tmp_path, name=name)
    assert spec.kind == "score"
    options = spec.routes[0].encoder.options
    assert options["answer_ids"] == ids
    assert "query" in options["chat"]["arguments"]["chat_template"]
    assert spec_of(tmp_path, name="Qwen/Qwen3-Embedding-0.6B").kind == "embed"


def test_a_converted_reranker_keeps_its_head_and_has_the_template(tmp_path: Path) -> None:
    write_model(tmp_path, "Qwen3ForSequenceClassification", id2label={"0": "LABEL_0"})
    spec = spec_of(tmp_path, name="tomaarsen/Qwen3-Reranker-0.6B-seq-cls")
    options = spec.routes[0].encoder.options
    assert options["task"] == "sequence-classification"
    assert "answer_ids" not in options
    assert "<Document>" in options["chat"]["arguments"]["chat_template"]


def test_a_reranker_without_its_answers_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, "Qwen3ForCausalLM")
    write(tmp_path, "tokenizer.json", {"model": {"vocab": {"yes": 7}}})
    with pytest.raises(InvalidCheckpoint, match="no token 'yes' or none 'no'"):
        spec_of(tmp_path, name="Qwen/Qwen3-Reranker-0.6B")


def test_an_embedder_is_no_reranker_whatever_it_is_called() -> None:
    assert answer_reranker("Qwen3-Reranker-0.6B", {"architectures": ["Qwen3Model"]}) is None
    assert answer_reranker("mxbai-rerank-base-v1", {"architectures": ["Qwen2ForCausalLM"]}) is None
