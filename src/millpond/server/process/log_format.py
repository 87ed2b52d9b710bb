"""Log lines as text or as JSON, and the logging configuration of the server process.

`create_app` does not configure logging.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from ..settings import LogFormat

__all__ = ["BatchedHandler", "JsonFormatter", "TextFormatter", "configure_logging"]

BATCHED_LOGGER = "millpond.access"
BATCH_S = 0.05  # a line of the access log waits no longer
MOST_LINES = 256
IN_MESSAGE = ("method", "path", "status")  # fields of a line that its message has already


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _printable(text: str) -> str:
    """With line breaks and control characters escaped, so that a client cannot forge a line."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message key=value …`. Only a traceback takes more than one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        fields: dict[str, Any] = getattr(record, "fields", {})
        shown = [f" {name}={fields[name]}" for name in fields if name not in IN_MESSAGE]
        line = _printable("".join((line, *shown)))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class BatchedHandler(logging.StreamHandler[TextIO]):
    """Writes several lines of the access log together, and any other line at once.

    Each write releases the interpreter lock, and the event loop waits for it as long as the
    thread that runs a model keeps it: for every request, if its line is written alone.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._lines: list[str] = []  # under the handler's lock, as what follows
        self._is_scheduled = False

    def emit(self, record: logging.LogRecord) -> None:
        """Called under the handler's lock."""
        try:
            self._lines.append(self.format(record))
            if record.name != BATCHED_LOGGER or not self._can_wait():
                self.flush()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Write what there is, unless the stream was closed."""
        self.acquire()
        try:
            lines, self._lines, self._is_scheduled = self._lines, [], False
            if self.stream.closed:
                return
            if lines:
                self.stream.write("".join(f"{line}{self.terminator}" for line in lines))
            super().flush()
        finally:
            self.release()

    def _can_wait(self) -> bool:
        """Whether the event loop of this thread is going to write the line."""
        if not self._is_scheduled:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return False
            loop.call_later(BATCH_S, self._flush_in_time)
            self._is_scheduled = True
        return len(self._lines) < MOST_LINES

    def _flush_in_time(self) -> None:
        with contextlib.suppress(OSError):  # the reader of standard error is gone
            self.flush()

    def __repr__(self) -> str:
        return f"BatchedHandler(lines={len(self._lines)}, scheduled={self._is_scheduled})"


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send Millpond's and uvicorn's lines to stderr. uvicorn's own access log stays off."""
    # Of every record, and no line has them.
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    formatter = {"text": TextFormatter, "json": JsonFormatter}[log_format]
    to_stderr = {"handlers": ["stderr"], "propagate": False}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": formatter}},
            "handlers": {"stderr": {"()": BatchedHandler, "formatter": "line"}},
            "loggers": {
                "millpond": {**to_stderr, "level": level.upper()},
                "uvicorn": {**to_stderr, "level": "WARNING"},
            },
        }
    )
