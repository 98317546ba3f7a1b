"""What travels with a request from task to task and from hop to hop."""

from __future__ import annotations

import random
import re
import time
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the current task serves."""

deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))
"""When the current request's answer is useless, on the clock of `time.monotonic`."""

traceparent: ContextVar[str] = ContextVar("traceparent", default="")
"""The W3C trace context of the current request or span, "" if there is none."""

exemplar: ContextVar[dict[str, str] | None] = ContextVar("exemplar", default=None)
"""What a histogram notes beside a value: the trace id, if the trace is recorded."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Version 00; later ones begin alike.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def choose_request_id(offered: object) -> str:
    """The caller's id if it sent a sane one, else a new one."""
    if isinstance(offered, str) and _REQUEST_ID.fullmatch(offered):
        return offered
    # Only has to differ from others; nobody gains anything by guessing it.
    return f"{random.getrandbits(64):016x}"


def sane_traceparent(offered: object) -> str:
    """The caller's trace context, "" if it sent none or rubbish."""
    if isinstance(offered, str) and _TRACEPARENT.fullmatch(offered):
        return offered
    return ""


def seconds_left(margin: float = 0.0) -> float:
    """Until the current request's deadline less a margin; inf if there is none, 0 if passed."""
    return max(0.0, deadline.get() - margin - time.monotonic())
