"""The page at `/`: what it is made of, and in a browser where there is one, what it does."""

from __future__ import annotations

import asyncio
import queue
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
from fakes import PATIENCE_S, FakeRunner, start_engine, vectors_for
from fastapi import FastAPI
from serving import NAME, fake_app, fake_scoring_app, listening, request

import millpond.server.page
from millpond.server.models import ServedModel
from millpond.server.page import PAGES
from millpond.server.settings import AppSettings

FOLDER = Path(millpond.server.page.__file__).parent
SCRIPT = (FOLDER / "page.js").read_text(encoding="utf-8")
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Its elements, after a look at whether they are nested rightly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def every(self, attribute: str) -> list[str]:
        return [found[attribute] for _, found in self.elements if attribute in found]


@pytest.fixture
def app() -> Iterator[FastAPI]:
    with fake_app() as app:
        yield app


@pytest.fixture
def page(app: FastAPI) -> Page:
    return Page(request(app, "GET", "/").text)


def test_every_file_is_served_as_what_it_is(app: FastAPI) -> None:
    types = {path: request(app, "GET", path).headers["content-type"] for path in PAGES}
    assert {path: kind.partition(";")[0] for path, kind in types.items()} == {
        "/": "text/html",
        "/static/page.css": "text/css",
        "/static/page.js": "text/javascript",
        "/static/icon.svg": "image/svg+xml",
    }
    for path in PAGES:
        headers = request(app, "HEAD", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        policy = dict(
            part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        allowed = {name for name, value in policy.items() if value == "'self'"}
        assert allowed == {"script-src", "style-src", "img-src", "connect-src"}
        assert set(policy.values()) == {"'self'", "'none'"}


def test_it_loads_nothing_from_elsewhere_and_nothing_inline(page: Page) -> None:
    loaded = [*page.every("src"), *page.every("href")]
    assert loaded
    assert all(one.startswith(("/static/", "/docs", "/metrics", "#")) for one in loaded)
    assert {one for one in loaded if one.startswith("/static/")} <= set(PAGES)
    assert page.every("style") == []
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert all("src" in found for tag, found in page.elements if tag == "script")
    assert not re.search(r"https?:|url\(|@import", STYLE + SCRIPT)
    assert not re.search("innerHTML|insertAdjacentHTML|document.write|eval", SCRIPT)


def test_what_the_script_and_the_labels_ask_for_is_there_once(page: Page) -> None:
    ids = page.every("id")
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r'(?:byId|say)\("([\w-]+)"', SCRIPT))
    named = {
        one
        for attribute in ("for", "aria-labelledby")
        for value in page.every(attribute)
        for one in value.split()
    }
    assert len(asked) > 15
    assert asked | named <= set(ids)
    without_colours = re.sub(r"#[0-9a-f]{6}\b", "", STYLE)
    assert set(re.findall(r"#([a-z][\w-]*)", without_colours)) <= set(ids)


def test_every_field_has_a_label_and_the_page_a_language(page: Page) -> None:
    fields = [found for tag, found in page.elements if tag in ("input", "select", "textarea")]
    assert {found["id"] for found in fields} <= set(page.every("for"))
    assert page.every("lang") == ["en"]
    assert all("alt" in found for tag, found in page.elements if tag == "img")


def test_the_routes_and_metrics_that_the_script_asks_for_exist(app: FastAPI) -> None:
    document = request(app, "GET", "/openapi.json").json()["paths"]
    assert set(re.findall(r'ask\("(/[\w/]+)"', SCRIPT)) <= document.keys()
    assert request(app, "POST", "/v1/embeddings", json={"input": "a"}).status_code == 200
    metrics = request(app, "GET", "/metrics").text
    names = set(re.findall(r'"(millpond_\w+)"', SCRIPT))
    assert len(names) > 6
    for name in names:
        assert name in metrics


def test_a_prefix_is_in_every_path_and_no_markup_of_it() -> None:
    with fake_app(settings=AppSettings(root_path='/p"<b>')) as app:
        text = request(app, "GET", "/").text
        assert "ROOT" not in text
        assert "<b>" not in text
    with fake_app(settings=AppSettings(root_path="/pond")) as app:
        for path in ("/pond", "/pond/", "/"):
            page = Page(request(app, "GET", path).text)
            assert page.every("data-root") == ["/pond"]
            assert all(one.startswith(("/pond/", "#")) for one in page.every("href"))
        assert request(app, "GET", "/pond/static/page.js").text == SCRIPT


def test_without_the_key_there_is_the_page_and_nothing_of_the_server() -> None:
    with fake_app(settings=AppSettings(api_keys=("secret-key",))) as app:
        for path in PAGES:
            answer = request(app, "GET", path)
            assert answer.status_code == 200
            assert NAME not in answer.text
            assert "secret-key" not in answer.text
        assert request(app, "POST", "/", json={"inputs": "a"}).status_code == 401
        assert request(app, "GET", "/static/../v1/models").status_code == 401
        assert request(app, "GET", "/v1/models").status_code == 401


# In a browser.

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
AXE = Path(__file__).parent / "node" / "node_modules" / "axe-core" / "axe.min.js"
KEY = "key-of-the-tests"
in_browser = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application on a port, and where."""
    addresses: queue.Queue[str] = queue.Queue()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with listening(app) as port:
            addresses.put(f"http://127.0.0.1:{port}")
            await stop.wait()

    thread = Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        yield addresses.get(timeout=PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)
        loop.close()


@contextmanager
def reranker_and_embedder(settings: AppSettings | None = None) -> Iterator[str]:
    with start_engine(FakeRunner()) as engine:
        beside = [ServedModel.of(engine, ["embedder"])]
        with (
            fake_scoring_app("relevant", beside=beside, settings=settings) as app,
            served(app) as address,
        ):
            yield address


@contextmanager
def opened(
    browser: Any, address: str, path: str = "/", **options: Any
) -> Iterator[tuple[Any, list[str]]]:
    """A page, and what goes wrong in it: errors of the console, and requests to other hosts."""
    wrong: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda sent: None if sent.url.startswith(f"{address}/") else wrong.append(sent.url),
    )
    page.goto(f"{address}{path}")
    try:
        yield page, wrong
    finally:
        context.close()


def ranked(page: Any) -> list[str]:
    page.wait_for_selector("#results li")
    texts: list[str] = page.locator("#results li > span:nth-child(2)").all_inner_texts()
    return texts


@in_browser
def test_texts_are_ranked_by_the_model_that_is_chosen(browser: Any) -> None:
    texts = ["a b", "c", "d e f", "<b>g</b>"]
    with reranker_and_embedder() as address, opened(browser, address) as (page, wrong):
        page.wait_for_selector("#run:enabled")
        page.fill("#query", "d e")
        page.fill("#texts", "\n".join(["", *texts, "  "]))
        page.select_option("#model", "embedder")
        assert page.inner_text("#run") == "Find the nearest"
        page.click("#run")
        found = millpond.similarity(vectors_for(["ask: d e"])[0], vectors_for(texts))
        assert ranked(page) == [texts[place] for place in np.argsort(-found)]
        assert page.inner_text("#results li .score") == f"{found.max():.3f}"
        assert "4 texts in " in page.inner_text("#outcome")
        assert "8 numbers" in page.inner_text("#vector-note")
        page.select_option("#model", NAME)
        assert page.inner_text("#run") == "Rerank"
        assert page.locator("#results li").count() == 0
        page.focus("#texts")
        page.keyboard.press("Control+Enter")
        body = {"query": "d e", "documents": texts, "model": NAME}
        answer = httpx.post(f"{address}/rerank", json=body).json()
        assert ranked(page) == [texts[one["index"]] for one in answer["results"]]
        assert wrong == []


@in_browser
def test_the_meters_follow_the_metrics_until_they_are_paused(browser: Any) -> None:
    with reranker_and_embedder() as address, opened(browser, address) as (page, wrong):
        page.wait_for_selector("#run:enabled")
        page.wait_for_selector(".meter .line[d]", state="attached")
        for _ in range(3):
            httpx.post(f"{address}/v1/embeddings", json={"input": ["a", "b"]}).raise_for_status()
        page.wait_for_selector('.meter:has-text("Texts") strong:not(:text-matches("^0 "))')
        names = page.locator(".meter p").all_inner_texts()
        assert names[:3] == ["Requests", "Response time, 95 %", "Texts"]
        page.click("#pause")
        assert page.get_attribute("#pause", "aria-pressed") == "true"
        assert wrong == []


@in_browser
def test_what_the_server_refuses_is_shown(browser: Any) -> None:
    with reranker_and_embedder() as address, opened(browser, address) as (page, wrong):
        page.wait_for_selector("#run:enabled")
        page.fill("#texts", "  \n ")
        page.click("#run")
        assert "There are no texts" in page.inner_text("#outcome")
        page.select_option("#model", "embedder")
        page.fill("#texts", "a")
        page.fill("#query", "")
        page.click("#run")
        assert ranked(page) == ["a"]
        assert wrong == []


@in_browser
def test_a_key_is_asked_for_and_sent(browser: Any) -> None:
    settings = AppSettings(api_keys=(KEY,), protect_metrics=True, root_path="/pond")
    with (
        reranker_and_embedder(settings) as address,
        opened(browser, address, "/pond") as (page, wrong),
    ):
        page.wait_for_selector("#key-form:visible")
        assert page.evaluate("document.activeElement.id") == "key"
        assert NAME not in page.content()
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-note.bad")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#run:enabled")
        assert page.is_hidden("#key-form")
        page.click("#run")
        assert len(ranked(page)) == 8
        page.goto(f"{address}/pond/docs")
        page.wait_for_selector("details summary")  # the key is still known
        assert {one for one in wrong if "401" not in one} == set()


@in_browser
def test_the_docs_ask_for_the_key_too(browser: Any) -> None:
    settings = AppSettings(api_keys=(KEY,))
    with reranker_and_embedder(settings) as address, opened(browser, address) as (page, _):
        page.goto(f"{address}/docs")
        page.wait_for_selector("#key:visible")
        assert "needs the API key" in page.inner_text("#state")
        page.fill("#key input", KEY)
        page.keyboard.press("Tab")
        page.wait_for_selector("details summary")
        assert "/v1/embeddings" in page.inner_text("#routes")


@in_browser
@pytest.mark.parametrize(
    ("path", "scheme", "width"),
    [("/", "light", 1280), ("/", "dark", 360), ("/docs", "light", 360), ("/docs", "dark", 1280)],
)
def test_everybody_can_use_it(browser: Any, path: str, scheme: str, width: int) -> None:
    """By the rules of axe-core, and nothing is wider than the screen."""
    if not AXE.exists():
        pytest.skip("npm has not installed axe-core: make test-rest does, where there is npm")
    screen = {"width": width, "height": 800}
    with (
        reranker_and_embedder() as address,
        opened(browser, address, color_scheme=scheme, viewport=screen) as (page, wrong),
    ):
        page.wait_for_selector("#run:enabled")
        page.select_option("#model", "embedder")
        page.click("#run")
        ranked(page)
        if path != "/":
            page.goto(f"{address}{path}")
            page.wait_for_selector("details summary")
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run()")
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
        assert len(found["passes"]) > 10
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert wrong == []
