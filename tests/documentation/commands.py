"""`millpond …` from a process that has imported everything already: seconds less for each command.

`python commands.py listen FD` takes commands from a listening socket and forks a child for each,
which runs the real command line on the caller's own standard streams. `python commands.py PATH
ARGUMENT…` is such a caller.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys

STREAMS = (0, 1, 2)
IMPORTED = (
    "millpond.engine.engine",
    "millpond.runner.load",
    "millpond.cli.embed",
    "pyarrow.parquet",
    "transformers.models.bert.modeling_bert",
)
"""What takes the time; nothing of it is run before the fork."""


def listen(descriptor: int) -> None:
    """Run the commands that come in, one at a time, until the process is ended."""
    for name in IMPORTED:
        importlib.import_module(name)
    from millpond.cli import main

    with socket.socket(fileno=descriptor) as listener:
        while True:
            caller, _ = listener.accept()
            with caller:
                told, streams, _, _ = socket.recv_fds(caller, 1 << 16, len(STREAMS))
                child = os.fork()
                if child == 0:
                    listener.close()
                    for stream, own in zip(streams, STREAMS, strict=True):
                        os.dup2(stream, own)
                    os._exit(_run(main, **json.loads(told)))
                for stream in streams:
                    os.close(stream)
                _, status = os.waitpid(child, 0)
                caller.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))


def _run(main: object, arguments: list[str], folder: str) -> int:
    os.chdir(folder)
    sys.argv = ["millpond", *arguments]
    code: object = 0
    try:
        main()  # type: ignore[operator]
    except SystemExit as end:
        code = end.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1


def call(path: str, arguments: list[str]) -> int:
    """Hand a command over; its exit status."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path)
        told = json.dumps({"arguments": arguments, "folder": os.getcwd()}).encode()
        socket.send_fds(caller, [told], STREAMS)
        return caller.recv(1)[0]


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen(int(sys.argv[2]))
    sys.exit(call(sys.argv[1], sys.argv[2:]))
