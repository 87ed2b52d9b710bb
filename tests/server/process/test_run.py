"""The server as a process: its command line, how it drains, and what it logs."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fakes import PATIENCE_S
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, server_process

from millpond import Engine
from millpond.cli.serve import _named, main
from millpond.cli.serve_command import _one_name_a_flag
from millpond.server.process import run as process
from millpond.server.settings import AppSettings, ListenSettings

pytestmark = pytest.mark.slow

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
CLIENTS = 12
SENTENCE = "The mill pond gathers water until the wheel of the mill can turn again."


@pytest.fixture(scope="module")
def engine(one_thread: None) -> Iterator[Engine]:
    with Engine(MODEL) as engine:
        yield engine


def texts_of(client: int, count: int = 40) -> list[str]:
    """Texts that no other client sends."""
    return [f"client {client} text {n}: {SENTENCE * (n % 3 + 1)}" for n in range(count)]


def ask(url: str, client: int, count: int = 40) -> httpx.Response:
    body = {"input": texts_of(client, count)}
    return httpx.post(f"{url}/v1/embeddings", json=body, timeout=60)


def vectors_in(response: httpx.Response) -> np.ndarray:
    return np.array([item["embedding"] for item in response.json()["data"]], dtype=np.float32)


def in_progress(url: str) -> int:
    """Requests that the server has accepted and not answered, beside this question."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    (value,) = (
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "millpond_http_requests_in_progress"
    )
    return int(value) - 1


def begin_load(
    pool: ThreadPoolExecutor, server: ServerProcess, *, count: int = 40
) -> list[Future[httpx.Response]]:
    """Requests of many clients, all of them accepted and few of them answered."""
    asked = [pool.submit(ask, server.url, client, count) for client in range(CLIENTS)]
    while in_progress(server.url) < CLIENTS - sum(one.done() for one in asked):
        pass  # each round is a request of its own
    return asked


def test_sigterm_under_load_loses_nothing_that_was_accepted(engine: Engine) -> None:
    with server_process(MODEL) as server, ThreadPoolExecutor(CLIENTS) as pool:
        asked = begin_load(pool, server)
        server.signal(signal.SIGTERM)
        server.wait_for("draining")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")
        answers = [one.result() for one in asked]
        assert [answer.status_code for answer in answers] == [200] * CLIENTS
        for client, answer in enumerate(answers):
            np.testing.assert_allclose(
                vectors_in(answer), engine.embed(texts_of(client)), atol=1e-6
            )
        assert server.wait() == 0
        logged = [line for line in server.lines if " POST /v1/embeddings 200 " in line]
        assert len(logged) == CLIENTS


def test_a_second_sigterm_ends_it_at_once() -> None:
    with server_process(MODEL) as server, ThreadPoolExecutor(CLIENTS) as pool:
        asked = begin_load(pool, server, count=400)
        server.signal(signal.SIGTERM)
        server.wait_for("draining")
        server.signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        assert any(isinstance(one.exception(), httpx.TransportError) for one in asked)


def test_what_the_drain_time_does_not_suffice_for_gets_a_503() -> None:
    flags = [MODEL, "--drain-timeout-s", "0"]
    with server_process(*flags) as server, ThreadPoolExecutor(CLIENTS) as pool:
        asked = begin_load(pool, server, count=400)
        server.signal(signal.SIGTERM)
        statuses = [one.result().status_code for one in asked]
        assert set(statuses) <= {200, 503}
        assert 503 in statuses
        assert server.wait() == 1


def test_an_upload_that_stalls_is_told_so_when_the_drain_time_is_over() -> None:
    with server_process(MODEL, "--drain-timeout-s", "0.2") as server:
        url = httpx.URL(server.url)
        with socket.create_connection((url.host, url.port)) as stalled:
            stalled.settimeout(PATIENCE_S)
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: pond\r\nContent-Length: 50\r\n\r\n{"
            stalled.sendall(head.encode())
            while in_progress(server.url) == 0:
                pass  # each round is a request of its own
            server.signal(signal.SIGTERM)
            answer = b"".join(iter(lambda: stalled.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "draining"' in answer
        assert server.wait() == 1
        assert "Traceback" not in "\n".join(server.lines)


@pytest.fixture
def hangups() -> Iterator[None]:
    """SIGHUP is not ignored, as it is under nohup, and in what is started there."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.usefixtures("hangups")
def test_a_terminal_that_goes_away_drains_the_server_however_often_it_says_so() -> None:
    with server_process(MODEL) as server:
        url = httpx.URL(server.url)
        body = b'{"input": "a"}'
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: pond\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((url.host, url.port)) as client:
            client.settimeout(PATIENCE_S)
            client.sendall(head.encode())
            while in_progress(server.url) == 0:
                pass  # each round is a request of its own
            server.signal(signal.SIGHUP)
            server.wait_for("draining")
            server.signal(signal.SIGHUP)
            client.sendall(body)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0


def certificate(folder: Path, passphrase: str) -> list[str]:
    """The flags of a certificate whose key has a passphrase."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    cert, key = folder / "cert.pem", folder / "key.pem"
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=pond"
    files = ["-keyout", str(key), "-out", str(cert), "-passout", f"pass:{passphrase}"]
    subprocess.run(["openssl", *make.split(), *files], check=True, capture_output=True)
    return ["--ssl-certfile", str(cert), "--ssl-keyfile", str(key)]


def test_a_key_with_a_passphrase_is_never_asked_for_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(process, "configure_logging", lambda *_: None)
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    flags = certificate(tmp_path, "open sesame")
    for given, said in (
        ([], "MILLPOND_SSL_KEYFILE_PASSWORD"),
        (["--ssl-keyfile-password", "open barley"], "passphrase may be wrong"),
    ):
        with pytest.raises(SystemExit) as exited:
            main(["--port", "0", *flags, *given])
        assert exited.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert "barley" not in line


def test_a_key_with_a_passphrase_serves(tmp_path: Path) -> None:
    flags = certificate(tmp_path, "open sesame")
    secret = {"MILLPOND_SSL_KEYFILE_PASSWORD": "open sesame"}
    with server_process(MODEL, *flags, **secret) as server:
        trusted = ssl.create_default_context(cafile=flags[1])
        trusted.check_hostname = False
        with httpx.Client(verify=trusted, timeout=60) as client:
            assert client.get(f"{server.url}/health").status_code == 200
            answer = client.post(f"{server.url}/v1/embeddings", json={"input": "a"})
            assert answer.status_code == 200


def test_two_servers_do_not_share_a_unix_domain_socket(tmp_path: Path) -> None:
    path = tmp_path / "pond.sock"
    command = [sys.executable, "-m", "millpond.server", "--model", MODEL, "--uds", str(path)]
    with server_process(MODEL, "--uds", str(path)):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        (line,) = second.stderr.splitlines()
        assert line == f"millpond: error: cannot listen on {path}: another server answers there"
        assert path.exists()


def test_flags_reach_the_server(tmp_path: Path) -> None:
    path = tmp_path / "pond.sock"
    flags = ["--model", MODEL, "--model", MODEL, "--served-model-name", "one"]
    flags += ["--served-model-name", "two", "--uds", str(path), "--log-format", "json"]
    flags += ["--max-model-len", "16", "--dtype", "float", "--max-body-bytes", "500"]
    with server_process(*flags) as server:
        assert json.loads(server.lines[-1])["message"] == f"ready at unix:{path}"
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://pond") as client:
            cards = client.get("/v1/models").json()["data"]
            assert [card["id"] for card in cards] == ["one", "two"]
            assert {(card["max_model_len"], card["dtype"]) for card in cards} == {(16, "float32")}
            assert client.post("/v1/embeddings", content=b" " * 501).status_code == 413
        line = json.loads(server.wait_for("413"))
        assert (line["logger"], line["method"], line["status"]) == ("millpond.access", "POST", 413)
        server.signal(signal.SIGINT)
        assert server.wait() == 0
    assert not path.exists()


def test_what_was_loaded_is_exempt_from_garbage_collections(monkeypatch: Any) -> None:
    monkeypatch.setattr(process, "configure_logging", lambda *_: None)
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    calls: list[str] = []
    for owner, name in (
        (process.gc, "collect"),
        (process.gc, "freeze"),
        (process.DrainingServer, "run"),
    ):
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: calls.append(name))
    assert process.run([], AppSettings(), ListenSettings(port=0)) == 0
    assert calls == ["collect", "freeze", "run"]


# The command line.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tensor-parallel-size", "0"], "tensor_parallel_size=0"),
        (["--port", "here"], "'--port'"),
        (["--port", "70000"], "port=70000"),
        (["--nonsense"], "--nonsense"),
        (["--max-num-batched-tokens", "0"], "max_batch_tokens=0"),
        (["--dtype", "int3"], "int3"),
        (["a", "b", "--served-model-name", "c"], "2 models and 1 names"),
        (["--served-model-name", "x", "a", "b"], "2 models and 1 names"),
        (["a", "--served-model-name", "c", "c"], "'c' would be"),
        (["--task", "generate"], "generate"),
        (["--runner", "generate"], "generate"),
        (["--idle-timeout-s", "0"], "idle_timeout_s=0"),
        (["--header-timeout-s", "nan"], "header_timeout_s=nan"),
        (["a", "--served-model-name", ""], "--served-model-name is empty"),
        (["a", "b", "a"], "'a' would be served twice"),
        (["a", "b", "--served-model-name", "c", "--served-model-name", "c"], "'c' would be"),
        (["a", "--served-model-name", "c", "--served-model-name", "c"], "'c' would be"),
        (["--drain-timeout-s", "inf"], "drain_timeout_s=inf"),
        (["--drain-timeout-s", "nan"], "drain_timeout_s=nan"),
        (["--request-timeout-s", "inf"], "request_timeout_s=inf"),
        (["--max-query-wait-ms", "nan"], "max_query_wait_ms=nan"),
        (["--api-key", "schlüssel"], "API key has a character"),
        (["--ssl-keyfile", "key.pem"], "ssl_keyfile"),
        (["--root-path", "embed"], "root_path='embed'"),
        (["--ssl-certfile", "/nowhere/cert.pem"], "/nowhere/cert.pem"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(process, "configure_logging", lambda *_: None)
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as exited:
        main(["--port", "0", *arguments])
    assert exited.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("millpond: error: ")
    assert said in line


@pytest.mark.parametrize(
    ("models", "names", "expected"),
    [
        (["a"], [], [("a", ())]),
        (["a"], ["x", "y"], [("a", ("x", "y"))]),
        (["a", "b"], [], [("a", ()), ("b", ())]),
        (["a", "b"], ["x", "y"], [("a", ("x",)), ("b", ("y",))]),
    ],
)
def test_names_belong_to_models(models: Any, names: Any, expected: Any) -> None:
    assert _named(models, names) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("m -f a b --port 0", "m -f a -f b --port 0"),
        ("--model m -f a b c", "--model m -f a -f b -f c"),
        ("-f a b --model=m", "-f a -f b --model=m"),
        ("-f a m", "-f a m"),
        ("--port 0 -f a m", "--port 0 -f a m"),
        ("--port 0 m -f a b", "--port 0 m -f a -f b"),
        ("--seed 1 --port=0 m -f a b", "--seed 1 --port=0 m -f a -f b"),
        ("--switch m -f a b", "--switch m -f a -f b"),
        ("--switch --port 0 -f a m", "--switch --port 0 -f a m"),
        ("m -f a", "m -f a"),
        ("m -f", "m -f"),
        ("m n -f a -f b", "m n -f a -f b"),
        ("m -f a n -f b", "m -f a n -f b"),
        ("", ""),
    ],
)
def test_several_names_follow_one_flag_once_the_model_is_named(
    arguments: str, expected: str
) -> None:
    flag = "--served-model-name"
    given = arguments.replace("-f", flag).split()
    assert _one_name_a_flag(given, {"--switch"}) == expected.replace("-f", flag).split()


def test_vllms_command_is_understood(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(process, "run", lambda *plans: asked.append(plans) or 0)
    flags = "--task embed --runner pooling --convert embed --max-num-seqs 64 -tp 1 --seed 1"
    flags += " --enforce-eager --disable-log-requests --disable-log-stats --load-format auto"
    flags += " --no-enable-prefix-caching --download-dir /models --dtype half --max-model-len 128"
    flags += " --max-num-batched-tokens 512 --gpu-memory-utilization 0.5 --device cpu --device cpu"
    with pytest.raises(SystemExit) as exited:
        main(["m", "--served-model-name", "a", "b", *flags.split()])
    assert exited.value.code == 0
    (((plan,), _, _),) = asked
    assert (plan.model, plan.names) == ("m", ("a", "b"))
    assert plan.options["prefix_cache"] == "off"
    assert plan.options["cache_dir"] == "/models"
    assert plan.options["max_length"] == 128
    assert plan.options["max_batch_tokens"] == 512
    assert plan.options["memory_utilization"] == 0.5
    assert list(plan.options["device"]) == ["cpu", "cpu"]
    assert plan.options["warmup"] is True
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "millpond: ignored, without an effect here: --max-num-seqs, --seed, --enforce-eager, "
        "--disable-log-requests, --disable-log-stats"
    )


def test_help_has_an_example_and_loads_no_model() -> None:
    program = (
        "import sys\nfrom millpond.cli.serve import main\n"
        "try: main(['--help'])\n"
        "finally: print(*sorted({'torch', 'fastapi', 'uvicorn'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "Example:" in result.stdout
    assert result.stdout.splitlines()[-1] == ""
