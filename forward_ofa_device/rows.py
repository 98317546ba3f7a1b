"""Embeddings on the wire: n rows of D values in one of the three encodings.

float32, float16: row-major, little-endian. int8: n binary16 scales, one a row, then
n x D int8 values; value = int8 * scale of its row.
"""

from __future__ import annotations

import numpy as np

from forward_ofa_device.artefact import Encoding, column_scales, quantise
from forward_ofa_device.errors import CorruptFile

_HALF_MAX = float(np.finfo(np.float16).max)


def encode_rows(rows: np.ndarray, encoding: Encoding) -> bytes:
    """float32 [n, D] to the bytes of `Candidates.embeddings`."""
    if encoding == "float32":
        return np.ascontiguousarray(rows, "<f4").tobytes()
    if encoding == "float16":
        return rows.clip(-_HALF_MAX, _HALF_MAX).astype("<f2").tobytes()
    scales = column_scales(rows.T)
    codes = np.ascontiguousarray(quantise(rows.T, scales).T)
    return scales.astype("<f2").tobytes() + codes.tobytes()


def decode_rows(payload: bytes, encoding: Encoding, count: int, hidden: int) -> np.ndarray:
    """Bytes to float32 [count, hidden].

    Raises CorruptFile for a wrong size or a value that is not finite.
    """
    per_row = {"float32": 4 * hidden, "float16": 2 * hidden, "int8": 2 + hidden}[encoding]
    if len(payload) != count * per_row:
        raise CorruptFile(
            f"{count} embeddings have {len(payload)} bytes, {count * per_row} expected"
        )
    if encoding == "int8":
        scales = np.frombuffer(payload, "<f2", count).astype(np.float32)
        codes = np.frombuffer(payload, np.int8, offset=2 * count).reshape(count, hidden)
        rows = codes * scales[:, None]
    else:
        dtype = "<f4" if encoding == "float32" else "<f2"
        rows = np.frombuffer(payload, dtype).astype(np.float32).reshape(count, hidden)
    if not np.isfinite(rows).all():
        raise CorruptFile("the embeddings have values that are not finite")
    return rows
