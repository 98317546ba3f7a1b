"""Logging: lines for people on a terminal, JSON for everything else.

No interest vector, path or item id is ever logged: `log` takes named fields and
the services name only ids, versions, reasons and numbers.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the current task serves; travels from hop to hop."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FIELDS = "forward_ofa_fields"


def choose_request_id(metadata: Sequence[tuple[str, str | bytes]], key: str) -> str:
    """The caller's id if it sent a sane one, else a new one."""
    for name, value in metadata:
        if name == key and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)


def log(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """One line with named fields and the id of the current request."""
    if current := request_id.get():
        fields["request_id"] = current
    logger.log(level, message, extra={_FIELDS: fields}, exc_info=level >= logging.ERROR)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
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


def configure(level: str = "INFO", stream: TextIO = sys.stderr) -> None:
    """Send the services' logs to `stream`. For entry points; never called on import."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Human() if stream.isatty() else _Json())
    logger = logging.getLogger("services")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
