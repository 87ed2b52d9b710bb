"""`Listener`: an address is had or refused at once, and no file of somebody else is touched."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from millpond.errors import InvalidOption
from millpond.server.process.sockets import Listener
from millpond.server.settings import ListenSettings

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix domain sockets")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pond.sock"


@pytest.fixture
def served(path: Path) -> Iterator[socket.socket]:
    """A socket that somebody serves."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield server


def bind(path: Path) -> Listener:
    return Listener.bind(ListenSettings(uds=str(path)))


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = ListenSettings(port=taken.getsockname()[1])
        with pytest.raises(InvalidOption, match="cannot listen on 127"):
            Listener.bind(listen)


def test_a_socket_is_bound_open_to_all_and_not_listening(path: Path) -> None:
    with bind(path) as listener:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        with socket.socket(socket.AF_UNIX) as caller, pytest.raises(ConnectionRefusedError):
            caller.connect(str(path))
        listener.require_ours()
        assert repr(listener) == f"Listener(at={str(path)!r})"
    assert not path.exists()


def test_a_socket_that_somebody_serves_is_refused(path: Path, served: socket.socket) -> None:
    with pytest.raises(InvalidOption, match=r"pond.sock: another server answers there"):
        bind(path)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))


def test_a_socket_whose_owner_accepts_nobody_is_refused_at_once(path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(path))
        server.listen(0)
        with suppress(BlockingIOError):
            while True:  # until no more may wait
                caller = stack.enter_context(socket.socket(socket.AF_UNIX))
                caller.setblocking(False)
                caller.connect(str(path))
        with pytest.raises(InvalidOption, match="another server has it, but accepts no"):
            bind(path)
        assert path.exists()


def test_a_socket_that_was_left_behind_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with bind(path) as listener:
        listener.socket.listen()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
    assert not path.exists()


def test_a_file_that_is_no_socket_is_refused(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(InvalidOption, match="the file exists and is not a socket"):
        bind(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["no/pond.sock", "x" * 200])
def test_a_path_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="cannot listen on"):
        bind(tmp_path / name)


def test_who_loads_longer_notices_and_takes_nothing_away(path: Path) -> None:
    with bind(path) as slow, bind(path) as quick:
        quick.require_ours()
        with pytest.raises(InvalidOption, match="another server took it in the meantime"):
            slow.require_ours()
        slow.close()
        assert path.exists()
