"""The floor of the transport: grpc.aio answering with bytes that lie ready.

`python -m benchmarks.serving.echo PORT BYTES`
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc


async def main(port: int, size: int) -> None:
    """Answers every request with the same `size` bytes, until it is killed."""
    reply = bytes(size)

    async def answer(request: bytes, context: object) -> bytes:
        return reply

    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    method: Any = grpc.unary_unary_rpc_method_handler(answer)
    handler = grpc.method_handlers_generic_handler("benchmark.Plain", {"Generate": method})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
