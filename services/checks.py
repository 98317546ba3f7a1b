"""Checks of values that callers send, shared by the services that read them."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from forward_ofa_device.artefact import unpack_path
from services.errors import Fault, Reason

_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


@lru_cache(maxsize=4096)
def check_path(bits: bytes, blocks: int) -> tuple[bool, ...]:
    """Packed bits to one boolean a block. Raises Fault MALFORMED_PATH or EMPTY_PATH.

    Remembered: there are few paths, and three services read each.
    """
    try:
        return unpack_path(bits, blocks)
    except ValueError as error:
        if len(bits) == (blocks + 7) // 8 and not any(bits):
            raise Fault(Reason.EMPTY_PATH) from error
        raise Fault(Reason.MALFORMED_PATH, problem=error) from error


def check_interest(values: bytes, hidden: int) -> np.ndarray:
    """Bytes to float32 [hidden], a read-only view.

    Raises Fault MALFORMED_INTEREST or NON_FINITE_INTEREST.
    """
    if len(values) != 4 * hidden:
        raise Fault(Reason.MALFORMED_INTEREST, got=len(values), expected=4 * hidden, hidden=hidden)
    interest: np.ndarray = np.frombuffer(values, "<f4")
    if not np.isfinite(interest).all():
        raise Fault(Reason.NON_FINITE_INTEREST)
    return interest


def check_session_id(session_id: str) -> str:
    """Raises Fault MALFORMED_SESSION."""
    if not _SESSION_ID.fullmatch(session_id):
        raise Fault(Reason.MALFORMED_SESSION)
    return session_id
