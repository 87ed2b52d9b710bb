"""Every flag of `millpond serve` is a variable too; what is on the command line wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import typer
import typer.main
from command_line import refusal, run

from millpond.cli import serve as serve_module
from millpond.cli.serve import serve
from millpond.cli.serve_command import ServeCommand


def options() -> list[Any]:
    """Every flag that the command declares, but --help."""
    command = typer.Typer(add_completion=False)
    command.command(cls=ServeCommand)(serve)
    return [one for one in typer.main.get_command(command).params if one.opts[0].startswith("-")]


OPTIONS = {option.name: option for option in options()}
# Options whose values are not free, or that need another beside them.
VALUES = {
    "log_level": "debug",
    "log_format": "json",
    "dtype": "half",
    "enable_prefix_caching": "0",
    "prefix_cache": "off",
    "pooling": "cls",
    "task": "score",
    "runner": "pooling",
    "convert": "none",
    "load_format": "safetensors",
    "memory_utilization": "0.5",
    "tensor_parallel_size": "1",
    "tokenizer_process": "on",
    "root_path": "/pond",
}
WITHOUT_EFFECT = {
    *("task", "runner", "convert", "load_format", "max_num_seqs", "seed", "enforce_eager"),
    *("disable_log_requests", "disable_log_stats", "tensor_parallel_size"),
}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command would run a server with."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(serve_module, "_run", lambda *asked: calls.append(asked))
    return calls


def value_of(option: Any) -> str:
    """A value that is not the default, as a variable holds it."""
    if option.name in VALUES:
        return VALUES[option.name]
    if option.is_flag:
        return "0" if option.default else "1"
    if isinstance(option.default, int | float):
        return str(int(option.default) + 1)
    return "7"  # a number or a word


def arguments(option: Any, value: str) -> list[str]:
    """The same on the command line."""
    if option.is_flag:
        return [option.opts[0] if value == "1" else option.secondary_opts[0]]
    return [f"{option.opts[0]}={value}"]


def test_there_are_many() -> None:
    assert len(OPTIONS) > 40
    assert all(option.envvar for option in OPTIONS.values())


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"ssl_keyfile"}))  # which has a test below
def test_a_variable_does_what_its_flag_does(
    name: str, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    option = OPTIONS[name]
    value = value_of(option)
    assert run("serve").exit_code == 0
    assert run("serve", *arguments(option, value)).exit_code == 0
    for variable in option.envvar:
        with monkeypatch.context() as environment:
            environment.setenv(variable, value)
            result = run("serve")
            assert result.exit_code == 0, result.stderr
    default, expected, *found = served
    assert found == [expected] * len(option.envvar)
    if name not in WITHOUT_EFFECT:
        assert expected != default


def test_a_variable_is_named_as_its_flag() -> None:
    assert OPTIONS["max_length"].envvar == ["MILLPOND_MAX_LENGTH", "MILLPOND_MAX_MODEL_LEN"]
    assert OPTIONS["api_keys"].envvar == ["MILLPOND_API_KEY"]
    assert OPTIONS["tensor_parallel_size"].envvar == ["MILLPOND_TENSOR_PARALLEL_SIZE"]


def test_a_key_file_beside_its_certificate(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLPOND_SSL_CERTFILE", "a.pem")
    monkeypatch.setenv("MILLPOND_SSL_KEYFILE", "b.pem")
    assert run("serve").exit_code == 0
    assert served[0][3].ssl_keyfile == "b.pem"


def test_several_values_are_separated_by_spaces(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLPOND_MODEL", "a b")
    monkeypatch.setenv("MILLPOND_SERVED_MODEL_NAME", "x  y")
    monkeypatch.setenv("MILLPOND_API_KEY", "first second")
    assert run("serve").exit_code == 0
    named, _, app_settings, _ = served[0]
    assert named == [("a", ("x",)), ("b", ("y",))]
    assert app_settings.api_keys == ("first", "second")


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_variable_counts_as_unset(
    value: str | None, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("MILLPOND_PORT", value)
    assert run("serve").exit_code == 0
    assert served[0][3].port == 8000


@pytest.mark.parametrize(
    ("variables", "flags", "part"),
    [
        ({"PORT": "1"}, ["--port=2"], "port=2"),
        ({"MODEL": "of-the-environment"}, ["named"], "('named', ())"),
        ({"MODEL": "of-the-environment"}, ["--model=named"], "('named', ())"),
        ({"ENABLE_PREFIX_CACHING": "1"}, ["--prefix-cache=off"], "'prefix_cache': 'off'"),
        ({"PREFIX_CACHE": "auto"}, ["--no-enable-prefix-caching"], "'prefix_cache': 'off'"),
        ({"MEMORY_BYTES": "5"}, ["--memory-utilization=0.5"], "'memory_utilization': 0.5"),
        ({"MEMORY_UTILIZATION": "0.5"}, ["--memory-bytes=5"], "'memory_bytes': 5"),
        ({"WARMUP": "0"}, ["--warmup"], "'warmup': True"),
        ({"UDS": "/a.sock"}, ["--port=2"], "uds=None"),
    ],
)
def test_the_command_line_wins(
    variables: dict[str, str],
    flags: Sequence[str],
    part: str,
    served: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"MILLPOND_{name}", value)
    result = run("serve", *flags)
    assert result.exit_code == 0, result.stderr
    assert part in str(served[0])
    assert "of-the-environment" not in str(served[0])


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "99999"),
        ("LOG_LEVEL", "loud"),
        ("PROTECT_METRICS", "perhaps"),
        ("MAX_BATCH_TOKENS", "many"),
        ("ROOT_PATH", "pond/"),
        ("REQUEST_TIMEOUT_S", "-1"),
        ("MEMORY_UTILIZATION", "5"),
        ("MAX_MODEL_LEN", "0"),
        ("TENSOR_PARALLEL_SIZE", "0"),
    ],
)
def test_a_bad_value_is_told_with_its_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MILLPOND_{variable}", value)
    assert f"MILLPOND_{variable} in the environment" in refusal("serve", "no-such-folder-anywhere")


def test_a_variable_that_kubernetes_sets_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_PORT", "tcp://10.0.0.1:8000")
    assert "enableServiceLinks" in refusal("serve")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("API_KEYS", "API_KEY"), ("DTYP", "DTYPE"), ("MAX_LENGHT", "MAX_LENGTH")],
)
def test_a_misspelt_variable_is_refused(
    variable: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MILLPOND_{variable}", "käse")
    told = refusal("serve")
    assert f"MILLPOND_{variable} in the environment" in told
    assert f"did you mean MILLPOND_{meant}?" in told
    assert "käse" not in told


def test_python_m_millpond_server_refuses_it_too(
    served: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        serve_module.main(["--port", "8001"])
    assert not end.value.code
    assert len(served) == 1
    monkeypatch.setenv("MILLPOND_API_KEYS", "käse")
    with pytest.raises(SystemExit) as end:
        serve_module.main([])
    assert end.value.code == 2
    assert "MILLPOND_API_KEY?" in capfd.readouterr().err


def test_variables_of_others_are_let_be(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "PORT_8000_TCP", "PORT_8000_TCP_ADDR", "FLAGS"):
        monkeypatch.setenv(f"MILLPOND_{name}", "7")
    assert run("serve").exit_code == 0
    assert len(served) == 1


def test_a_bad_flag_is_not_told_with_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_PORT", "80")
    for value in ("eighty", "99999"):
        assert "MILLPOND_" not in refusal("serve", "--port", value)


def test_a_key_of_the_environment_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_API_KEY", "käse")
    assert "käse" not in refusal("serve")


def test_the_help_says_it_once() -> None:
    shown = run("serve", "--help").stdout
    assert shown.count("MILLPOND_MAX_LENGTH") == 1
    assert "env var" not in shown
