"""Logging: lines for people on a terminal, JSON for everything else.

No interest vector, path or item id is ever logged: `log` takes named fields and
the services name only ids, versions, reasons and numbers.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from services.runtime.context import exemplar, request_id

_FIELDS = "forward_ofa_fields"


def log(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """One line with named fields and the ids of the current request and its trace."""
    if current := request_id.get():
        fields["request_id"] = current
    if trace := exemplar.get():
        fields.update(trace)
    logger.log(level, message, extra={_FIELDS: fields}, exc_info=level >= logging.ERROR)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Human(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, _FIELDS, {})
        tail = "".join(f"  {name}={value}" for name, value in fields.items())
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():7} {record.getMessage()}{tail}"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


# The last one: Python's own warnings, where `logging.captureWarnings` is on.
_OTHERS = ("grpc", "asyncio", "celery", "kombu", "py.warnings")
_NO_NEWS = (
    # A header that is not UTF-8, with its bytes: a token may be in it.
    "Invalid encoding on",
    # A caller hung up while it was answered.
    "ExecuteBatchError raised in core",
)


class _NoNews(logging.Filter):
    """Drops what gRPC logs, with a traceback, whenever a stranger wants it to."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_NO_NEWS)


def configure(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send the services' logs to `stream` (left out: standard error), with the warnings of what
    they run on. For entry points; never called on import."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Human() if stream.isatty() else _Json())
    handler.addFilter(_NoNews())
    for name in ("services", *_OTHERS):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel("WARNING" if name in _OTHERS else level)
        logger.propagate = False
