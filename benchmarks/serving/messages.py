"""Requests and replies of every system as bytes, read and written by hand.

The load generator shares a machine with what it measures, so it must cost little: requests
are made before the clock starts, replies are not parsed into messages but looked up in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.artefact import BlockLayout, Encoding, decode_block, unpack_path

ENCODINGS: dict[Encoding, types.Encoding.ValueType] = {
    "float32": types.ENCODING_FLOAT32,
    "float16": types.ENCODING_FLOAT16,
    "int8": types.ENCODING_INT8,
}
OURS = "/forward_ofa_api.controller.v1.ControllerService/RequestNetwork"
KSERVE = "/inference.GRPCInferenceService/ModelInfer"
PLAIN = "/benchmark.Plain/Generate"

Buffer = memoryview


class BadReply(ValueError):
    """A reply that is not what was asked for."""


# Protobuf's wire format, as much of it as is needed: varints and length-delimited fields.


def varint(value: int) -> bytes:
    """An unsigned varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, value: bytes | str | int) -> bytes:
    """One field: an integer, or bytes, text or a nested message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def fields(data: Buffer) -> Iterator[tuple[int, Buffer | int]]:
    """(number, value) of a message's fields: views of length-delimited ones, integers.

    Raises BadReply for what is no message.
    """
    at, end = 0, len(data)
    try:
        while at < end:
            key, at = _read_varint(data, at)
            kind = key & 7
            if kind == 2:
                size, at = _read_varint(data, at)
                if at + size > end:
                    raise BadReply("a field reaches beyond the message")
                yield key >> 3, data[at : at + size]
                at += size
            elif kind == 0:
                value, at = _read_varint(data, at)
                yield key >> 3, value
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise BadReply("this is no protobuf message")
    except IndexError as error:
        raise BadReply("the message is cut off") from error


def _read_varint(data: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def bytes_field(data: Buffer, number: int) -> Buffer:
    """The last length-delimited field of that number. Raises BadReply if there is none."""
    found = None
    for key, value in fields(data):
        if key == number and isinstance(value, memoryview):
            found = value
    if found is None:
        raise BadReply(f"the reply has no field {number}")
    return found


# Requests.


def our_request(
    version: str,
    session: str,
    path: bytes,
    interest: bytes,
    encoding: Encoding,
    held_etag: str = "",
) -> bytes:
    """RequestNetworkRequest. interest: 4 D bytes."""
    return api.RequestNetworkRequest(
        version=version,
        session_id=session,
        path=types.Path(bits=path),
        interest=types.Interest(values=interest),
        accepted_encodings=[ENCODINGS[encoding]],
        held_candidates_etag=held_etag,
    ).SerializeToString()


def kserve_request(interest: bytes, *, text: bool) -> bytes:
    """ModelInferRequest with raw contents: one row of float32, or one BYTES element (text)."""
    if text:
        tensor = field(1, "interest") + field(2, "BYTES") + field(3, varint(1))
        raw = len(interest).to_bytes(4, "little") + interest
    else:
        shape = varint(1) + varint(len(interest) // 4)
        tensor = field(1, "interest") + field(2, "FP32") + field(3, shape)
        raw = interest
    return field(1, "mapper") + field(5, tensor) + field(7, raw)


# Replies. A reader gives the view in which all kept blocks' payloads lie, one after the other.

Reader = Callable[[bytes], Buffer]


def read_ours(reply: bytes) -> Buffer:
    """RequestNetworkResponse -> artefact -> what comes after the safetensors header."""
    data = bytes_field(bytes_field(memoryview(reply), 2), 1)
    return data[8 + int.from_bytes(data[:8], "little") :]


def read_etag(reply: bytes) -> str:
    """The candidates' etag of a RequestNetworkResponse."""
    return api.RequestNetworkResponse.FromString(reply).candidates.etag


def read_not_modified(reply: bytes) -> bool:
    """Whether a RequestNetworkResponse has no candidates, since the device holds them."""
    candidates = bytes_field(memoryview(reply), 3)
    return (2, 1) in [(key, value) for key, value in fields(candidates) if key == 2]


def read_kserve(reply: bytes) -> Buffer:
    """ModelInferResponse.raw_output_contents[0]."""
    return bytes_field(memoryview(reply), 6)


def read_kserve_text(reply: bytes) -> Buffer:
    """The same for one BYTES element: its length, then it."""
    raw = bytes_field(memoryview(reply), 6)
    if int.from_bytes(raw[:4], "little") != len(raw) - 4:
        raise BadReply("the BYTES output has not one element")
    return raw[4:]


READERS: dict[str, Reader] = {
    "ours": read_ours,
    "kserve": read_kserve,
    "kserve-text": read_kserve_text,
    "plain": memoryview,
    "echo": memoryview,
}


# What is in them.


@dataclass(frozen=True)
class Payloads:
    """How the payloads of one network lie in a reply."""

    layout: BlockLayout
    encoding: Encoding

    def arrays(self, payloads: Buffer, kept: int) -> list[np.ndarray]:
        """A view of each kept block: float32 or float16 [P], int8: its bytes.

        Raises BadReply for a wrong size.
        """
        size = self.layout.encoded_bytes(self.encoding)
        if len(payloads) != kept * size:
            raise BadReply(f"{len(payloads)} bytes of parameters, {kept * size} expected")
        dtype = _DTYPES[self.encoding]
        return [
            np.frombuffer(payloads[at : at + size], dtype) for at in range(0, kept * size, size)
        ]

    def check(self, payloads: Buffer, path: Sequence[bool], truth: np.ndarray) -> None:
        """Compares with the parameters [L, P] that the network should have.

        Raises BadReply if they are further away than the encoding explains.
        """
        size = self.layout.encoded_bytes(self.encoding)
        kept = [block for block, is_kept in enumerate(path) if is_kept]
        self.arrays(payloads, len(kept))
        for place, block in enumerate(kept):
            one = decode_block(payloads[place * size :][:size], self.layout, self.encoding)
            # One int8 step is at most 1/127 of the largest value of a column.
            bound = {"float32": 1e-4, "float16": 2e-3, "int8": 1 / 127}[self.encoding]
            for name, value in self.layout.split(truth[block]).items():
                worst = float(np.abs(one[name] - value).max())
                if not worst <= bound * max(1.0, float(np.abs(value).max())):
                    raise BadReply(f"block {block}, {name}: off by {worst:.3g}")


_DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "u1"}


@lru_cache(maxsize=256)
def kept_blocks(path: bytes, blocks: int) -> int:
    """How many blocks the bits keep."""
    return sum(unpack_path(path, blocks))
