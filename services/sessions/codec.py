"""What a session is in Redis: some hundred bytes, no pickle, no interest.

    "FOS2" | w | check, 8 bytes | n | version, n bytes | rows, w bytes each, little-endian

w: 2, 3 or 4, as few as the highest row needs. check: of session id, version and rows, so that a
value that was damaged, or that belongs to another session, is told from this one's. w and n are
one byte each; the version is ASCII.
"""

from __future__ import annotations

import hashlib

import numpy as np

from services.ports import SessionCandidates

MAGIC = b"FOS2"
_CHECK_AT, _VERSION_AT = 5, 14


def encode(session_id: str, candidates: SessionCandidates) -> bytes:
    """Raises ValueError if the version has more than 255 bytes, or is not ASCII."""
    version = candidates.version.encode("ascii")
    if len(version) > 255:
        raise ValueError("a version has at most 255 bytes")
    rows = np.frombuffer(candidates.rows, "<u4")
    width = _width(rows)
    narrow = rows.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    check = _check(session_id, version, candidates.rows)
    return b"".join([MAGIC, bytes([width]), check, bytes([len(version)]), version, narrow])


def decode(session_id: str, value: bytes) -> SessionCandidates:
    """Raises ValueError for anything that `encode` did not write for this session."""
    if value[:4] != MAGIC or len(value) < _VERSION_AT:
        raise ValueError("not a session")
    width, rows_at = value[4], _VERSION_AT + value[_VERSION_AT - 1]
    if not 2 <= width <= 4 or len(value) < rows_at or (len(value) - rows_at) % width:
        raise ValueError("truncated")
    narrow = np.frombuffer(value, np.uint8, offset=rows_at).reshape(-1, width)
    padded = np.zeros((len(narrow), 4), np.uint8)
    padded[:, :width] = narrow
    version, rows = value[_VERSION_AT:rows_at], padded.tobytes()
    check = _check(session_id, version, rows)
    if check != value[_CHECK_AT : _VERSION_AT - 1] or width != _width(np.frombuffer(rows, "<u4")):
        raise ValueError("damaged, or another session's")
    return SessionCandidates(version.decode("ascii"), rows)


def _check(session_id: str, version: bytes, rows: bytes) -> bytes:
    return hashlib.sha256(b"\0".join([session_id.encode(), version, rows])).digest()[:8]


def _width(rows: np.ndarray) -> int:
    highest = int(rows.max()) if rows.size else 0
    return 2 if highest < 2**16 else 3 if highest < 2**24 else 4
