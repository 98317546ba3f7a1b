"""How close is a phone's network to a model of the cloud that reads 200 items?

    python -m experiments.cloud --run-dir runs/ml-1m --checkpoint runs/cloud.ckpt

Trains the SASRec that the field compares with (Klenitskiy and Vasilev, RecSys 2023: two blocks,
d = 64, T = 200, one head, full cross-entropy at every position) on the log of a run of
`forward-ofa train`, and ranks the run's test items with both: the same users, targets and ties,
with seen items and without. What is published is without: their configuration says `filter_seen`,
that of gSASRec (Petrov and Macdonald, RecSys 2023) `filter_rated`.

Scales are theirs (items times sqrt(d) beside positions of 0.02). Not theirs: all of a long history
is trained on, not its last 200 items; the learning rate warms up and falls in the second half;
blocks are torch's pre-LN layers; the best epoch is chosen with seen items ranked, as for all our
systems. Beside it stands the GRU that the run's systems start from, over the same 200 items.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.arguments import positive
from experiments.kdd25.console import Lines
from experiments.kdd25.markdown import table
from experiments.opened import open_run
from forward_ofa.checkpoint import CheckpointError
from forward_ofa.config import FoundationConfig, TrainingConfig
from forward_ofa.data import DataError, SequenceDataset
from forward_ofa.evaluation import (
    evaluate,
    hit,
    ndcg,
    paired_interval,
    rank_of,
    ranks_among,
    seen_mask,
    user_batches,
)
from forward_ofa.foundation import Foundation, piece_counts, sequence_batches
from forward_ofa.model import item_table
from forward_ofa.objectives import next_item_loss
from forward_ofa.runs import RunError
from forward_ofa.training import fit
from forward_ofa_cli.errors import CommandError

HIDDEN, HISTORY, BLOCKS, DROPOUT = 64, 200, 2, 0.1


class CloudSasRec(nn.Module):
    """Causal self-attention over up to `HISTORY` items; positions count back from the last item."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.items = item_table(items, HIDDEN)
        self.positions = nn.Parameter(torch.randn(HISTORY, HIDDEN) * 0.02)
        block = nn.TransformerEncoderLayer(
            HIDDEN, 1, HIDDEN, DROPOUT, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, BLOCKS, nn.LayerNorm(HIDDEN), enable_nested_tensor=False
        )

    def states(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """What the model makes [B, N, D] of histories [B, N], padding last, at each position."""
        length = histories.shape[1]
        steps = torch.arange(length, device=histories.device)
        places = (HISTORY - lengths[:, None] + steps).clamp(max=HISTORY - 1)
        x = self.items(histories) * HIDDEN**0.5 + self.positions[places]
        x = F.dropout(x, DROPOUT, self.training)
        # Padding is last: what is causal never sees it.
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=x.device)
        states: Tensor = self.blocks(x, mask, is_causal=True)
        return states

    def loss(self, sequences: Tensor) -> Tensor:
        """sequences [B, S + 1] items, padding last: predicts 2 .. S + 1 from what is before."""
        histories, targets = sequences[:, :-1], sequences[:, 1:]
        states = self.states(histories, (targets > 0).sum(1))
        return next_item_loss(states, self.items.weight, targets)

    @torch.no_grad()
    def scores(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """Scores [B, N + 1] of all items after histories [B, N] of lengths [B]."""
        states = self.states(histories, lengths)
        last = states[torch.arange(len(lengths)), lengths - 1]
        return last @ self.items.weight.T


@dataclass
class CloudTask:
    """Next item at every position of whole histories."""

    data: SequenceDataset
    config: TrainingConfig

    def __post_init__(self) -> None:
        self.name = "cloud SASRec"
        self.pieces = FoundationConfig(self.config, HISTORY, DROPOUT)
        torch.manual_seed(self.config.seed)
        self.system = CloudSasRec(self.data.num_items)

    def settings(self) -> dict[str, Any]:
        return {"system": self.name, **asdict(self.pieces)}

    def epoch(self, rng: np.random.Generator) -> tuple[int, Iterator[Tensor]]:
        steps = math.ceil(int(piece_counts(self.data, HISTORY).sum()) / self.config.batch_size)
        return steps, sequence_batches(self.data, self.pieces, rng)

    def loss(self, batch: Tensor, done: float) -> Tensor:
        return self.system.loss(batch)

    def validate(self) -> dict[str, float]:
        self.system.eval()
        ranks, _ = places(self.system.scores, self.data, "validation")
        return {"ndcg@10": float(ndcg(ranks).mean()), "hit@10": float(hit(ranks).mean())}


Scores = Callable[[Tensor, Tensor], Tensor]
"""Histories [B, N], padding last, of lengths [B] -> scores [B, N + 1] of all items."""


def gru_scores(folder: Path, items: int) -> Scores:
    """Those of a run's foundation."""
    weights = load_file(folder / "foundation.safetensors")
    system = Foundation(items, weights["items.weight"].shape[1], 0.0)
    system.load_state_dict(weights)

    @torch.no_grad()
    def scores(histories: Tensor, lengths: Tensor) -> Tensor:
        states, _ = system.eval().gru(system.items(histories))
        last = states[torch.arange(len(lengths)), lengths - 1]
        found: Tensor = system.query(last) @ system.items.weight.T
        return found

    return scores


def places(score: Scores, data: SequenceDataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranks int64 [U] of all users' targets, with seen items and without them."""
    ranks, unseen = [], []
    everyone, start = data.held_out(split)[0], 0
    for batch in user_batches(data, split, HISTORY, 1):
        users = everyone[start : start + len(batch.targets)]
        start += len(users)
        scores, targets = score(batch.history, batch.lengths), batch.targets[:, 0]
        ranks.append(rank_of(scores, targets))
        unseen.append(ranks_among(~seen_mask(data, split, users), scores, targets))
    return torch.cat(ranks).numpy(), torch.cat(unseen).numpy()


def main() -> int:
    parser = argparse.ArgumentParser(prog="experiments.cloud", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--run-dir", type=Path, required=True, help="of the run to compare with")
    parser.add_argument("--data", help="where its log is now, if it is no longer where it was")
    parser.add_argument("--checkpoint", type=Path, required=True, help="goes on from it")
    parser.add_argument("--epochs", type=positive, default=60)
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    try:
        training = TrainingConfig(asked.epochs, asked.batch_size, seed=asked.seed)
        with asked.checkpoint.open("ab"):  # before an hour of training, not after it
            pass
        if not asked.checkpoint.stat().st_size:
            asked.checkpoint.unlink()
        run, data = open_run(asked.run_dir, asked.data)
        task = CloudTask(data, training)
        fit(task, Lines("cloud"), asked.checkpoint)
    except CheckpointError as error:
        print(f"{error} Or use another --checkpoint.", file=sys.stderr)
        return 1
    except (RunError, DataError, CommandError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    cloud = places(task.system.scores, data, "test")
    rows = [_row(f"SASRec, T = {HISTORY}, {BLOCKS} blocks", cloud, _mflops(), cloud)]
    if (run.folder / "foundation.safetensors").exists():
        found = places(gru_scores(run.folder, data.num_items), data, "test")
        gates = 6 * HISTORY * run.config.method.backbone.hidden**2 / 1e6
        rows.append(_row(f"GRU, T = {HISTORY}", found, gates, cloud))
    for system in dict.fromkeys((run.system, run.device_rec)):
        if system is not None:
            evaluated = evaluate(system, data, "test")
            both = (evaluated.ranks, evaluated.unseen_ranks)
            mflops = evaluated.costs.means()["true_mflops"]
            rows.append(_row(type(system).__name__, both, mflops, cloud))
    header = ["", "MFLOPs, true"]
    for where in ("all items", "seen removed"):
        header += [f"NDCG@10, {where}", f"Hit@10, {where}", "NDCG@10 to the cloud's, 95 %"]
    print("\n".join(table(header, rows)))
    return 0


def _mflops() -> float:
    """Multiply-accumulates of one pass: six square matrices an item, and attention's products."""
    return BLOCKS * (6 * HISTORY * HIDDEN**2 + 2 * HISTORY**2 * HIDDEN) / 1e6


def _row(
    name: str, ranks: tuple[np.ndarray, np.ndarray], mflops: float, cloud: tuple[np.ndarray, ...]
) -> list[str]:
    row = [name, f"{mflops:.4f}"]
    for ours, theirs in zip(ranks, cloud, strict=True):
        row += [_mean(ndcg, ours), _mean(hit, ours)]
        low, high = paired_interval(ndcg(ours), ndcg(theirs))
        row.append("" if ours is theirs else f"{low:+.4f} to {high:+.4f}")
    return row


def _mean(metric: Callable[[np.ndarray], np.ndarray], ranks: np.ndarray) -> str:
    return f"{metric(ranks).mean():.4f}"


if __name__ == "__main__":
    sys.exit(main())
