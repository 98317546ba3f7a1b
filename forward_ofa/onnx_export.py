"""The device's programs as ONNX, for runtimes other than numpy.

extractor.onnx   history [N, D] item embeddings, oldest first; max_blocks [] int64
                 -> logits [L] (as E' sees them), path [L] booleans, interest [D], offset [D]
backbone.onnx    window [T, D], valid [T] booleans, path [L] booleans, blocks [L, P] flat
                 parameters (rows of skipped blocks are ignored), offset [D] -> vector [D]

Weights of the backbone are inputs, so one program runs every network; a new
runtime session for each network would cost far more than the inference.
"""

from __future__ import annotations

import warnings
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
        self.query, self.fusion = system.query, float(system.fusion)

    def forward(self, history: Tensor, max_blocks: Tensor) -> tuple[Tensor, ...]:
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
        interest = states[0, -1]
        return logits, wanted & ~cut, interest, self.fusion * self.query(interest)


class BackboneProgram(nn.Module):
    """All blocks, each gated by the path; parameters are inputs."""

    def __init__(self, system: ForwardOFA) -> None:
        super().__init__()
        self.backbone = system.backbone
        self.ops = TorchOps()
        self.specs = tuple(system.backbone.block_parameters())
        self.shared = {name: value.detach() for name, value in system.shared_parameters().items()}

    def forward(
        self, window: Tensor, valid: Tensor, path: Tensor, blocks: Tensor, offset: Tensor
    ) -> Tensor:
        x = self.backbone.embed(self.ops, window, valid, self.shared)
        for index in range(self.backbone.config.blocks):
            parts = torch.split(blocks[index], [s.size for s in self.specs])
            own = {s.name: p.reshape(s.shape) for s, p in zip(self.specs, parts, strict=True)}
            y = self.backbone.block(self.ops, index, x, valid, own, self.shared)
            x = torch.where(path[index], y, x)
        vector: Tensor = self.backbone.readout(self.ops, x, self.shared) + offset
        return vector


def export_onnx(system: ForwardOFA, extractor: Path, backbone: Path) -> None:
    """Writes both programs. The system must be in evaluation mode."""
    config = system.backbone.config
    size = sum(spec.size for spec in system.backbone.block_parameters())
    _export(
        ExtractorProgram(system),
        {"history": torch.zeros(3, config.hidden), "max_blocks": torch.tensor(config.blocks)},
        ["logits", "path", "interest", "offset"],
        {"history": {0: "items"}},
        extractor,
    )
    window = {
        "window": torch.zeros(config.history, config.hidden),
        "valid": torch.ones(config.history, dtype=torch.bool),
        "path": torch.ones(config.blocks, dtype=torch.bool),
        "blocks": torch.zeros(config.blocks, size),
        "offset": torch.zeros(config.hidden),
    }
    _export(BackboneProgram(system), window, ["vector"], {}, backbone)


def _export(
    program: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    dynamic_axes: dict[str, dict[int, str]],
    path: Path,
) -> None:
    with warnings.catch_warnings():
        # The tracing exporter keeps a GRU as one node, which the newer one unrolls; its
        # warnings are about that choice and about shapes that are constants here.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program.eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=dynamic_axes,
            opset_version=OPSET,
            dynamo=False,
        )
