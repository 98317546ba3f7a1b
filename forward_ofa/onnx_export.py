"""The device's programs as ONNX, for runtimes other than numpy.

extractor.onnx   history [N, D] item embeddings, oldest first; max_blocks [] int64
                 -> logits [L] (as E' sees them), path [L] booleans, interest [D]
backbone.onnx    window [T, D], valid [T] booleans, path [L] booleans, blocks [L, P] flat
                 parameters (rows of skipped blocks are ignored) -> vector [D]

Weights of the backbone are inputs, so one program runs every network; a new
runtime session for each network would cost far more than the inference.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forward_ofa.model import ForwardOFA
from forward_ofa.ops import TorchOps
from forward_ofa_device.structure import SKIP_LOGIT

OPSET = 18


class ExtractorProgram(nn.Module):
    """E, H, the choice of a path and E', for one device."""

    def __init__(self, system: ForwardOFA) -> None:
        super().__init__()
        self.controller = system.controller
        self.mapper_extractor = system.mapper.extractor

    def forward(self, history: Tensor, max_blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, _ = self.controller.extractor.gru(history[None])
        logits = self.controller.head(states[:, -1])[0]
        # Rank of each logit, the earlier block first among equals, without a sort.
        index = torch.arange(logits.shape[0])
        before = (logits[None] > logits[:, None]) | (
            (logits[None] == logits[:, None]) & (index[None] < index[:, None])
        )
        rank = before.sum(1)
        wanted = (logits >= 0) | (rank == 0)
        cut = rank >= max_blocks
        logits = torch.where(cut & wanted, torch.full_like(logits, SKIP_LOGIT), logits)
        first = F.pad(logits, (0, history.shape[-1] - logits.shape[0]))[None, None]
        states, _ = self.mapper_extractor.gru(history[None], first)
        return logits, wanted & ~cut, states[0, -1]


class BackboneProgram(nn.Module):
    """All blocks, each gated by the path; parameters are inputs."""

    def __init__(self, system: ForwardOFA) -> None:
        super().__init__()
        self.backbone = system.backbone
        self.ops = TorchOps()
        self.specs = tuple(system.backbone.block_parameters())
        self.shared = {name: value.detach() for name, value in system.shared_parameters().items()}

    def forward(self, window: Tensor, valid: Tensor, path: Tensor, blocks: Tensor) -> Tensor:
        x = self.backbone.embed(self.ops, window, valid, self.shared)
        for index in range(self.backbone.config.blocks):
            parts = torch.split(blocks[index], [s.size for s in self.specs])
            own = {s.name: p.reshape(s.shape) for s, p in zip(self.specs, parts, strict=True)}
            y = self.backbone.block(self.ops, index, x, valid, own, self.shared)
            x = torch.where(path[index], y, x)
        vector: Tensor = self.backbone.readout(self.ops, x, self.shared)
        return vector


def export_onnx(system: ForwardOFA, extractor: Path, backbone: Path) -> None:
    """Writes both programs. The system must be in evaluation mode."""
    config = system.backbone.config
    history = torch.zeros(3, config.hidden)
    torch.onnx.export(
        ExtractorProgram(system).eval(),
        (history, torch.tensor(config.blocks)),
        extractor,
        input_names=["history", "max_blocks"],
        output_names=["logits", "path", "interest"],
        dynamic_axes={"history": {0: "items"}},
        opset_version=OPSET,
        dynamo=False,
    )
    size = sum(spec.size for spec in system.backbone.block_parameters())
    torch.onnx.export(
        BackboneProgram(system).eval(),
        (
            torch.zeros(config.history, config.hidden),
            torch.ones(config.history, dtype=torch.bool),
            torch.ones(config.blocks, dtype=torch.bool),
            torch.zeros(config.blocks, size),
        ),
        backbone,
        input_names=["window", "valid", "path", "blocks"],
        output_names=["vector"],
        opset_version=OPSET,
        dynamo=False,
    )
