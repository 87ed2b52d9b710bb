"""docs/server.md and deploy/ name what there is, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
import yaml
from fastapi import FastAPI
from serving import embed, fake_app, request

from millpond.cli.serve import serve
from millpond.cli.serve_command import ServeCommand
from millpond.server.app import _EXPOSED_HEADERS, _STATUSES
from millpond.server.errors import _FROM_ENGINE
from millpond.server.schemas.cohere import CohereEmbedRequest
from millpond.server.schemas.embeddings import EmbeddingRequest
from millpond.server.schemas.scores import (
    ClassifyRequest,
    PredictRequest,
    RerankRequest,
    RerankTextsRequest,
    ScoreRequest,
)
from millpond.server.schemas.tei import DecodeRequest, EmbedRequest, SimilarityRequest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
NOT = {"--no-enable-prefix-caching", "--no-warmup"}
DEPLOY = ROOT / "deploy"
ALERT_TESTS = Path(__file__).with_name("prometheus_alerts.yml")
PROMTOOL = shutil.which("promtool") or ""


@pytest.fixture
def app() -> Any:
    with fake_app() as app:
        yield app


def flags() -> set[str]:
    command = typer.Typer()
    command.command()(serve)
    parameters = typer.main.get_command(command).params
    options = {name for parameter in parameters for name in parameter.opts}
    return {name for name in options if name.startswith("--")} - {
        "--install-completion",
        "--show-completion",
    }


def test_every_flag_is_in_the_table_and_every_flag_of_the_page_exists() -> None:
    assert len(flags()) > 25
    assert set(re.findall(r"^\| `(--[a-z-]+)`", PAGE, flags=re.MULTILINE)) == flags()
    elsewhere = {"--build", "--build-arg", "--rm", "--gpus"}  # docker's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - elsewhere == flags() | NOT


def test_every_default_in_the_table_is_the_flags_own() -> None:
    defaults = dict(re.findall(r"^\| `--([a-z-]+)` \| `?([\w.]+)`? \|", PAGE, flags=re.MULTILINE))
    signature = typer.main.get_params_from_function(serve)
    shown = {
        name: str(parameter.default)
        for name, parameter in signature.items()
        if isinstance(parameter.default, str | float) and not isinstance(parameter.default, bool)
    }
    for name, default in shown.items():
        if default:
            assert defaults[name.replace("_", "-")] == default.removesuffix(".0")


def test_every_field_header_status_and_code_is_described() -> None:
    for name in (*EmbeddingRequest.model_fields, *_EXPOSED_HEADERS[:-1]):
        assert f"| `{name}` |" in PAGE
    for kind in (RerankRequest, RerankTextsRequest, ScoreRequest, ClassifyRequest, PredictRequest):
        for name in kind.model_fields:
            assert f"`{name}`" in PAGE.partition("### `POST /rerank`")[2]
    of_tei, _, of_cohere = PAGE.partition("### `POST /embed`")[2].partition("### `POST /v1/embed`")
    for kind in (EmbedRequest, SimilarityRequest, DecodeRequest):
        for name in kind.model_fields:
            assert f"`{name}`" in of_tei or f'"{name}"' in of_tei
    for name in CohereEmbedRequest.model_fields:
        assert f"`{name}`" in of_cohere
    for status in _STATUSES:
        assert f"| {status} |" in PAGE
    assert {"`queue_full`", "`text_failed`"} <= {f"`{row[3]}`" for row in _FROM_ENGINE}


def test_every_route_is_in_the_table(app: FastAPI) -> None:
    paths = request(app, "GET", "/openapi.json").json()["paths"]
    for path in paths:
        assert f"`{path.replace('{model_id}', '{id}')}`" in PAGE.replace("GET ", "`").replace(
            "POST ", "`"
        )


def metrics_of(app: FastAPI) -> set[str]:
    embed(app, {"input": "a"})
    text = request(app, "GET", "/metrics").text
    found = set(re.findall(r"^(millpond_\w+)", text, flags=re.MULTILINE))
    return {name for name in found if not name.endswith("_created")}


def test_every_metric_is_described(app: FastAPI) -> None:
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in metrics_of(app)}
    assert set(re.findall(r"`(millpond_\w+)`", PAGE)) == families


def test_the_dashboard_asks_for_metrics_there_are(app: FastAPI) -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    names = set(re.findall(r"millpond_\w+", asked))
    assert names <= metrics_of(app)
    assert len(names) > 15


def test_the_alerts_ask_for_metrics_there_are(app: FastAPI) -> None:
    told = yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text(encoding="utf-8"))
    rules = [rule for group in told["groups"] for rule in group["rules"]]
    names = set(re.findall(r"millpond_\w+", " ".join(rule["expr"] for rule in rules)))
    assert names <= metrics_of(app)
    assert len(names) > 4
    job = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert f'up{{job="{job[0]["job_name"]}"}}' in rules[0]["expr"]
    tried = yaml.safe_load(ALERT_TESTS.read_text(encoding="utf-8"))["tests"]
    for test in tried:
        asked = {case["alertname"] for case in test["alert_rule_test"]}
        assert asked == {rule["alert"] for rule in rules}


@pytest.mark.skipif(not PROMTOOL, reason="needs promtool, which comes with Prometheus")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", str(DEPLOY / "prometheus.yml")),
        ("test", "rules", str(ALERT_TESTS)),
    ],
)
def test_prometheus_accepts_its_configuration_and_the_alerts_fire(arguments: list[str]) -> None:
    told = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "millpond.service"])
def test_what_starts_the_server_uses_flags_there_are(name: str) -> None:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    started = re.findall(r"^(?:ENTRYPOINT|ExecStart=|#\s+MILLPOND_FLAGS=).*$", text, re.MULTILINE)
    assert started
    assert set(re.findall(r"--[a-z-]+", " ".join(started))) <= flags()


def test_the_health_check_of_the_image_asks_where_the_server_listens() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (port,) = re.findall(r"^ENV .*\bMILLPOND_PORT=(\d+)", text, re.MULTILINE)
    (exposed,) = re.findall(r"^EXPOSE (\d+)", text, re.MULTILINE)
    assert port == exposed
    (check,) = re.findall(r"HEALTHCHECK .*\n +CMD (.*)", text)
    _, _, program = json.loads(check)
    compile(program, "the health check", "exec")
    assert "MILLPOND_PORT" in program
    assert not re.findall(r"--port", text.partition("ENTRYPOINT")[2])
    command = typer.Typer()
    command.command(cls=ServeCommand)(serve)
    (flag,) = (one for one in typer.main.get_command(command).params if one.name == "port")
    assert flag.envvar == ["MILLPOND_PORT"]
