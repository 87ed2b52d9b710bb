"""The real client of the hub, against one on this machine: what is asked for, and how often."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from checkpoints import save_checkpoint
from families import WIDTH
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

NAME, COMMIT = "acme/x", "a" * 40
BY_TRANSFORMERS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
PROGRAM = """
import json, logging
logging.basicConfig()
from millpond import Engine
with Engine("acme/x", device="cpu", dtype="float32") as engine:
    vector = engine.embed("a text", task="query")
    spec = engine.info().model
    print(json.dumps({
        "modules": [module.kind for module in spec.routes[0].modules],
        "length": float((vector ** 2).sum()),
        "prompts": dict(spec.prompts),
    }))
"""


class LocalHub(ThreadingHTTPServer):
    """Serves folders as repositories with one commit each, and keeps what it was asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.repositories = {NAME: folder}
        self.asked: list[str] = []
        self.stalls_in: str | None = None
        """A file of which half is sent, and then nothing until the hub is gone."""
        self.gone = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        headers, path = {"X-Repo-Commit": COMMIT}, self.path.partition("?")[0]
        repository, folder = next(
            (name, folder) for name, folder in self.server.repositories.items() if name in path
        )
        files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
        names = [file.relative_to(folder).as_posix() for file in files]
        if path.startswith(f"/api/models/{repository}"):
            told: object = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                for name, file in zip(names, files, strict=True)
            ]
            if "/tree/" not in path:
                siblings = [{"rfilename": name} for name in names]
                told = {"id": repository, "sha": COMMIT, "siblings": siblings}
            body = json.dumps(told).encode()
            self._send(200, body, {"Content-Type": "application/json"}, with_body)
            return
        name = path.partition(f"/resolve/{COMMIT}/")[2] or path.partition("/resolve/main/")[2]
        if name not in names:
            self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"}, with_body)
            return
        body = (folder / name).read_bytes()
        headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        self._send(200, body, headers, with_body, stalls=name == self.server.stalls_in)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        with_body: bool,
        stalls: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and stalls:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.gone.wait()
        elif with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """It prints nothing."""


@pytest.fixture
def hub(tmp_path: Path, bare_bert: Path) -> Iterator[LocalHub]:
    """A hub that has a model which pools the first token, normalises, and has prompts."""
    modules = [Transformer(str(bare_bert)), Pooling(WIDTH, "cls"), Normalize()]
    server = LocalHub(save_checkpoint(tmp_path / "saved", modules, prompts={"query": "ask: "}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.gone.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, hub: LocalHub) -> Path:
    """A cache with what transformers reads of it."""
    home = tmp_path / "home"
    snapshot = home / "hub" / "models--acme--x" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    for name in BY_TRANSFORMERS:
        shutil.copy(hub.folder / name, snapshot)
    return home


def load(
    home: Path, hub: LocalHub, program: str = PROGRAM, **environment: str
) -> tuple[dict[str, object], str]:
    """What a process says of the model, and what it logs."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": hub.url, **environment},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found, done.stderr


@pytest.mark.slow
def test_a_cache_that_transformers_filled_is_completed_once(cache: Path, hub: LocalHub) -> None:
    found, logged = load(cache, hub, HF_HUB_OFFLINE="0")
    assert found["modules"] == ["Transformer", "Pooling", "Normalize"]
    assert found["length"] == pytest.approx(1)
    assert found["prompts"] == {"query": "ask: ", "document": ""}
    assert "Assumed" not in logged
    assert not [line for line in hub.asked if "model.safetensors" in line], "it was there"
    hub.asked.clear()
    again, _ = load(cache, hub, HF_HUB_OFFLINE="0")
    assert again == found
    assert hub.asked == [], "everything is known by now"


@pytest.mark.slow
def test_offline_a_warning_names_what_was_assumed(cache: Path, hub: LocalHub) -> None:
    found, logged = load(cache, hub, HF_HUB_OFFLINE="1")
    assert found["modules"] == ["Transformer", "Pooling"]
    assert logged.count("Assumed: without modules.json, plain pooling") == 1
    assert hub.asked == []


@pytest.mark.slow
def test_a_model_that_is_downloaded_whole_leaves_no_question(tmp_path: Path, hub: LocalHub) -> None:
    home = tmp_path / "empty"
    found, _ = load(home, hub, HF_HUB_OFFLINE="0")
    assert found["modules"] == ["Transformer", "Pooling", "Normalize"]
    hub.asked.clear()
    assert load(home, hub, HF_HUB_OFFLINE="0")[0] == found
    assert hub.asked == []
    assert "Assumed" not in load(home, hub, HF_HUB_OFFLINE="1")[1]


STALLED = """
import json, time
from huggingface_hub import constants, file_download
from millpond import Engine, ModelNotFound
constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.1
file_download.time.sleep = lambda _: None  # between the client's own attempts
try:
    Engine("acme/x", device="cpu", dtype="float32")
except ModelNotFound as error:
    print(json.dumps({"error": str(error)}))
"""


def test_a_hub_that_stalls_within_a_file_ends_in_a_typed_error(
    tmp_path: Path, hub: LocalHub
) -> None:
    hub.stalls_in = "model.safetensors"
    found, _ = load(tmp_path / "empty", hub, program=STALLED, HF_HUB_OFFLINE="0")
    assert "hub: acme/x: ReadTimeout" in str(found["error"])
    attempts = [line for line in hub.asked if line.startswith("GET") and "safetensors" in line]
    assert 1 < len(attempts) <= 10


TRUSTING = """
import json
from millpond import Engine
with Engine("acme/x", device="cpu", dtype="float32", trust_remote_code=True) as engine:
    print(json.dumps({"dimension": len(engine.embed("a text"))}))
"""


@pytest.mark.slow
def test_code_in_another_repository_is_fetched(tmp_path: Path, hub: LocalHub) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "own.py").write_text("from .beside import OwnConfig, OwnModel\n")
    (code / "beside.py").write_text(
        "from transformers import BertConfig, BertModel\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    hub.repositories["acme/code"] = code
    config = json.loads((hub.folder / "config.json").read_text())
    auto_map = {"AutoConfig": "acme/code--own.OwnConfig", "AutoModel": "acme/code--own.OwnModel"}
    (hub.folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own", "auto_map": auto_map})
    )
    for folder in ("hub", "elsewhere"):
        environment = {"HF_HUB_OFFLINE": "0"}
        program = TRUSTING
        if folder == "elsewhere":
            program = program.replace(
                "trust_remote", f"cache_dir={str(tmp_path / folder)!r}, trust_remote"
            )
        found, _ = load(tmp_path / "home", hub, program=program, **environment)
        assert found == {"dimension": WIDTH}
    hub.asked.clear()
    assert load(tmp_path / "home", hub, program=TRUSTING, HF_HUB_OFFLINE="1")[0] == found
    assert hub.asked == []
