"""The benchmark of training measures what it says, on a small case."""

from __future__ import annotations

import dataclasses

from benchmarks.training.steps import PHASES, Case, makers, measure
from forward_ofa.data import FilterConfig, generate_log, prepare
from forward_ofa.recipes import recipe


def test_every_system_takes_its_turn() -> None:
    config = recipe("paper", "sasrec", 1_000_000)
    backbone = dataclasses.replace(config.method.backbone, hidden=16, blocks=2, heads=2)
    config = dataclasses.replace(
        config,
        method=dataclasses.replace(config.method, backbone=backbone),
        training=dataclasses.replace(config.training, batch_size=16),
    )
    data = prepare(generate_log(users=20, items=110, seed=1), FilterConfig(min_item=1))
    cases = [Case(name, make(data, config)) for name, make in makers(4).items()]
    before = [float(case.task.system.items.weight.detach().sum()) for case in cases]
    measure(cases, rounds=2, warmup=1, device="cpu")
    for case, start in zip(cases, before, strict=True):
        assert len(case.cpu) == 2
        assert all(len(case.times[phase]) == 2 for phase in PHASES)
        assert case.median() > 0
        assert float(case.task.system.items.weight.detach().sum()) != start  # it was really trained
    sizes = [sum(p.numel() for p in case.task.system.parameters()) for case in cases]
    assert sizes[0] < sizes[2] < sizes[1] == sizes[3]
