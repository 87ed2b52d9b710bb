"""The project's own house: versions, addresses, what PyPI shows, workflows and the deployment."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import millpond

ROOT = Path(__file__).parents[2]
PROJECTS = (ROOT, *sorted(path.parent for path in ROOT.glob("integrations/*/pyproject.toml")))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WITH_ADDRESSES = (
    *("*.md", "docs/**/*.md", "docs/**/*.toml", "integrations/*/*", "deploy/*", "*.cff"),
    *(".github/**/*.md", ".github/**/*.yml", "pyproject.toml"),
)


def project(folder: Path) -> dict[str, Any]:
    with (folder / "pyproject.toml").open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)
    return found


def yaml_of(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


URLS = project(ROOT)["project"]["urls"]


# Versions.


def test_every_distribution_has_the_version_of_the_engine() -> None:
    for folder in PROJECTS[1:]:
        assert project(folder)["project"]["version"] == millpond.__version__
        needs = project(folder)["project"]["dependencies"]
        (engine,) = (need for need in needs if need.startswith("millpond"))
        major, minor, _ = millpond.__version__.split(".")
        assert engine == f"millpond>={major}.{minor},<{major}.{int(minor) + 1}"
    assert yaml_of(ROOT / "CITATION.cff")["version"] == millpond.__version__


def test_the_changelog_s_latest_version_is_the_engine_s() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.*?)\](.*)$", text, re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    cut = [version for version, _ in headings[1:]]
    if cut:
        assert cut[0] == millpond.__version__
    else:
        assert f"to be {millpond.__version__}" in text
    for _, rest in headings[1:]:
        assert re.fullmatch(r" - (\d{4}-\d\d-\d\d|unreleased)", rest)


def test_what_ci_tests_is_what_is_declared() -> None:
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow)
    tested = re.findall(r'"([\d.]+)"', matrix)
    for folder in PROJECTS:
        told = project(folder)["project"]
        prefix = "Programming Language :: Python :: "
        declared = [c.removeprefix(prefix) for c in told["classifiers"] if c.startswith(prefix)]
        assert declared == ["3", *tested]
        assert told["requires-python"].startswith(f">={tested[0]}")


# Addresses.


def test_every_distribution_names_the_same_addresses() -> None:
    assert set(URLS) == {"Documentation", "Repository", "Changelog", "Issues"}
    for folder in PROJECTS:
        assert project(folder)["project"]["urls"] == URLS


def test_every_mention_of_the_repository_is_of_this_one() -> None:
    owner = URLS["Repository"].split("/")[-2]
    assert URLS["Documentation"] == f"https://{owner}.github.io/millpond/"
    files = {path for pattern in WITH_ADDRESSES for path in ROOT.glob(pattern) if path.is_file()}
    mentions = 0
    for path in sorted(files):
        text = path.read_text(encoding="utf-8")
        for found in re.findall(
            r"github\.com/([\w-]+)/millpond\b|([\w-]+)\.github\.io/millpond", text
        ):
            assert owner in found, f"{path} names {found}"
            mentions += 1
    assert mentions > 15


def shown_on_pypi(folder: Path) -> str:
    """The README after the substitutions of the build."""
    told = project(folder)
    if "readme" in told["project"]:
        return (folder / told["project"]["readme"]).read_text(encoding="utf-8")
    hook = told["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = "".join(
        (folder / part["path"]).read_text(encoding="utf-8") for part in hook["fragments"]
    )
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    return text


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_what_pypi_shows_has_no_relative_links(folder: Path) -> None:
    text = shown_on_pypi(folder)
    assert re.findall(r"\]\((?!https://|#)[^)]*\)", text) == []
    assert re.findall(r'src="(?!https://)', text) == []


def test_a_picture_on_pypi_comes_from_the_repository_itself() -> None:
    text = shown_on_pypi(ROOT)
    assert f"]({URLS['Repository']}/raw/main/docs/headline.svg)" in text
    assert f"]({URLS['Repository']}/blob/main/docs/index.md)" in text


def install_lines() -> ModuleType:
    place = ROOT / "tests" / "documentation" / "install_lines.py"
    spec = importlib.util.spec_from_file_location("install_lines", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_documented_install_line_can_be_tried() -> None:
    module = install_lines()
    assert module.lines()[0].startswith("pip install torch ")
    installed = {name for line in module.lines() for name in module.modules(line)}
    assert installed == {*module.MODULES.values(), *module.EXTRAS.values()}
    folders = {name for line in module.lines() for name, _ in module.requirements(line)}
    assert {f"./integrations/{path.name}" for path in PROJECTS[1:]} <= folders


def test_every_extra_for_users_is_in_getting_started() -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    extras = set(project(ROOT)["project"]["optional-dependencies"]) - {"dev", "docs", "test"}
    for extra in extras:
        assert f'`pip install ".[{extra}]"` | `pip install "millpond[{extra}]"`' in page


def test_every_example_says_what_to_install_and_how_it_is_run() -> None:
    module = install_lines()
    run = {example[0] for line in module.lines() for example in module.examples(line)}
    run.add("examples/spark_embed.py")  # by spark-submit, on files of the reader's
    assert run == {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}


def test_the_readme_is_short_and_names_the_command_that_ci_calls() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert re.search(r"^make test\b", text, re.MULTILINE)
    assert re.search(
        r"^make test$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_the_numbers_of_the_readme_are_in_the_benchmarks() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    folder = ROOT / "benchmarks" / "results" / "2026-11-25-intel-xeon-2-cores"
    assert f"(benchmarks/results/{folder.name}/results.md)" in readme
    measured = "".join(
        (folder / name).read_text(encoding="utf-8") for name in ("results.md", "adapters.md")
    )
    gpu = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    for claim, row in (
        ("**12.7 times**", r"\| 64 `aembed_query` at a time.*\(12\.66 ×\)"),
        ("it is 8.2 times", r"\| 64 `aembed_query` at a time.*\(8\.22 ×\)"),
        ("526; 152 in float32", r"\| millpond auto \| [\d.,]+ \(.*?\) \| 526\.0 "),
        ("3.2; 5.1 in float32", r"\| millpond auto \| 3\.2 "),
    ):
        assert claim in readme
        assert re.search(row, measured)
    assert "| 6.4 × | 1 × |" in readme
    assert "1,720,000 (6.4 ×)" in gpu


# Workflows, templates and the deployment.


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_whole(path: Path) -> None:
    told = yaml_of(path)
    assert told["permissions"] == {"contents": "read"}
    assert told["concurrency"]["group"]
    for job in told["jobs"].values():
        assert "uses" in job or job["timeout-minutes"]
    # A tag can be moved, a commit cannot; the comment is what Dependabot reads and renews.
    for used in re.findall(r"uses: (.*@.*)", path.read_text(encoding="utf-8")):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used)


def test_a_workflow_calls_make_s_own_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+)(?:\s[^:=]*)?:(?!=)", makefile, re.MULTILINE))
    for path in (*WORKFLOWS, ROOT / ".ci" / "run"):
        for called in re.findall(
            r"(?:run: |^)make ([a-z -]+)", path.read_text(encoding="utf-8"), re.M
        ):
            assert set(called.split()) <= targets, path


def test_the_release_is_trusted_and_tested() -> None:
    jobs = yaml_of(ROOT / ".github/workflows/release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == "build"
    assert jobs["build"]["needs"] == "tests"
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    assert "password" not in text
    assert "secrets" not in text


def test_the_templates_are_forms() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    for path in forms:
        told = yaml_of(path)
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(told)
            ids = [field["id"] for field in told["body"]]
            assert len(ids) == len(set(ids))
    assert len(forms) == 3


def test_the_pieces_of_the_deployment_fit_together() -> None:
    deploy = ROOT / "deploy"
    services = yaml_of(deploy / "compose.yaml")["services"]
    assert yaml_of(deploy / "compose.cuda.yaml")["services"].keys() <= services.keys()
    assert set(services) == {"millpond", "prometheus", "grafana"}
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (deploy / source).exists(), source
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
    assert (deploy / services["millpond"]["build"]["context"] / "deploy/Dockerfile").is_file()
    (job,) = yaml_of(deploy / "prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["millpond:8000"]}]
    (source,) = yaml_of(deploy / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"]
    (provider,) = yaml_of(deploy / "grafana/provisioning/dashboards/millpond.yaml")["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounted
    assert home.startswith(provider["options"]["path"] + "/")
    dashboard = json.loads((deploy / "grafana-dashboard.json").read_text(encoding="utf-8"))
    assert dashboard["uid"] == "millpond"


def test_the_image_s_context_holds_what_the_dockerfile_copies() -> None:
    copied = re.findall(
        r"^COPY (?!--from)(.*) \S+$", (ROOT / "deploy/Dockerfile").read_text("utf-8"), re.MULTILINE
    )
    names = {name for line in copied for name in line.split()}
    kept = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    assert names == set(kept)
