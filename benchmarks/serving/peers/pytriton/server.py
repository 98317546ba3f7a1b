"""PyTriton: the product as a Python function behind Triton's own gRPC server."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--other-ports", required=True, help="HTTP, metrics")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    blocks = np.load(arguments.weights)
    weights = torch.from_numpy(np.ascontiguousarray(np.concatenate(list(blocks), axis=1)))
    matrix, bias = weights[:-1], weights[-1]

    @batch
    def generate(interest: np.ndarray) -> dict[str, np.ndarray]:
        h = torch.from_numpy(interest)
        if len(h) == 1:
            made = torch.addmv(bias, matrix.t(), h[0]).unsqueeze(0)
        else:
            made = torch.addmm(bias, h, matrix)
        return {"parameters": made.numpy()}

    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=arguments.port,
        # Its own watch asks over HTTP.
        http_address="127.0.0.1",
        http_port=int(arguments.other_ports.split(",")[0]),
        allow_metrics=False,
        exit_timeout_secs=2,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="mapper",
            infer_func=generate,
            inputs=[Tensor(name="interest", dtype=np.float32, shape=(matrix.shape[0],))],
            outputs=[Tensor(name="parameters", dtype=np.float32, shape=(matrix.shape[1],))],
            config=ModelConfig(
                max_batch_size=arguments.batch,
                batcher=DynamicBatcher(max_queue_delay_microseconds=0),
            ),
            strict=False,
        )
        triton.serve()


main()
