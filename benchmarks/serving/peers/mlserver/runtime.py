"""A custom MLServer runtime: BYTES in, BYTES out, so that the codecs never see a list of floats."""

from __future__ import annotations

import os

import numpy as np
import torch
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class MapperRuntime(MLModel):
    """weights: [D + 1, N], the last row is the bias."""

    async def load(self) -> bool:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        blocks = np.load(os.environ["BENCH_WEIGHTS"])
        weights = torch.from_numpy(np.ascontiguousarray(np.concatenate(list(blocks), axis=1)))
        self.matrix, self.bias = weights[:-1], weights[-1]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = list(payload.inputs[0].data)
        h = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.float32)
        if len(rows) == 1:
            replies = [torch.addmv(self.bias, self.matrix.t(), h).numpy().tobytes()]
        else:
            made = torch.addmm(self.bias, h.view(len(rows), -1), self.matrix).numpy()
            replies = [row.tobytes() for row in made]
        output = ResponseOutput.model_construct(
            name="parameters",
            datatype="BYTES",
            shape=[len(replies)],
            parameters=None,
            data=replies,
        )
        return InferenceResponse.model_construct(
            model_name=self.name, model_version=None, id=None, parameters=None, outputs=[output]
        )
