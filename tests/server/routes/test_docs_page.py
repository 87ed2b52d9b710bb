"""`/docs` is a page of the document that needs nothing but the server itself."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from serving import NAME, fake_app, request

from millpond.server.settings import AppSettings


@pytest.fixture
def app() -> Iterator[FastAPI]:
    with fake_app() as app:
        yield app


def test_the_page_loads_nothing_from_elsewhere(app: FastAPI) -> None:
    answer = request(app, "GET", "/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"//\w|@import|\bsrc=", answer.text)
    assert re.findall(r"<link[^>]*>", answer.text) == ['<link rel="icon" href="data:,">']
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (own,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, flags=re.DOTALL)
        assert tag == "script" or "url(" not in own
        digest = b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"


def test_the_page_holds_the_document(app: FastAPI) -> None:
    page = request(app, "GET", "/docs").text
    (held,) = re.findall(r'<script type="application/json" id="document">(.*?)</script>', page)
    assert json.loads(held) == request(app, "GET", "/openapi.json").json()


def test_no_text_of_the_document_ends_its_element(app: FastAPI) -> None:
    app.openapi()["info"]["summary"] = "</script><script>alert(1)</script>"
    page = request(app, "GET", "/docs").text
    assert "alert(1)" in page
    assert page.count("</script>") == 2


def test_a_guarded_document_is_not_in_the_page_which_asks_for_the_key() -> None:
    with fake_app(settings=AppSettings(api_keys=("key",))) as app:
        page = request(app, "GET", "/docs")
        assert page.status_code == 200
        (held,) = re.findall(
            r'<script type="application/json" id="document">(.*?)</script>', page.text
        )
        assert held == "null"
        assert NAME not in page.text
        assert request(app, "POST", "/docs").status_code == 401
        assert request(app, "GET", "/openapi.json").status_code == 401


def test_every_body_has_an_example_that_is_answered(app: FastAPI) -> None:
    schemas = request(app, "GET", "/openapi.json").json()["components"]["schemas"]
    for path, name in (("/v1/embeddings", "EmbeddingRequest"), ("/tokenize", "TokenizeRequest")):
        (field,) = schemas[name]["required"]
        (example,) = schemas[name]["properties"][field]["examples"]
        assert request(app, "POST", path, json={field: example}).status_code == 200
