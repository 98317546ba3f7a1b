"""The floor of the transport: a server answering with bytes that lie ready.

`python -m benchmarks.serving.echo PORT BYTES [KIND]`, KIND one of KINDS:

    grpc.aio   as grpcio has it
    ours       behind our own accept loops (services/runtime/core.py), nothing else of ours
    refused    the same, each call refused before its message is received
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

from services.runtime.core import Metadata, sturdy_server

KINDS = ("grpc.aio", "ours", "refused")
_OPTIONS = (("grpc.max_send_message_length", -1),)
# As large as the details of a refusal of ours.
_DETAILS: Metadata = (("grpc-status-details-bin", bytes(120)),)


class _Door:
    """Lets everybody in, or nobody."""

    def __init__(self, refuse: bool) -> None:
        self._answer = (
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "the service is full", _DETAILS)
            if refuse
            else None
        )

    def wrap(self, path: str, handler: Any) -> Any:
        return handler

    def refusal(self, path: str) -> tuple[grpc.StatusCode, str, Metadata] | None:
        return self._answer


async def main(port: int, size: int, kind: str = "grpc.aio") -> None:
    """Answers every request with the same `size` bytes, until it is killed."""
    reply = bytes(size)

    async def answer(request: bytes, context: object) -> bytes:
        return reply

    if kind == "grpc.aio":
        server = grpc.aio.server(options=_OPTIONS)
    else:
        server = sturdy_server(_Door(kind == "refused"), _OPTIONS)
    method: Any = grpc.unary_unary_rpc_method_handler(answer)
    server.add_registered_method_handlers("benchmark.Plain", {"Generate": method})
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
