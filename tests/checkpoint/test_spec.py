"""What read_spec makes of the files of a checkpoint, in every spelling they come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from millpond.checkpoint.resolve import Checkpoint
from millpond.checkpoint.spec import ModelSpec, read_spec
from millpond.errors import (
    InvalidCheckpoint,
    InvalidOption,
    UnknownPrompt,
    UnknownTask,
    UnsupportedModel,
)

OLD = "sentence_transformers.models."
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Router": "sentence_transformers.base.modules.router.Router",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "StaticEmbedding": (
        "sentence_transformers.sentence_transformer.modules.static_embedding.StaticEmbedding"
    ),
}
DENSE = {"in_features": 8, "out_features": 4}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def write_encoder(folder: Path, **config: Any) -> None:
    write(folder / "config.json", {"model_type": "bert", **config})
    write(folder / "tokenizer.json", {})


def write_model(root: Path, *modules: tuple[str, str], **config: Any) -> None:
    """A checkpoint of (path, type) modules; a type without a dot is one of the old spelling."""
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": kind if "." in kind else OLD + kind}
        for i, (path, kind) in enumerate(modules)
    ]
    write(root / "modules.json", entries)
    write(root / "config_sentence_transformers.json", config)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A Transformer with mean Pooling in the oldest spelling."""
    write_encoder(tmp_path)
    write_model(tmp_path, ("", "Transformer"), ("1_Pooling", "Pooling"))
    write(tmp_path / "1_Pooling/config.json", {"word_embedding_dimension": 8})
    return tmp_path


def spec_of(root: Path, name: str = "org/model", **options: Any) -> ModelSpec:
    checkpoint = Checkpoint(name=name, path=root, source="folder", revision=None)
    return read_spec(checkpoint, **options)


def kinds(spec: ModelSpec, task: str | None = None) -> list[str]:
    return [module.kind for module in spec.route_for(task).modules]


def test_old_and_new_module_types_are_the_same(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    write(tmp_path / "1_Pooling/config.json", {"pooling_mode": "cls", "embedding_dimension": 8})
    write(tmp_path / "2_Dense/config.json", DENSE)
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_N"}
    read = []
    for spelling in (OLD + "{}", None):
        types = [(p, spelling.format(k) if spelling else NEW[k]) for k, p in paths.items()]
        write_model(tmp_path, *types)
        route = spec_of(tmp_path).route_for(None)
        read.append([(module.kind, module.path, module.options) for module in route.modules])
    assert read[0] == read[1]
    assert [kind for kind, _, _ in read[0]] == list(paths)


@pytest.mark.parametrize(
    ("saved", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}, ("mean",)),
        (
            {
                "pooling_mode_lasttoken": True,
                "pooling_mode_weightedmean_tokens": True,
                "pooling_mode_mean_sqrt_len_tokens": True,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_max_tokens": True,
                "pooling_mode_cls_token": True,
            },
            ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"),
        ),
        ({"pooling_mode": "lasttoken", "pooling_mode_cls_token": True}, ("lasttoken",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({}, ("mean",)),
    ],
)
def test_pooling_modes(root: Path, saved: dict[str, Any], modes: tuple[str, ...]) -> None:
    write(root / "1_Pooling/config.json", saved)
    pooling = spec_of(root).route_for(None).modules[1]
    assert pooling.options == {"modes": modes, "include_prompt": True}


@pytest.mark.parametrize("mode", ["first", [], ["mean", "first"], 3, None])
def test_an_unknown_pooling_mode_is_an_error(root: Path, mode: Any) -> None:
    write(root / "1_Pooling/config.json", {"pooling_mode": mode})
    with pytest.raises(InvalidCheckpoint, match=r"1_Pooling.*pooling_mode"):
        spec_of(root)


def test_the_pooling_option_replaces_the_modes_and_nothing_else(root: Path) -> None:
    write(root / "1_Pooling/config.json", {"pooling_mode": "max", "include_prompt": False})
    pooling = spec_of(root, pooling=("cls", "mean")).route_for(None).modules[1]
    assert pooling.options == {"modes": ("cls", "mean"), "include_prompt": False}


def test_a_transformer_needs_a_pooling_or_the_option(root: Path) -> None:
    write_model(root, ("", "Transformer"), ("1_Normalize", "Normalize"))
    with pytest.raises(InvalidCheckpoint, match="no Pooling"):
        spec_of(root)
    assert kinds(spec_of(root, pooling=("mean",))) == ["Transformer", "Pooling", "Normalize"]


def test_instructor_models_leave_the_prompt_out(root: Path) -> None:
    for name, included in (("hkunlp/instructor-large", False), ("org/instructor-large", True)):
        pooling = spec_of(root, name).route_for(None).modules[1]
        assert pooling.options["include_prompt"] is included


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"architectures": ["BertModel"]}, "mean"),
        ({}, "mean"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "lasttoken"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "mean"),
    ],
)
def test_without_modules_json(tmp_path: Path, config: dict[str, Any], mode: str) -> None:
    write_encoder(tmp_path, **config)
    write(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    spec = spec_of(tmp_path)
    assert kinds(spec) == ["Transformer", "Pooling"]
    assert spec.route_for(None).modules[1].options["modes"] == (mode,)
    assert spec.prompts == {}


def test_transformer_options(root: Path) -> None:
    saved = {
        "max_seq_length": 64,
        "do_lower_case": True,
        "query_length": 16,
        "model_args": {"add_pooling_layer": False, "trust_remote_code": True, "dtype": "float16"},
        "config_args": {"rope_theta": 5.0, "trust_remote_code": True},
        "tokenizer_args": {"padding_side": "left"},
    }
    write(root / "sentence_bert_config.json", saved)
    spec = spec_of(root)
    options = spec.route_for(None).encoder.options
    assert (options["max_seq_length"], options["do_lower_case"]) == (64, True)
    assert options["model_kwargs"] == {"add_pooling_layer": False}
    assert options["config_kwargs"] == {"rope_theta": 5.0}
    assert options["processor_kwargs"] == {"padding_side": "left"}
    lengths = [spec.max_length_for(task) for task in (None, "query", "document")]
    assert lengths == [None, 16, None]


def test_the_length_of_every_tokenizer_call_goes_over_those_of_tasks(root: Path) -> None:
    text = {"max_length": 32, "padding": "max_length", "truncation": True}
    saved = {"query_length": 16, "processing_kwargs": {"text": text}}
    write(root / "sentence_bert_config.json", saved)
    spec = spec_of(root)
    assert [spec.max_length_for(task) for task in (None, "query", "document")] == [32, 32, 32]


@pytest.mark.parametrize(
    "name", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"]
)
def test_legacy_names_of_the_transformer_config(root: Path, name: str) -> None:
    write(root / "sentence_bert_config.json", {})
    write(root / f"sentence_{name}_config.json", {"max_seq_length": 77})
    assert spec_of(root).route_for(None).encoder.options["max_seq_length"] == 77


TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"modality_config": {"text": TEXT, "image": TEXT, "message": TEXT}}, "for image too"),
        ({"modality_config": {"image+text": TEXT, "text": TEXT, "message": TEXT}}, "text too"),
        ({"modality_config": {"message": {**TEXT, "method": "get_features"}}}, "get_features"),
        (
            {
                "modality_config": {"text": TEXT, "message": TEXT},
                "processing_kwargs": {"chat_template": {"sanitize_control_tokens": True}},
            },
            "sanitize_control_tokens",
        ),
        ({"processing_kwargs": {"common": {"truncation": False}}}, "truncation=False"),
        ({"modality_config": {"image": TEXT}}, "no text"),
        ({"modality_config": {"text": {**TEXT, "method": "get_text_features"}}}, "forward"),
        ({"modality_config": {"text": {**TEXT, "method_output_name": "pooler_output"}}}, "pooler"),
        ({"modality_config": {"text": TEXT}, "module_output_name": "sentence_embedding"}, "as"),
        ({"transformer_task": "fill-mask"}, "SparseEncoder"),
        ({"query_expansion": {"strategy": "fixed", "length": 4}}, "MultiVectorEncoder"),
        ({"tokenizer_name_or_path": "bert-base-uncased"}, "tokenizer_name_or_path"),
        ({"processing_kwargs": {"text": {"add_special_tokens": False}}}, "add_special_tokens"),
    ],
)
def test_transformers_that_cannot_be_run(root: Path, saved: dict[str, Any], words: str) -> None:
    write(root / "sentence_bert_config.json", {"module_output_name": "token_embeddings", **saved})
    with pytest.raises(UnsupportedModel, match=words):
        spec_of(root)


def test_text_among_other_modalities_is_enough(root: Path) -> None:
    saved = {"modality_config": {"text": TEXT, "image": TEXT}}
    saved["module_output_name"] = "token_embeddings"  # type: ignore[assignment]
    write(root / "sentence_bert_config.json", saved)
    assert kinds(spec_of(root)) == ["Transformer", "Pooling"]


def test_folders_that_are_no_text_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no config\.json"):
        spec_of(tmp_path)
    write(tmp_path / "config.json", {"hidden_size": 8})
    with pytest.raises(UnsupportedModel, match="model_type"):
        spec_of(tmp_path)
    write(tmp_path / "config.json", {"model_type": "vit"})
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.json"):
        spec_of(tmp_path)
    write(tmp_path / "preprocessor_config.json", {})
    with pytest.raises(UnsupportedModel, match="images or sound"):
        spec_of(tmp_path)
    write(tmp_path / "tokenizer.json", {})
    write(tmp_path / "config.json", {"model_type": "clip", "vision_config": {"x": 1}})
    with pytest.raises(UnsupportedModel, match="vision_config"):
        spec_of(tmp_path)
    write(tmp_path / "config.json", {"model_type": "model2vec"})
    with pytest.raises(UnsupportedModel, match="StaticEmbedding"):
        spec_of(tmp_path)


def chat_of(spec: ModelSpec) -> Any:
    return spec.route_for(None).encoder.options["chat"]


def test_messages_saved_with_a_checkpoint(root: Path) -> None:
    saved = {
        "modality_config": {"text": TEXT, "message": {**TEXT, "format": "flat"}},
        "module_output_name": "token_embeddings",
        "processing_kwargs": {
            "chat_template": {"enable_thinking": False, "restore_suffix": False, "padding": True}
        },
    }
    write(root / "sentence_bert_config.json", saved)
    assert chat_of(spec_of(root)) == {
        "format": "flat",
        "arguments": {"enable_thinking": False},
        "restore_suffix": False,
        "required": True,
    }
    saved["modality_config"]["message"]["format"] = "square"  # type: ignore[index]
    write(root / "sentence_bert_config.json", saved)
    with pytest.raises(InvalidCheckpoint, match="'square'"):
        spec_of(root)


def test_a_checkpoint_older_than_messages_takes_plain_text(root: Path) -> None:
    write(root / "chat_template.jinja", "{{ messages }}")
    assert chat_of(spec_of(root)) is None
    plain = {"modality_config": {"text": TEXT}, "module_output_name": "token_embeddings"}
    write(root / "sentence_bert_config.json", plain)
    assert chat_of(spec_of(root)) is None


def test_without_modules_json_a_chat_template_is_used_if_there_is_one(tmp_path: Path) -> None:
    write_encoder(tmp_path, architectures=["Qwen3ForCausalLM"])
    options = chat_of(spec_of(tmp_path))
    assert (options["format"], options["required"]) == ("auto", False)
    assert chat_of(spec_of(tmp_path, pooling=("mean",))) == options


@pytest.mark.parametrize(
    ("message", "lengths"),
    [(False, [60, 60, 60]), (True, [40, 40, 40])],
    ids=["text", "message"],
)
def test_which_length_of_the_tokenizer_calls_wins(
    root: Path, message: bool, lengths: list[int]
) -> None:
    """As the buckets meet in one call: `common` wins for text, the template's own for messages."""
    saved = {
        "modality_config": {"text": TEXT, **({"message": TEXT} if message else {})},
        "module_output_name": "token_embeddings",
        "query_length": 30,
        "processing_kwargs": {
            "common": {"max_length": 60},
            "text": {"max_length": 50},
            "chat_template": {"max_length": 40},
        },
    }
    write(root / "sentence_bert_config.json", saved)
    spec = spec_of(root)
    assert [spec.max_length_for(task) for task in (None, "query", "document")] == lengths


def test_a_length_for_all_messages_is_behind_that_of_a_task(root: Path) -> None:
    saved = {
        "modality_config": {"text": TEXT, "message": TEXT},
        "module_output_name": "token_embeddings",
        "query_length": 30,
        "processing_kwargs": {"common": {"max_length": 60}},
    }
    write(root / "sentence_bert_config.json", saved)
    spec = spec_of(root)
    assert [spec.max_length_for(task) for task in (None, "query", "document")] == [60, 30, 60]


def test_an_adapter_has_to_be_merged(root: Path) -> None:
    write(root / "adapter_config.json", {})
    with pytest.raises(UnsupportedModel, match="merge"):
        spec_of(root)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [("SparseEncoder", "gives no sparse vector"), ("CrossEncoder", "CrossEncoder")],
)
def test_modules_that_are_none_of_the_model_type_are_refused(
    root: Path, model_type: str, message: str
) -> None:
    write(root / "config_sentence_transformers.json", {"model_type": model_type})
    with pytest.raises(UnsupportedModel, match=message):
        spec_of(root)


@pytest.mark.parametrize(
    "class_name",
    [
        OLD + "BoW",
        OLD + "CLIPModel",
        OLD + "custom",
        "sentence_transformers.sparse_encoder.models.SpladePooling",
    ],
)
def test_unknown_modules_are_refused_by_name(root: Path, class_name: str) -> None:
    write_model(root, ("", "Transformer"), ("1_Pooling", "Pooling"), ("2", class_name))
    with pytest.raises(UnsupportedModel, match=class_name):
        spec_of(root, trust_remote_code=True)


def test_modules_with_code_of_their_own_need_trust(root: Path) -> None:
    write_model(root, ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Own", "own_code.Whiten"))
    write(root / "2_Own/config.json", {"rank": 2})
    with pytest.raises(UnsupportedModel, match=r"own_code\.Whiten.*trust_remote_code"):
        spec_of(root)
    module = spec_of(root, trust_remote_code=True).route_for(None).modules[-1]
    assert (module.kind, module.class_name) == ("custom", "own_code.Whiten")
    assert module.options == {"rank": 2}


def test_code_of_its_own_cannot_read_the_text(root: Path) -> None:
    write_model(root, ("", "custom_st.Transformer"), ("1_Pooling", "Pooling"))
    with pytest.raises(UnsupportedModel, match=r"custom_st\.Transformer"):
        spec_of(root, trust_remote_code=True)


@pytest.mark.parametrize("path", ["..", "../other", "/etc", "C:\\x", "a\\..\\b", None, 3])
def test_paths_stay_inside_the_checkpoint(root: Path, path: Any) -> None:
    write_model(root, ("", "Transformer"), (path, "Pooling"))
    with pytest.raises(InvalidCheckpoint, match="inside the checkpoint"):
        spec_of(root)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '["x"]', '[{"path": ""}]', "3"])
def test_a_damaged_modules_json_is_named(root: Path, content: str) -> None:
    write(root / "modules.json", content)
    with pytest.raises(InvalidCheckpoint, match=r"modules\.json"):
        spec_of(root)


def test_a_missing_config_of_a_module_is_named(root: Path) -> None:
    (root / "1_Pooling/config.json").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"1_Pooling/config\.json is missing"):
        spec_of(root)


def dense_options(root: Path, saved: dict[str, Any], **options: Any) -> Any:
    write_model(root, ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
    write(root / "2_Dense/config.json", saved)
    return spec_of(root, **options).route_for(None).modules[-1].options


def test_dense_defaults(root: Path) -> None:
    assert dense_options(root, {**DENSE, "from_another_library": 1}) == {
        "in_features": 8,
        "out_features": 4,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
        "use_residual": False,
        "module_input_name": "sentence_embedding",
        "module_output_name": "sentence_embedding",
    }


def test_dense_on_tokens(root: Path) -> None:
    options = dense_options(root, {**DENSE, "module_input_name": "token_embeddings"})
    assert options["module_output_name"] == "token_embeddings"
    with pytest.raises(UnsupportedModel, match="all_layers"):
        dense_options(root, {**DENSE, "module_input_name": "all_layers"})


def test_dense_activation(root: Path) -> None:
    def activation(name: Any, **options: Any) -> Any:
        saved = {**DENSE, "activation_function": name}
        return dense_options(root, saved, **options)["activation_function"]

    identity = "torch.nn.modules.linear.Identity"
    assert activation(identity) == identity
    assert activation("own_code.Swish").endswith(".Tanh")
    assert activation("own_code.Swish", trust_remote_code=True) == "own_code.Swish"
    for name in ("torch.load", "torch.nn.functional.tanh", "torch.nn.NoSuch", None):
        with pytest.raises(InvalidCheckpoint, match="activation_function"):
            activation(name)


@pytest.mark.parametrize("saved", [{}, {"in_features": 8}, {**DENSE, "out_features": "4"}])
def test_dense_without_sizes_is_an_error(root: Path, saved: dict[str, Any]) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"2_Dense.*features"):
        dense_options(root, saved)


def test_weighted_layers_count_only_where_the_transformer_shows_them(root: Path) -> None:
    write_model(
        root, ("", "Transformer"), ("1_W", "WeightedLayerPooling"), ("1_Pooling", "Pooling")
    )
    write(root / "1_W/config.json", {"word_embedding_dimension": 8, "num_hidden_layers": 2})
    assert kinds(spec_of(root)) == ["Transformer", "Pooling"]
    write_encoder(root, output_hidden_states=True)
    spec = spec_of(root)
    assert kinds(spec) == ["Transformer", "WeightedLayerPooling", "Pooling"]
    assert spec.routes[0].modules[1].options == {"layer_start": 4, "num_hidden_layers": 2}


def test_static_embedding(tmp_path: Path) -> None:
    write_model(tmp_path, (".", "StaticEmbedding"), ("1_Normalize", "Normalize"))
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.json"):
        spec_of(tmp_path)
    write(tmp_path / "tokenizer.json", {})
    assert kinds(spec_of(tmp_path, pooling=("mean",))) == ["StaticEmbedding", "Normalize"]
    with pytest.raises(InvalidOption, match="always takes the mean"):
        spec_of(tmp_path, pooling=("cls",))


def test_saved_settings(root: Path) -> None:
    write_model(
        root,
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        prompts={"query": "q: ", "document": None},
        similarity_fn_name="dot",
        truncate_dim=4,
    )
    spec = spec_of(root, prompts={"query": "own: ", "other": "o: "})
    assert spec.prompts == {"query": "own: ", "document": "", "other": "o: "}
    assert (spec.similarity_fn_name, spec.truncate_dim) == ("dot", 4)


def with_prompts(root: Path, prompts: dict[str, str], default: str | None = None) -> ModelSpec:
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"))
    write_model(root, *modules, prompts=prompts, default_prompt_name=default)
    return spec_of(root)


def test_which_prompt_wins(root: Path) -> None:
    saved = {"query": "q: ", "passage": "p: ", "corpus": "c: ", "usual": "u: "}
    spec = with_prompts(root, saved, "usual")
    assert spec.prompt_text(task="query", prompt="own: ", prompt_name="corpus") == "own: "
    assert spec.prompt_text(task="query", prompt="") == ""
    assert spec.prompt_text(task="query", prompt_name="corpus") == "c: "
    assert spec.prompt_text(task="query") == "q: "
    assert spec.prompt_text(task="document") == "p: "
    assert spec.prompt_text(task="clustering") == "u: "
    assert spec.prompt_text() == "u: "


def test_a_query_without_a_prompt_does_not_get_the_default_one(root: Path) -> None:
    spec = with_prompts(root, {"usual": "u: "}, "usual")
    assert spec.prompt_text(task="query") == ""
    assert spec.prompt_text(task="document") == ""
    assert spec.prompt_text(prompt_name="query") == ""


def test_an_unknown_prompt_lists_the_known_ones(root: Path) -> None:
    spec = with_prompts(root, {"query": "q: ", "passage": "p: "})
    with pytest.raises(UnknownPrompt, match="'passage'"):
        spec.prompt_text(prompt_name="pasage")


def test_a_default_prompt_has_to_exist(root: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match="default_prompt_name is 'usual'"):
        with_prompts(root, {"query": "q: "}, "usual")
    spec = spec_of(root, prompts={"usual": "u: "})
    assert spec.prompt_text() == "u: "
    assert with_prompts(root, {}, "query").prompt_text() == ""


def write_router(
    root: Path, structure: dict[str, list[str]], *, path: str = "", **parameters: Any
) -> None:
    """A Router at `path` whose modules are named by what follows the last underscore."""
    folder = root / path
    types = {}
    for module_id in {name: None for names in structure.values() for name in names}:
        kind = module_id.rpartition("_")[2]
        types[module_id] = NEW.get(kind, OLD + kind)
        if kind == "Transformer":
            write_encoder(folder / module_id)
        elif kind == "StaticEmbedding":
            write(folder / module_id / "tokenizer.json", {})
        else:
            write(folder / module_id / "config.json", DENSE)
    config = {"types": types, "structure": structure, "parameters": parameters}
    write(folder / "router_config.json", config)


TWO_ENCODERS = {
    "query": ["query_0_StaticEmbedding"],
    "document": ["document_0_Transformer", "document_1_Pooling"],
}


def test_a_router_gives_a_flat_route_for_each_task(tmp_path: Path) -> None:
    write_router(tmp_path, TWO_ENCODERS, default_route="document")
    write_model(tmp_path, ("", NEW["Router"]), ("1_Normalize", "Normalize"))
    spec = spec_of(tmp_path)
    assert [route.name for route in spec.routes] == ["query", "document"]
    assert kinds(spec, "query") == ["StaticEmbedding", "Normalize"]
    assert kinds(spec, "document") == ["Transformer", "Pooling", "Normalize"]
    assert spec.route_for(None).name == "document"
    assert spec.route_for("query").encoder.path == tmp_path / "query_0_StaticEmbedding"
    with pytest.raises(UnknownTask, match="'document', 'query'"):
        spec.route_for("passage")


def test_without_a_default_route_the_first_one_is_it_unless_forbidden(tmp_path: Path) -> None:
    write_model(tmp_path, ("", NEW["Router"]))
    write_router(tmp_path, TWO_ENCODERS)
    assert spec_of(tmp_path).route_for(None).name == "query"
    write_router(tmp_path, TWO_ENCODERS, allow_empty_key=False)
    with pytest.raises(UnknownTask, match="a task has to be named"):
        spec_of(tmp_path).route_for(None)


def test_the_old_asym_is_a_router(tmp_path: Path) -> None:
    write_router(tmp_path, TWO_ENCODERS, allow_empty_key=True)
    (tmp_path / "router_config.json").rename(tmp_path / "config.json")
    write_model(tmp_path, ("", "Asym"))
    assert kinds(spec_of(tmp_path), "document") == ["Transformer", "Pooling"]


def test_a_router_after_the_pooling(root: Path) -> None:
    structure = {"query": ["query_0_Dense"], "document": ["document_0_Dense", "query_0_Dense"]}
    write_router(root, structure, path="2_Router")
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Router", NEW["Router"]))
    write_model(root, *modules, ("3_Normalize", "Normalize"))
    spec = spec_of(root)
    assert kinds(spec, "query") == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert kinds(spec, "document") == ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    assert spec.route_for("query").modules[2] == spec.route_for("document").modules[3]


def test_routes_that_are_the_same_collapse(root: Path) -> None:
    structure = {"query": ["shared_0_Dense"], "document": ["shared_0_Dense"]}
    write_router(root, structure, path="2_Router")
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Router", NEW["Router"]))
    write_model(root, *modules)
    spec = spec_of(root)
    assert [route.name for route in spec.routes] == ["default"]
    assert spec.route_for("query") is spec.route_for("document") is spec.route_for(None)


@pytest.mark.parametrize(
    ("mappings", "expected"),
    [
        ({"('query', 'text')": "document"}, {"query": "document", "document": "document"}),
        (
            {"('query', None)": "document", "(None, 'text')": "query"},
            {"query": "document", "document": "query", "other": "query", None: "query"},
        ),
        ({"(None, None)": "query"}, {"document": "query", "other": "query", None: "query"}),
        (
            {"('search', 'text')": "query", "(None, 'image')": "document"},
            {"search": "query", "query": "query", None: "query"},
        ),
        ({"(broken": "query"}, {"query": "query", "document": "document", None: "query"}),
    ],
)
def test_route_mappings_in_order_of_how_exact_they_are(
    tmp_path: Path, mappings: dict[str, str], expected: dict[str | None, str]
) -> None:
    write_router(tmp_path, TWO_ENCODERS, route_mappings=mappings)
    write_model(tmp_path, ("", NEW["Router"]))
    spec = spec_of(tmp_path)
    encoders = {"query": "StaticEmbedding", "document": "Transformer"}
    found = {task: spec.route_for(task).encoder.kind for task in expected}
    assert found == {task: encoders[name] for task, name in expected.items()}


def test_routes_for_images_are_left_unread(tmp_path: Path) -> None:
    structure = {"text": ["text_0_StaticEmbedding"], "image": ["image_0_CLIPModel"]}
    write_router(tmp_path, structure)
    write_model(tmp_path, ("", NEW["Router"]))
    spec = spec_of(tmp_path)
    assert spec.route_for(None).encoder.kind == "StaticEmbedding"
    assert len(spec.routes) == 1


def test_a_router_inside_a_router(tmp_path: Path) -> None:
    inner = {"query": ["a_0_StaticEmbedding"], "document": ["b_0_StaticEmbedding"]}
    write_router(tmp_path, inner, path="text_0_Router")
    types = {"text_0_Router": NEW["Router"]}
    config = {"types": types, "structure": {"text": ["text_0_Router"]}, "parameters": {}}
    write(tmp_path / "router_config.json", config)
    write_model(tmp_path, ("", NEW["Router"]))
    spec = spec_of(tmp_path)
    assert [route.name for route in spec.routes] == ["text/query", "text/document"]
    assert spec.route_for("document").encoder.path.name == "b_0_StaticEmbedding"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"types": {}, "structure": {}},
        {"types": {}, "structure": {"query": ["nothing"]}},
        {"types": {"../x": OLD + "Dense"}, "structure": {"query": ["../x"]}},
    ],
)
def test_a_damaged_router_is_an_error(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path / "router_config.json", config)
    write_model(tmp_path, ("", NEW["Router"]))
    with pytest.raises(InvalidCheckpoint, match=r"router_config\.json"):
        spec_of(tmp_path)


@pytest.mark.parametrize(
    "parameters", [{"default_route": "gone"}, {"route_mappings": {"(None, None)": "gone"}}]
)
def test_a_router_to_a_route_that_is_not_there(tmp_path: Path, parameters: Any) -> None:
    write_router(tmp_path, TWO_ENCODERS, **parameters)
    write_model(tmp_path, ("", NEW["Router"]))
    with pytest.raises(InvalidCheckpoint, match="there is no route 'gone'"):
        spec_of(tmp_path)


@pytest.mark.parametrize(
    "architecture",
    [
        "RobertaForQuestionAnswering",
        "BertForMultipleChoice",
    ],
)
def test_a_model_for_another_task_is_no_embedder_unless_its_user_says_so(
    tmp_path: Path, architecture: str
) -> None:
    write_encoder(tmp_path, architectures=[architecture])
    with pytest.raises(UnsupportedModel, match=rf"{architecture}, which gives .*no embeddings"):
        spec_of(tmp_path)
    assert kinds(spec_of(tmp_path, pooling=("mean",))) == ["Transformer", "Pooling"]
    write_model(tmp_path, ("", "Transformer"), ("1_Pooling", "Pooling"))
    write(tmp_path / "1_Pooling/config.json", {"word_embedding_dimension": 8})
    assert kinds(spec_of(tmp_path)) == ["Transformer", "Pooling"]


@pytest.mark.parametrize("architecture", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_a_language_model_is_an_embedder(tmp_path: Path, architecture: str) -> None:
    write_encoder(tmp_path, architectures=[architecture])
    assert kinds(spec_of(tmp_path)) == ["Transformer", "Pooling"]


def test_code_of_its_own_in_place_of_the_transformer_is_refused_with_trust_too(root: Path) -> None:
    """As jina-embeddings-v3 has it."""
    modules = json.loads((root / "modules.json").read_text())
    modules[0] |= {"type": "custom_st.Transformer", "kwargs": ["task"]}
    write(root / "modules.json", modules)
    for trust in (False, True):
        with pytest.raises(UnsupportedModel, match=r"custom_st.Transformer.*would not help"):
            spec_of(root, trust_remote_code=trust)
