"""A multi-vector checkpoint is read, in three formats, and what makes no sense is refused."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

from millpond import InvalidCheckpoint, InvalidOption, ModelError, UnsupportedModel
from millpond.checkpoint.input_config import QueryExpansion
from millpond.checkpoint.resolve import Checkpoint
from millpond.checkpoint.spec import ModelSpec, read_spec

NEW = "sentence_transformers.base.modules."
MULTI = "sentence_transformers.multi_vector_encoder.modules."
DENSE = {"in_features": 8, "out_features": 4, "activation_function": "torch.nn.Identity"}
ON_TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
MODULES = {
    "": (NEW + "transformer.Transformer", {"query_expansion": {"strategy": "fixed", "length": 9}}),
    "1_Dense": (NEW + "dense.Dense", {**DENSE, **ON_TOKENS}),
    "2_Mask": (MULTI + "multi_vector_mask.MultiVectorMask", {"skiplist_words": [".", ","]}),
    "3_Normalize": (NEW + "normalize.Normalize", ON_TOKENS),
}
SAVED = {"model_type": "MultiVectorEncoder", "prompts": {"query": "q: ", "document": "d: "}}
POOLING = (MULTI + "token_pooling.HierarchicalTokenPooling", {"pool_factor": 2})


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def save(root: Path, modules: dict[str, tuple[str, Any]] = MODULES, **saved: Any) -> Path:
    write(root / "config.json", {"model_type": "bert", "architectures": ["BertModel"]})
    write(root / "tokenizer.json", {})
    for folder, (kind, options) in modules.items():
        name = "sentence_bert_config.json" if kind.endswith("Transformer") else "config.json"
        write(root / folder / name, options)
    entries = [{"path": folder, "type": kind} for folder, (kind, _) in modules.items()]
    write(root / "modules.json", entries)
    write(root / "config_sentence_transformers.json", {**SAVED, **saved})
    return root


def spec_of(root: Path, **options: Any) -> ModelSpec:
    return read_spec(Checkpoint(name="m", path=root, source="folder", revision=None), **options)


def test_queries_and_documents_go_different_ways(tmp_path: Path) -> None:
    spec = spec_of(save(tmp_path))
    assert spec.kind == "multi_vector"
    assert spec.multi_vector is not None
    assert spec.multi_vector.similarity == "maxsim"
    assert spec.prompt_text(task="query") == "q: "
    assert spec.max_length_for("query") == 9
    kinds = {task: [m.kind for m in spec.route_for(task).modules] for task in ("query", None)}
    assert kinds["query"] == ["Transformer", "Dense", "Normalize"]
    assert kinds[None] == ["Transformer", "Dense", "Normalize", "MultiVectorMask"]
    assert spec.route_for(None) is spec.route_for("document")
    assert spec.route_for("document").modules[-1].options["skip_words"] == (".", ",")


def test_they_are_one_way_where_nothing_tells_them_apart(tmp_path: Path) -> None:
    modules = {**MODULES, "2_Mask": (MODULES["2_Mask"][0], {})}
    assert [route.name for route in spec_of(save(tmp_path, modules)).routes] == ["default"]


def test_the_mean_of_similarities_may_be_asked_for(tmp_path: Path) -> None:
    spec = spec_of(save(tmp_path, similarity_fn_name="meanmaxsim"))
    assert spec.multi_vector is not None
    assert spec.multi_vector.similarity == "meanmaxsim"


def test_a_dense_without_names_is_for_tokens(tmp_path: Path) -> None:
    spec = spec_of(save(tmp_path, {**MODULES, "1_Dense": (MODULES["1_Dense"][0], DENSE)}))
    assert spec.routes[0].modules[1].options["module_input_name"] == "token_embeddings"


def test_what_is_made_of_a_whole_text_is_left_out(tmp_path: Path) -> None:
    pooling = ("sentence_transformers.models.Pooling", {"pooling_mode": "mean"})
    spec = spec_of(save(tmp_path, {**MODULES, "4_Pooling": pooling}))
    assert "Pooling" not in [module.kind for module in spec.routes[0].modules]


def test_a_token_pooling_is_for_documents_and_of_its_time(tmp_path: Path) -> None:
    spec = spec_of(save(tmp_path, {**MODULES, "4_Pool": POOLING}))
    options = spec.route_for("document").modules[-1].options
    assert options == {"factor": 2.0, "protected": 1, "normalize": False}
    assert "HierarchicalTokenPooling" not in [m.kind for m in spec.route_for("query").modules]


def test_a_normalize_after_a_token_pooling_is_part_of_it(tmp_path: Path) -> None:
    modules = {name: each for name, each in MODULES.items() if name != "3_Normalize"}
    spec = spec_of(save(tmp_path, {**modules, "4_Pool": POOLING, "5_N": MODULES["3_Normalize"]}))
    assert spec.route_for("document").modules[-1].options["normalize"] is True


def test_expansion_that_nothing_scores_only_cuts(tmp_path: Path) -> None:
    modules = {name: each for name, each in MODULES.items() if name != "2_Mask"}
    spec = spec_of(save(tmp_path, modules))
    assert spec.routes[0].encoder.options["query_expansion"] is None
    assert spec.max_length_for("query") == 9


@pytest.mark.parametrize(
    ("expansion", "message"),
    [
        ("yes", "needs a strategy"),
        ({"strategy": "other", "length": 4}, "needs a strategy"),
        ({"strategy": "min"}, "length=None"),
        ({"strategy": "min", "length": True}, "length=True"),
        ({"strategy": "min", "length": 4, "token": 3}, "token=3"),
        ({"strategy": "min", "length": 4, "attend": "no"}, "attend='no'"),
    ],
)
def test_an_expansion_that_makes_no_sense_is_named(
    expansion: Any, message: str, tmp_path: Path
) -> None:
    transformer = (MODULES[""][0], {"query_expansion": expansion})
    with pytest.raises(InvalidCheckpoint, match=message):
        spec_of(save(tmp_path, {**MODULES, "": transformer}))


def test_a_query_length_below_the_expansion_is_named(tmp_path: Path) -> None:
    transformer = (MODULES[""][0], {**MODULES[""][1], "query_length": 4})
    with pytest.raises(InvalidCheckpoint, match="query_length=4"):
        spec_of(save(tmp_path, {**MODULES, "": transformer}))


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        ((MULTI + "token_pooling.LambdaTokenPooling", {}), UnsupportedModel, "LambdaTokenPooling"),
        ((POOLING[0], {"pool_factor": 0.5}), InvalidCheckpoint, r"pool_factor=0\.5"),
        ((POOLING[0], {"num_protected_tokens": "1"}), InvalidCheckpoint, "protected"),
        ((MODULES["2_Mask"][0], {"skiplist_words": [3]}), InvalidCheckpoint, "skiplist_words"),
        ((MODULES["2_Mask"][0], {}), UnsupportedModel, "two"),
        ((NEW + "other.Other", {}), UnsupportedModel, "Other"),
    ],
)
def test_modules_that_cannot_be_run_are_refused_by_name(
    module: tuple[str, Any], error: type[ModelError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        spec_of(save(tmp_path, {**MODULES, "4_More": module}))


def test_a_token_pooling_comes_last(tmp_path: Path) -> None:
    modules = {"": MODULES[""], "1_Pool": POOLING, "2_Dense": MODULES["1_Dense"]}
    with pytest.raises(UnsupportedModel, match="Dense comes after a token pooling"):
        spec_of(save(tmp_path, modules))


def test_token_vectors_are_not_those_of_other_models(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="MultiVectorMask belongs to"):
        spec_of(save(tmp_path, model_type="SentenceTransformer"))
    with pytest.raises(InvalidOption, match="a vector for each token"):
        spec_of(save(tmp_path), pooling=("mean",))


# PyLate and Stanford.

PYLATE = {
    "": ("sentence_transformers.models.Transformer", {}),
    "1_Dense": ("pylate.models.Dense.Dense", DENSE),
}


def test_pylate_s_settings_become_modules(tmp_path: Path) -> None:
    saved = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 16}
    spec = spec_of(save(tmp_path, PYLATE, model_type="ColBERT", document_length=20, **saved))
    encoder = spec.route_for("document").encoder
    assert encoder.options["query_expansion"] == QueryExpansion(length=16, is_fixed=True)
    assert encoder.options["prefix_tokens"] == ("[Q] ", "[D] ")
    assert (spec.max_length_for("query"), spec.max_length_for("document")) == (16, 20)
    assert spec.prompts == {"query": "[Q] q: ", "document": "[D] d: "}
    kinds = [module.kind for module in spec.route_for("document").modules]
    assert kinds == ["Transformer", "Dense", "Normalize", "MultiVectorMask"]
    skipped = spec.route_for("document").modules[-1].options["skip_words"]
    assert skipped == tuple(string.punctuation)


def test_a_pylate_model_without_its_type_is_known_by_its_settings(tmp_path: Path) -> None:
    modules = {"": PYLATE[""], "1_Dense": ("sentence_transformers.models.Dense", DENSE)}
    root = save(tmp_path, modules, model_type=None, query_prefix="[Q]", do_query_expansion=False)
    spec = spec_of(root)
    assert spec.kind == "multi_vector"
    assert spec.route_for("query").encoder.options["query_expansion"] is None


@pytest.mark.parametrize("name", ["query_length", "document_length"])
def test_a_length_of_pylate_s_that_is_none_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=name):
        spec_of(save(tmp_path, PYLATE, model_type="ColBERT", **{name: "long"}))


def test_stanford_s_metadata_is_read(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"model_type": "bert", "architectures": ["HF_ColBERT"]})
    write(tmp_path / "tokenizer.json", {})
    spec = spec_of(tmp_path)
    assert spec.prompts == {"query": "[unused0] ", "document": "[unused1] "}
    assert spec.max_length_for("query") == 32
    metadata = {"doc_maxlen": 180, "query_maxlen": 24, "query_token_id": "[unused5]"}
    write(tmp_path / "artifact.metadata", {**metadata, "mask_punctuation": False})
    spec = spec_of(tmp_path)
    assert spec.prompts["query"] == "[unused5] "
    assert (spec.max_length_for("query"), spec.max_length_for("document")) == (24, 180)
    assert [route.name for route in spec.routes] == ["default"]
    write(tmp_path / "artifact.metadata", {"doc_maxlen": "180"})
    with pytest.raises(InvalidCheckpoint, match="doc_maxlen"):
        spec_of(tmp_path)
