"""LitServe: base64 in JSON in, octet-stream out."""

from __future__ import annotations

import argparse
import base64

import litserve
import numpy as np
import torch
from fastapi import Response


class Mapper(litserve.LitAPI):
    """weights: [D + 1, N], the last row is the bias."""

    def __init__(self, weights: str, **options: float) -> None:
        super().__init__(**options)
        self.weights = weights

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        blocks = np.load(self.weights)
        weights = torch.from_numpy(np.ascontiguousarray(np.concatenate(list(blocks), axis=1)))
        self.matrix, self.bias = weights[:-1], weights[-1]

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        return torch.frombuffer(
            bytearray(base64.b64decode(request["interest"])), dtype=torch.float32
        )

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, h: torch.Tensor) -> torch.Tensor:
        if h.ndim == 1:
            return torch.addmv(self.bias, self.matrix.t(), h)
        return torch.addmm(self.bias, h, self.matrix)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> Response:
        return Response(output.numpy().tobytes(), media_type="application/octet-stream")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    options = {"max_batch_size": arguments.batch}
    if arguments.batch > 1:
        options["batch_timeout"] = 0.001
    server = litserve.LitServer(
        Mapper(arguments.weights, **options),
        accelerator="cpu",
        workers_per_device=1,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
