"""Connections that break the rules of HTTP/2 and of gRPC's framing: what a client library does
not let through, written byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import random

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 8, 9
_END_STREAM, _END_HEADERS = 1, 4
_PATH = "/forward_ofa_api.controller.v1.ControllerService/RequestNetwork"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame of HTTP/2."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def headers(pairs: list[tuple[str, bytes]]) -> bytes:
    """HPACK, literals only."""
    return b"".join(b"\0" + _string(name.encode()) + _string(value) for name, value in pairs)


def _string(data: bytes) -> bytes:
    size, parts = len(data), bytearray()
    if size < 127:
        return bytes([size]) + data
    parts.append(127)
    size -= 127
    while size > 127:
        parts.append(size & 127 | 128)
        size >>= 7
    parts.append(size)
    return bytes(parts) + data


def _call(rng: random.Random) -> bytes:
    """A call with a header that is wrong, or a message whose length is a lie."""
    pairs = {
        ":method": b"POST",
        ":scheme": b"http",
        ":path": _PATH.encode(),
        ":authority": b"localhost",
        "te": b"trailers",
        "content-type": b"application/grpc",
        "grpc-timeout": b"1S",
    }
    wrong = {
        ":method": [b"GET", b"", b"\xff"],
        ":path": [b"", b"\xff\xfe", b"x" * 5000, b"/" + rng.randbytes(20)],
        "te": [b"", b"gzip"],
        "content-type": [b"", b"text/plain", b"application/grpc+json", b"\0"],
        "grpc-timeout": [b"", b"0n", b"-1S", b"999999999999H", b"1x", b"99999999n", b"\xff"],
        "grpc-encoding": [b"gzip", b"nonsense", b"identity"],
        "x-request-id": [b"\xc3\x28", b"\x80\xff", b"\0\0", b"a\r\nb: c", b"x" * 300_000],
        "grpc-previous-rpc-attempts": [b"-1", b"x", b"4294967296"],
        "x-bin": [b"!!not base64!!", b"====", b"\xff"],
        "X-Upper": [b"1"],
    }
    for name in rng.sample(list(wrong), rng.randrange(1, 4)):
        pairs[name] = rng.choice(wrong[name])
    if rng.random() < 0.2:
        del pairs[rng.choice([":method", ":path", ":scheme", "content-type", "te"])]
    body = rng.randbytes(rng.randrange(200))
    stated = rng.choice([len(body), len(body) + 1, 0, 2**32 - 1, 70_000])
    prefix = bytes([rng.choice([0, 0, 1, 2, 255])]) + stated.to_bytes(4, "big")
    block = headers(list(pairs.items()))
    calls = [
        frame(_HEADERS, _END_HEADERS, 1, block[:16_000]),
        frame(_DATA, rng.choice([0, _END_STREAM]), 1, prefix + body),
    ]
    if rng.random() < 0.3:
        calls.append(frame(_RESET, 0, 1, rng.randbytes(4)))
    if rng.random() < 0.2:
        calls.append(frame(_DATA, _END_STREAM, rng.choice([1, 2, 3]), rng.randbytes(30)))
    return b"".join(calls)


def connection(rng: random.Random) -> bytes:
    """What one client writes."""
    start = PREFACE + frame(_SETTINGS, 0, 0, b"")
    kind = rng.randrange(8)
    if kind == 0:
        return rng.randbytes(rng.randrange(2000))
    if kind == 1:
        return b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    if kind == 2:
        return PREFACE[: rng.randrange(len(PREFACE))]
    if kind == 3:
        return start + rng.randbytes(rng.randrange(2000))
    if kind == 4:
        kinds = [_SETTINGS, _PING, _WINDOW, _CONTINUATION, _RESET, 5, 7, 10, 200]
        frames = [
            frame(
                rng.choice(kinds),
                rng.randrange(256),
                rng.randrange(4),
                rng.randbytes(rng.randrange(40)),
            )
            for _ in range(50)
        ]
        return start + b"".join(frames)
    return start + _call(rng)


async def throw(address: str, data: bytes, seconds: float = 0.3) -> None:
    """Writes, reads for a moment whatever comes, hangs up."""
    host, port = address.rsplit(":", 1)
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while await reader.read(65_536):
                        pass
        finally:
            writer.close()
