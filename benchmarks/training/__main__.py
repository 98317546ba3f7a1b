"""How much dearer a step of Forward-OFA is than one of DeviceRec.

    python -m benchmarks.training                       # SASRec, one target a network
    python -m benchmarks.training --backbone nextitnet --targets 8 --data PATH

Prints a table and writes JSON. The paper's recipe: batches of 256, T = 5, d = 64. Without --data
a synthetic log with about as many items as MovieLens-1M has after the paper's filter (3,011).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import positive
from benchmarks.serving.machine import describe
from benchmarks.training.setting import configuration, load, memory_of
from benchmarks.training.steps import PHASES, Case, makers, measure
from forward_ofa.data import DataError, SequenceDataset
from forward_ofa.devices import find_device

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = 140
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        config = configuration(options)
        options.device = find_device(options.device)
        data = load(options)
        chosen = makers(options.bases)
        cases = [Case(name, make(data, config)) for name, make in chosen.items()]
    except (ValueError, DataError) as error:
        parser.error(str(error))
    measure(cases, options.rounds, options.warmup, options.device)
    memory = {} if options.no_memory else {case.name: _memory(options, case.name) for case in cases}
    rows = [_row(case, cases[0], memory.get(case.name)) for case in cases]
    _show(out, rows, options, data)
    path = options.json or RESULTS / f"{options.backbone}-{options.targets}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    found = {
        "settings": {**settings, "items": data.num_items, "torch_threads": torch.get_num_threads()},
        "machine": describe(),
        "systems": rows,
    }
    path.write_text(json.dumps(found, indent=2) + "\n")
    out.print(f"Written: {path}")


def _memory(options: argparse.Namespace, name: str) -> int:
    """Peak memory of one system's steps, from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory_of, (options, name))


def _row(case: Case, first: Case, memory: int | None) -> dict[str, Any]:
    # Ratios of one round first: what disturbs a round disturbs both of its steps.
    ratios = [a / b for a, b in zip(case.steps, first.steps, strict=True)]
    return {
        "system": case.name,
        "step_ms": 1e3 * case.median(),
        "fastest_step_ms": 1e3 * min(case.steps),
        **{f"{phase}_ms": 1e3 * case.median(phase) for phase in PHASES},
        "ratio": statistics.median(ratios),
        "ratio_of_medians": case.median() / first.median(),
        "ratio_of_fastest": min(case.steps) / min(first.steps),
        "cpu_ms": 1e3 * statistics.median(case.cpu),
        "ratio_of_cpu": statistics.median(case.cpu) / statistics.median(first.cpu),
        "peak_memory_bytes": memory,
        "parameters": sum(p.numel() for p in case.task.system.parameters()),
    }


def _show(
    out: Console, rows: list[dict[str, Any]], options: argparse.Namespace, data: SequenceDataset
) -> None:
    title = (
        f"{options.backbone}, batch {options.batch_size}, {options.targets} target(s) a network, "
        f"{data.num_items} items, first logit {options.keep_bias:g}, {options.device}, "
        f"{torch.get_num_threads()} threads"
    )
    heads = ("step ms", "x DeviceRec", "of fastest", "of CPU", *PHASES, "peak MB", "M parameters")
    table = Table("system", *heads, title=title)
    for row in rows:
        memory = row["peak_memory_bytes"]
        table.add_row(
            row["system"],
            f"{row['step_ms']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_of_fastest']:.2f}",
            f"{row['ratio_of_cpu']:.2f}",
            *(f"{row[f'{phase}_ms']:.1f}" for phase in PHASES),
            "" if memory is None else f"{memory / 1e6:.0f}",
            f"{row['parameters'] / 1e6:.2f}",
        )
    out.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--backbone", choices=["sasrec", "nextitnet"], default="sasrec")
    parser.add_argument("--data", help="a log, as `forward-ofa train --data` takes it")
    parser.add_argument("--targets", type=positive, default=1, help="targets a network")
    parser.add_argument("--batch-size", type=positive, default=256)
    parser.add_argument(
        "--keep-bias", type=float, default=2.0,
        help="first logit of every block: 2, the recipe's, keeps 88 %% of them; 0 keeps half",
    )  # fmt: skip
    parser.add_argument("--bases", type=int, default=8, help="of the factored form")
    parser.add_argument("--rounds", type=positive, default=30, help="a step of each system in each")
    parser.add_argument("--warmup", type=positive, default=5, help="rounds that do not count")
    parser.add_argument("--threads", type=positive, help="of torch; left out: its own choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--json", type=Path, help="where to; left out: benchmarks/training/results")
    return parser


if __name__ == "__main__":
    main()
