"""A reader who pastes the blocks of each page in turn: `python reader.py TASKS RESULTS`.

A process of its own, as a reader's is. TASKS is a JSON list of pages, each with its blocks and the
folder to be in; RESULTS becomes the list of what went wrong, by page and block. Python's blocks of
a page share their names. A command that serves is left running for the blocks after it. Only one
thing is not the reader's: port 8000 is `DOCUMENTATION_PORT`, since it may be taken (`loopback/`).
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from huggingface_hub import constants

READY = "ready at "
SHELLS = ("sh", "bash", "shell")


class Page:
    """The blocks of a page, as far as they have been pasted."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._server: subprocess.Popen[str] | None = None

    def paste(self, language: str, code: str, where: str) -> None:
        """Run a block; what goes wrong is raised."""
        if language in SHELLS:
            self._shell(code)
        elif language == "diff":
            for side in "-+":
                exec(compile(_side(code, side), where, "exec"), {"__name__": "__main__"})
        else:
            self._python(code, where)

    def _python(self, code: str, where: str) -> None:
        # Offline, Hugging Face's client for servers may not ask the reader's own one either.
        constants.HF_HUB_OFFLINE = "InferenceClient" not in code
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if ".ipynb" in where else 0
        program = compile(code, where, "exec", flags=flags, dont_inherit=True)
        if program.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(program, self._names))
        else:
            exec(program, self._names)

    def _shell(self, code: str) -> None:
        command = ["bash", "-euo", "pipefail", "-c", code]
        if "millpond serve" not in code and "millpond.server" not in code:
            done = subprocess.run(
                command, cwd=self._folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            assert done.returncode == 0, (
                f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
            )
            return
        self.leave()
        self._server = subprocess.Popen(
            command, cwd=self._folder, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._server.stderr is not None
        told = []
        for line in self._server.stderr:
            told.append(line)
            if READY in line:
                return
        raise AssertionError("it ended before it was ready:\n" + "".join(told))

    def leave(self) -> None:
        """Stop what serves."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.communicate()
            self._server = None


def _side(code: str, side: str) -> str:
    """A program before (-) or after (+) a change."""
    return "\n".join(line[1:] for line in code.splitlines() if line[:1] in (" ", side, ""))


def main() -> None:
    tasks, results = map(Path, sys.argv[1:])
    wrong = []
    for task in json.loads(tasks.read_text(encoding="utf-8")):
        os.chdir(task["folder"])
        page = Page(task["folder"])
        for block in task["blocks"]:
            try:
                page.paste(block["language"], block["code"], block["where"])
            except BaseException:
                wrong.append({"where": block["where"], "error": traceback.format_exc()})
        page.leave()
    results.write_text(json.dumps(wrong), encoding="utf-8")


if __name__ == "__main__":
    main()
