"""The structure controller: which blocks a device's network has (paper, Section 3.2).

One GRU E and one linear layer H give one logit s a block (Eq. 7). In the
paper's notation beta_0 = s and beta_1 = 0: a softmax over two logits is shift
invariant, so one number says all, and the paper's parameter counts (Table 5)
confirm it. A block is kept iff s >= 0.

Where we settle what the paper leaves open: Eq. 4 normalises over the blocks,
which cannot be meant; the two choices of a block are normalised here. The head
starts with a bias towards keeping, so that training begins with all blocks.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor, nn

from forward_ofa_device.structure import SKIP_LOGIT


class SequenceExtractor(nn.Module):
    """A GRU over item embeddings that reads each history up to its own length.

    forward: embeddings [B, N, D] (padding last), lengths [B] in 1..N, first state
    [B, D] or None -> final states [B, D].
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(hidden, hidden, batch_first=True)

    def forward(self, embeddings: Tensor, lengths: Tensor, first: Tensor | None = None) -> Tensor:
        states, _ = self.gru(embeddings, None if first is None else first[None])
        last = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        final: Tensor = states.gather(1, last)[:, 0]
        return final


class Phase(enum.Enum):
    """Where training stands with the structure. WHOLE: all blocks. DRAWN: gates are sampled, the
    structure is learned. CHOSEN: gates as on the device. In WHOLE and CHOSEN the rest learns, and
    E and H rest; what they say still moves a little, with the item embeddings they read."""

    WHOLE = enum.auto()
    DRAWN = enum.auto()
    CHOSEN = enum.auto()


class StructureController(nn.Module):
    """E and H of Eq. 7: history [B, N, D], lengths [B] -> logits [B, L].

    phase: of training; nothing flows back but while the structure is learned.
    """

    def __init__(self, hidden: int, blocks: int, keep_bias: float) -> None:
        super().__init__()
        self.extractor = SequenceExtractor(hidden)
        self.head = nn.Linear(hidden, blocks)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, keep_bias)

    def forward(self, embeddings: Tensor, lengths: Tensor, phase: Phase = Phase.DRAWN) -> Tensor:
        logits: Tensor = self.head(self.extractor(embeddings, lengths))
        return logits if phase is Phase.DRAWN else logits.detach()


def sample_gates(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Straight-through Gumbel-softmax gates [B, L] in {0, 1} (Eqs. 3 to 5).

    With two choices the difference of two Gumbel variables is logistic, so the relaxed gate is
    sigmoid((s + noise) / temperature); the forward value is its argmax, the gradient its own.
    noise: logistic noise [B, L]; drawn here if None.
    """
    if noise is None:
        uniform = torch.rand_like(logits).clamp_(1e-6, 1 - 1e-6)
        noise = torch.logit(uniform)
    relaxed = torch.sigmoid((logits + noise) / temperature)
    hard = (logits + noise >= 0).to(logits.dtype)
    return hard + (relaxed - relaxed.detach())


def choose_paths(logits: Tensor) -> Tensor:
    """Evaluation by argmax, no noise: logits [B, L] to booleans [B, L].

    The same rule as the device's `choose_path`: the best block is kept even if none has s >= 0.
    """
    path = logits >= 0
    return path.scatter(1, logits.argmax(1, keepdim=True), True)


def draw_cuts(logits: Tensor, probability: float) -> Tensor:
    """Booleans [B, L]: blocks that a drawn budget cuts, the lowest logits first.

    With `probability` a device gets a budget of uniformly 1 to L - 1 blocks; see SKIP_LOGIT.
    """
    batch, blocks = logits.shape
    if probability <= 0 or blocks == 1:
        return torch.zeros_like(logits, dtype=torch.bool)
    rank = logits.detach().argsort(dim=1, descending=True).argsort(dim=1)
    budget = torch.randint(1, blocks, (batch, 1), device=logits.device)
    limited = torch.rand(batch, 1, device=logits.device) < probability
    return limited & (rank >= budget)


def apply_cuts(logits: Tensor, cuts: Tensor) -> Tensor:
    """Logits [B, L] as E' must see them: SKIP_LOGIT where a kept block is cut."""
    return torch.where(cuts & (logits >= 0), torch.full_like(logits, SKIP_LOGIT), logits)


def training_structure(
    logits: Tensor, phase: Phase, temperature: float, cut_probability: float
) -> tuple[Tensor, Tensor]:
    """Training's structure: (gates [B, L], logits as E' must see them [B, L])."""
    if phase is Phase.WHOLE:
        return torch.ones_like(logits), logits
    cuts = draw_cuts(logits, cut_probability)
    if phase is Phase.CHOSEN:
        gates = choose_paths(logits).to(logits.dtype)
    else:
        gates = sample_gates(logits, temperature)
    return gates * ~cuts, apply_cuts(logits, cuts)
