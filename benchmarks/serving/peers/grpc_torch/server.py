"""grpc.aio and torch, nothing else: what a good engineer writes in an afternoon.

Bytes in, bytes out. With --batching all requests that wait when the worker thread is free
make one product.
"""

from __future__ import annotations

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import torch

Waiting = tuple[bytes, "asyncio.Future[bytes]"]


class Mapper:
    """weights: [D + 1, N], the last row is the bias."""

    def __init__(self, weights: torch.Tensor, batch: int) -> None:
        self.matrix, self.bias, self.batch = weights[:-1], weights[-1], batch
        self.waiting: list[Waiting] = []
        self.some = asyncio.Event()
        self.worker = ThreadPoolExecutor(1)

    async def generate(self, request: bytes, context: object) -> bytes:
        if self.batch == 1:
            h = torch.frombuffer(bytearray(request), dtype=torch.float32)
            return torch.addmv(self.bias, self.matrix.t(), h).numpy().tobytes()
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.waiting.append((request, future))
        self.some.set()
        return await future

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.some.wait()
            taken, self.waiting = self.waiting[: self.batch], self.waiting[self.batch :]
            if not self.waiting:
                self.some.clear()
            replies = await loop.run_in_executor(self.worker, self.product, taken)
            for (_, future), reply in zip(taken, replies, strict=True):
                if not future.done():
                    future.set_result(reply)

    def product(self, taken: list[Waiting]) -> list[bytes]:
        if len(taken) == 1:
            h = torch.frombuffer(bytearray(taken[0][0]), dtype=torch.float32)
            return [torch.addmv(self.bias, self.matrix.t(), h).numpy().tobytes()]
        rows = torch.frombuffer(bytearray(b"".join(r for r, _ in taken)), dtype=torch.float32)
        made = torch.addmm(self.bias, rows.view(len(taken), -1), self.matrix)
        return [row.tobytes() for row in made.numpy()]


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    blocks = np.load(arguments.weights)
    weights = torch.from_numpy(np.ascontiguousarray(np.concatenate(list(blocks), axis=1)))
    mapper = Mapper(weights, arguments.batch)
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    method = grpc.unary_unary_rpc_method_handler(mapper.generate)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("benchmark.Plain", {"Generate": method}),)
    )
    server.add_insecure_port(f"127.0.0.1:{arguments.port}")
    await server.start()
    await mapper.run()


asyncio.run(main())
