"""What a session is in Redis: a few hundred bytes, no pickle, no interest.

    "FOS1" | n, version (n bytes) | m, etag (m bytes) | indices, little-endian uint32

n and m are one byte each; texts are ASCII.
"""

from __future__ import annotations

import numpy as np

from services.ports import SessionCandidates

MAGIC = b"FOS1"


def encode(candidates: SessionCandidates) -> bytes:
    """Raises ValueError if a text has more than 255 bytes, or is not ASCII."""
    parts = [MAGIC]
    for text in (candidates.version, candidates.etag):
        raw = text.encode("ascii")
        if len(raw) > 255:
            raise ValueError("version and etag have at most 255 bytes")
        parts += [bytes([len(raw)]), raw]
    parts.append(np.asarray(candidates.indices, "<u4").tobytes())
    return b"".join(parts)


def decode(value: bytes) -> SessionCandidates:
    """Raises ValueError for anything that `encode` did not write."""
    if value[:4] != MAGIC:
        raise ValueError("not a session")
    texts, at = [], len(MAGIC)
    for _ in range(2):
        size = value[at] if at < len(value) else len(value)
        raw = value[at + 1 : at + 1 + size]
        if len(raw) != size:
            raise ValueError("truncated")
        texts.append(raw.decode("ascii"))
        at += 1 + size
    if (len(value) - at) % 4:
        raise ValueError("truncated")
    indices = np.frombuffer(value, "<u4", offset=at).tolist()
    return SessionCandidates(texts[0], indices, texts[1])
