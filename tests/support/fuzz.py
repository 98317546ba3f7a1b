"""Requests that nobody should send: rubbish in fields, in bytes, in metadata, on the wire."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st

from forward_ofa_api.assembler.v1 import assembler_pb2
from forward_ofa_api.controller.v1 import controller_pb2
from forward_ofa_api.mapper.v1 import mapper_pb2
from forward_ofa_api.types.v1 import types_pb2
from tests.support.versions import TinyVersion

_CONTROLLER = "/forward_ofa_api.controller.v1.ControllerService/"
METHODS = {
    f"{_CONTROLLER}RequestNetwork": controller_pb2.RequestNetworkRequest,
    f"{_CONTROLLER}GetCandidates": controller_pb2.GetCandidatesRequest,
    f"{_CONTROLLER}GetDeviceBundle": controller_pb2.GetDeviceBundleRequest,
    "/forward_ofa_api.mapper.v1.MapperService/GenerateBlocks": mapper_pb2.GenerateBlocksRequest,
    "/forward_ofa_api.assembler.v1.AssemblerService/AssembleNetwork": (
        assembler_pb2.AssembleNetworkRequest
    ),
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest,
    "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": (
        reflection_pb2.ServerReflectionRequest
    ),
}
STREAMS = ("GetDeviceBundle", "Watch", "ServerReflectionInfo")
WRONG_METHODS = (
    "/",
    "/x",
    "//",
    f"{_CONTROLLER}requestnetwork",
    f"{_CONTROLLER}Nothing",
    f"{_CONTROLLER}RequestNetwork/",
    "/forward_ofa_api.controller.v2.ControllerService/RequestNetwork",
    "/forward_ofa_api." + 200 * "x" + "/y",
)
# What devices ask most gets most of the rubbish.
_WEIGHTED = [*METHODS, *[f"{_CONTROLLER}RequestNetwork"] * 6, f"{_CONTROLLER}GetCandidates"]
_KINDS = ("fields", "fields", "fields", "unknown", "truncated", "flipped", "random", "twice")
_METADATA = ("none", "none", "none", "none", "ids", "ids", "binary", "many", "long")
_TIMEOUTS = (*["long"] * 10, "short", "tiny")
Choice = tuple[str, str, str, str]


@dataclass(frozen=True)
class Shot:
    """One call. seconds: its deadline. hurried: the deadline may well pass."""

    method: str
    data: bytes
    metadata: tuple[tuple[str, str | bytes], ...]
    seconds: float
    hurried: bool

    @property
    def stream(self) -> bool:
        return self.method.endswith(STREAMS)


@st.composite
def volleys(draw: Callable[..., Any], size: int) -> tuple[int, list[Choice]]:
    """`size` calls that are to be made at once: a seed for what is in them, and their kinds."""
    seed = draw(st.integers(0, 2**64 - 1))
    choice = st.tuples(
        st.sampled_from([*4 * _WEIGHTED, *WRONG_METHODS]),
        st.sampled_from(_KINDS),
        st.sampled_from(_METADATA),
        st.sampled_from(_TIMEOUTS),
    )
    return seed, draw(st.lists(choice, min_size=size, max_size=size))


def shots(tiny: TinyVersion, seed: int, choices: Sequence[Choice]) -> list[Shot]:
    """The calls of a volley: the same for the same arguments."""
    return [
        _shot(tiny, random.Random(f"{seed}-{index}"), choice)
        for index, choice in enumerate(choices)
    ]


def _shot(tiny: TinyVersion, rng: random.Random, choice: Choice) -> Shot:
    method, kind, metadata, timeout = choice
    message = _valid(tiny, rng, METHODS.get(method, controller_pb2.RequestNetworkRequest))
    if kind == "fields":
        for _ in range(rng.randrange(4)):
            _mutate(message, rng)
    data = _spoil(message.SerializeToString(), kind, rng)
    seconds = {"long": 20.0, "short": rng.uniform(0.002, 0.2), "tiny": 1e-6}[timeout]
    hurried = timeout != "long"
    if method.endswith("Watch"):
        # It has no end of its own.
        seconds, hurried = 0.02, True
    return Shot(method, data, _metadata(metadata, rng), seconds, hurried)


def _valid(tiny: TinyVersion, rng: random.Random, kind: type[Message]) -> Message:
    values: Mapping[str, Any] = {
        "version": tiny.version,
        "session_id": f"session-{rng.randrange(1000):04d}",
        "path": types_pb2.Path(bits=tiny.path(rng.randrange(tiny.config.blocks))),
        "interest": types_pb2.Interest(values=tiny.interest(rng.randrange(100)).tobytes()),
        "encoding": rng.randrange(1, 4),
        "accepted_encodings": [rng.randrange(1, 4)],
        "part": rng.randrange(1, 4),
        "list_services": "",
    }
    names = [field.name for field in kind.DESCRIPTOR.fields]
    return kind(**{name: value for name, value in values.items() if name in names})


def _mutate(message: Message, rng: random.Random) -> None:
    """One field, at any depth, gets a value that it should not have, or loses the one it has."""
    field = rng.choice(message.DESCRIPTOR.fields)
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        count = rng.choice([0, 1, 2, 3, 16, 17, 500])
        message.ClearField(field.name)
        if field.message_type is None:
            getattr(message, field.name).extend(_value(field, rng) for _ in range(count))
        else:
            for _ in range(count):
                _mutate(getattr(message, field.name).add(), rng)
    elif field.message_type is not None:
        _mutate(getattr(message, field.name), rng)
    else:
        setattr(message, field.name, _value(field, rng))


def _value(field: Field, rng: random.Random) -> Any:
    if field.type == Field.TYPE_STRING:
        return _text(rng)
    if field.type == Field.TYPE_BYTES:
        return _bytes(rng)
    if field.type == Field.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == Field.TYPE_ENUM:
        return rng.choice([0, 1, 2, 3, 4, 99, -1, 2**31 - 1, -(2**31)])
    if field.type in (Field.TYPE_UINT64, Field.TYPE_UINT32):
        top = 2 ** (64 if field.type == Field.TYPE_UINT64 else 32) - 1
        return rng.choice([0, 1, 2, 255, 256, top // 2, top // 2 + 1, top - 1, top])
    return rng.choice([0, 1, -1, 2**31 - 1, -(2**31)])


def _text(rng: random.Random) -> str:
    some = "".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.randrange(40)))
    return rng.choice(
        [
            "",
            "v1",
            "v2",
            "stable",
            "..",
            "../v1",
            "/etc/passwd",
            "v1\0",
            "v1\n",
            "session-0001",
            "s" * 7,
            "s" * 65,
            "x" * 10_000,
            "\u202egnp.exe\U0001f4a5\u0000\uffff",
            "%s%n{0}{version}",
            "forward_ofa_api.controller.v1.ControllerService",
            some,
        ]
    )


def _bytes(rng: random.Random) -> bytes:
    special = (
        0x7F800000,
        0xFF800000,
        0x7FC00000,
        0x7F800001,
        0x7F7FFFFF,
        1,
        0x80000000,
        0x7F000000,
    )
    floats = [struct.pack("<I", rng.choice(special)) for _ in range(8)]
    some = [struct.pack("<f", rng.uniform(-1, 1)) for _ in range(8)]
    some[rng.randrange(8)] = rng.choice(floats)
    size = rng.choice([0, 1, 2, 3, 4, 28, 31, 33, 36, 64, 1000, 60_000])
    return rng.choice(
        [
            b"",
            b"\0",
            bytes([rng.randrange(256)]),
            bytes([rng.randrange(1, 16)]),
            b"\xff\xff",
            b"".join(floats),
            b"".join(some),
            b"".join(some),
            rng.randbytes(32),
            rng.randbytes(size),
            bytes(size),
        ]
    )


def _spoil(data: bytes, kind: str, rng: random.Random) -> bytes:
    if kind == "unknown":
        return data + _unknown_field(rng)
    if kind == "truncated":
        return data[: rng.randrange(len(data) + 1)]
    if kind == "flipped":
        spoiled = bytearray(data)
        for _ in range(rng.randrange(1, 6) if data else 0):
            spoiled[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(spoiled)
    if kind == "random":
        return rng.randbytes(rng.choice([0, 1, 2, 10, 100, 1000, 70_000]))
    if kind == "twice":
        return data + data
    return data


def _unknown_field(rng: random.Random) -> bytes:
    """A field of a version of the API to come, or one that is no field at all."""
    deep = b""
    for _ in range(rng.choice([1, 3, 150])):
        deep = b"\xa2\x06" + _varint(len(deep)) + deep
    return rng.choice(
        [
            b"\xa0\x06" + _varint(rng.getrandbits(64)),
            b"\xa2\x06\x03abc",
            b"\xa1\x06" + rng.randbytes(8),
            b"\xa3\x06\xa4\x06",
            b"\xa3\x06" * 200,
            b"\x00\x01",
            b"\x0a" + b"\xff" * 9 + b"\x01",
            deep,
        ]
    )


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _metadata(kind: str, rng: random.Random) -> tuple[tuple[str, str | bytes], ...]:
    def line(size: int) -> str:
        return "".join(chr(rng.randrange(0x20, 0x7F)) for _ in range(rng.randrange(size)))

    if kind == "ids":
        names = ("x-request-id", "traceparent", "authorization", "user-agent", "x-request-id")
        return tuple((name, line(100)) for name in rng.sample(names, rng.randrange(1, 6)))
    if kind == "binary":
        names = ("grpc-status-details-bin", "x-request-id-bin", "traceparent-bin")
        return tuple((name, rng.randbytes(rng.randrange(300))) for name in names)
    if kind == "many":
        return tuple((f"x-{rng.randrange(1000)}", line(30)) for _ in range(60))
    if kind == "long":
        return (("x-request-id", "a" * rng.choice([65, 5_000, 20_000])),)
    return ()
