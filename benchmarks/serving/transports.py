"""How the load generator asks: gRPC, or HTTP/1.1 with kept connections. Bytes in, bytes out."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import grpc

_CHANNEL = (
    # Each client is a device with a connection of its own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
)
_CONNECT_SECONDS = 20.0
_HTTP_LIMIT = 4 << 20


class Refused(Exception):
    """The system is full and says so."""


class Connection(Protocol):
    """One client's connection."""

    async def open(self) -> None: ...

    async def ask(self, request: bytes) -> bytes:
        """Raises Refused, or any exception that asking can end with."""

    async def close(self) -> None: ...


class GrpcConnection:
    """Keeps Connection over one gRPC channel; messages stay bytes."""

    def __init__(self, target: str, method: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL)
        self._call: Any = self._channel.unary_unary(method)

    async def open(self) -> None:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await self._channel.channel_ready()

    async def ask(self, request: bytes) -> bytes:
        try:
            reply: bytes = await self._call(request, timeout=30.0)
        except grpc.aio.AioRpcError as error:
            # CANCELLED: gRPC had no place for it even to wait (docs/errors.md).
            if error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED):
                raise Refused(error.details()) from error
            raise RuntimeError(f"{error.code().name}: {error.details()}") from error
        return reply

    async def close(self) -> None:
        await self._channel.close()


class HttpConnection:
    """Keeps Connection by hand over one socket: cheaper for the client than any library."""

    def __init__(self, target: str, path: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/json\r\n"
            "Content-Length: {}\r\n\r\n"
        )
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        async with asyncio.timeout(_CONNECT_SECONDS):
            self._reader, self._writer = await asyncio.open_connection(
                self._host, self._port, limit=_HTTP_LIMIT
            )

    async def ask(self, request: bytes) -> bytes:
        if self._reader is None or self._writer is None:
            raise RuntimeError("open the connection first")
        self._writer.write(self._head.format(len(request)).encode() + request)
        async with asyncio.timeout(30.0):
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            start = head.index(b"content-length:") + 15
            size = int(head[start : head.index(b"\r", start)])
            body = await self._reader.readexactly(size)
        status = head[9:12]
        if status in (b"429", b"503"):
            raise Refused(status.decode())
        if status != b"200":
            raise RuntimeError(f"HTTP {status.decode()}: {body[:200]!r}")
        return body

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def connect(kind: str, target: str, method: str) -> Connection:
    """kind: grpc or http; method: its full name, or the path."""
    if kind == "http":
        return HttpConnection(target, method)
    return GrpcConnection(target, method)
