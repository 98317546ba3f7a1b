"""The safetensors format, read and written with numpy alone.

A file is an 8-byte little-endian header length, a JSON header, then the raw
bytes of the tensors. It is data and nothing else: reading one runs no code.
Everything that comes from disk or network is checked before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from forward_ofa_device.errors import CorruptFile

MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 40
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_header(
    entries: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> bytes:
    """The header of a file whose tensors follow in the order of `entries`.

    `entries`: name -> (dtype name, shape, bytes).
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A whole file. Tensors are float32, float16 or int8; others raise TypeError."""
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    entries = {}
    for name, value in arrays.items():
        dtype = value.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise TypeError(f"tensor {name} is {value.dtype}: write float32, float16 or int8")
        arrays[name] = value.astype(dtype, copy=False)
        entries[name] = (_NAMES[dtype], value.shape, value.nbytes)
    return write_header(entries, metadata) + b"".join(a.tobytes() for a in arrays.values())


def read_tensors(data: bytes | memoryview) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors (read-only views into `data`) and metadata.

    Raises CorruptFile if anything about the file is not as the format says:
    truncated, overlapping or out of bounds, unknown types, trailing bytes.
    """
    view = memoryview(data)
    if len(view) < 8:
        raise CorruptFile("a safetensors file has at least 8 bytes")
    size = int.from_bytes(view[:8], "little")
    if size > min(MAX_HEADER_BYTES, len(view) - 8):
        raise CorruptFile("the header is longer than the file")
    try:
        header = json.loads(bytes(view[8 : 8 + size]))
    except (ValueError, RecursionError) as error:
        raise CorruptFile("the header is not JSON") from error
    if not isinstance(header, dict):
        raise CorruptFile("the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CorruptFile("the metadata are not text")
    body = view[8 + size :]
    tensors: dict[str, np.ndarray] = {}
    end = 0
    for name, entry in header.items():
        tensors[name], end = _read_entry(name, entry, body, end)
    if end != len(body):
        raise CorruptFile("bytes follow the last tensor")
    return tensors, metadata


def _read_entry(
    name: str, entry: object, body: memoryview, expected_start: int
) -> tuple[np.ndarray, int]:
    try:
        if not isinstance(entry, dict):
            raise TypeError("not an object")
        dtype = _DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
        if not all(type(n) is int and 0 <= n <= MAX_SIZE for n in (*shape, start, end)):
            raise ValueError("not sizes")
        if len(shape) > MAX_DIMENSIONS:
            raise ValueError("too many dimensions")
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"tensor {name!r} is not described as the format says") from error
    if start != expected_start or end > len(body):
        raise CorruptFile(f"tensor {name!r} lies outside the file")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise CorruptFile(f"tensor {name!r} has not the size of its shape")
    try:
        return np.frombuffer(body[start:end], dtype=dtype).reshape(shape), end
    except ValueError as error:  # an empty shape whose other sides numpy cannot hold
        raise CorruptFile(f"tensor {name!r} has an impossible shape") from error
