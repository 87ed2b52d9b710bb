"""Log lines as text or as JSON, and the logging configuration of the server process.

`create_app` does not configure logging.
"""

from __future__ import annotations

import logging
import logging.config
from datetime import UTC, datetime
from typing import Any

import orjson

from .settings import LogFormat

__all__ = ["JsonFormatter", "TextFormatter", "configure_logging"]


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
        # The message contains the others.
        shown = {name: fields[name] for name in fields if name not in ("method", "path", "status")}
        line += "".join(f" {name}={value}" for name, value in shown.items())
        line = _printable(line)
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


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send Millpond's and uvicorn's lines to stderr. uvicorn's own access log stays off."""
    formatter = {"text": TextFormatter, "json": JsonFormatter}[log_format]
    to_stderr = {"handlers": ["stderr"], "propagate": False}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": formatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "loggers": {
                "millpond": {**to_stderr, "level": level.upper()},
                "uvicorn": {**to_stderr, "level": "WARNING"},
            },
        }
    )
