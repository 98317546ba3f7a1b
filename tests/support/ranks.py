"""One process of a training by several; torchrun starts it (see test_distributed.py)."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from forward_ofa.checkpoint import save_tensors
from forward_ofa.config import MethodConfig, TrainingConfig
from forward_ofa.data import FilterConfig, generate_log, prepare
from forward_ofa.distributed import is_main, joined
from forward_ofa.tasks import DeviceRecTask, ForwardOFATask
from forward_ofa.training import fit
from forward_ofa_device.backbones.contract import BackboneConfig

BACKBONE = BackboneConfig("sasrec", blocks=2, hidden=8, heads=1)
# Nothing is left to chance inside a step: no dropout, every block kept, no drawn budgets.
METHOD = MethodConfig(BACKBONE, keep_bias=40.0, temperature=1.0, compact_weight=1e-4, dropout=0.0)
# 7 is odd: the ranks' rows differ in number, and their sessions in targets.
TRAINING = TrainingConfig(epochs=2, batch_size=7, targets_per_network=5, warmup_steps=3)


class Silence:
    """Watches nothing."""

    def begin(self, stage: str, steps: int, done: int) -> None: ...

    def step(self, loss: float) -> None: ...

    def epoch(self, record: dict[str, object]) -> None: ...


def main(folder: Path) -> None:
    """Trains both systems; leaves weights and losses in `folder`."""
    data = prepare(generate_log(users=12, items=110, seed=1), FilterConfig(min_item=1))
    with joined("cpu"):
        for task in (
            DeviceRecTask(data, METHOD, TRAINING),
            ForwardOFATask(data, METHOD, dataclasses.replace(TRAINING, seed=1)),
        ):
            outcome = fit(task, Silence())
            if is_main():
                save_tensors(folder / f"{task.name}.safetensors", task.system.state_dict())
                losses = "".join(f"{r['loss']:.9g}\n" for r in outcome.records)
                (folder / f"{task.name}.losses").write_text(losses)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
