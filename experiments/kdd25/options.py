"""What `make paper ARGS=...` understands, and which parts and cells that means."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arguments import above_zero, positive
from experiments.kdd25.cells import Cell
from experiments.kdd25.datasets import ALL, SYNTHETIC, Places, default_root
from experiments.kdd25.recipes import BACKBONES, ONE_SEED, PAPER, RECIPES, TRAINING, Part
from forward_ofa.data import DataError, user_path

_RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Selection:
    """--only: TABLE[:DATASET[:BACKBONE[:SYSTEM]]], an empty or missing field or "*" means all."""

    table: str = ""
    dataset: str = ""
    backbone: str = ""
    system: str = ""

    @staticmethod
    def parse(text: str) -> Selection:
        """Raises argparse.ArgumentTypeError that names what there is."""
        fields = ["" if field == "*" else field for field in text.split(":")]
        known: list[tuple[str, Sequence[str]]] = [
            ("table or figure", [*RECIPES, "table5", "table6"]),
            ("data set", list(ALL)),
            ("backbone", BACKBONES),
        ]
        if len(fields) > 4:
            raise argparse.ArgumentTypeError(
                f"{text!r} has too many parts: use TABLE:DATASET:BACKBONE:SYSTEM"
            )
        for value, (what, choices) in zip(fields, known, strict=False):
            if value and value not in choices:
                raise argparse.ArgumentTypeError(
                    f"no {what} {value!r}: there are {', '.join(choices)}"
                )
        return Selection(*fields)

    def part(self, part: Part) -> bool:
        wanted = (self.table, self.dataset, self.backbone)
        return all(w in ("", f) for w, f in zip(wanted, _place(part), strict=True))


def _place(part: Part) -> tuple[str, str, str]:
    return part.table, part.dataset, part.backbone


def chosen_parts(arguments: argparse.Namespace) -> list[Part]:
    """The parts of the report, and with it what may be run."""
    named = [s.dataset for s in arguments.only if s.dataset]
    keys = arguments.data_sets or list(dict.fromkeys(named)) or ["ml-1m"]
    parts = [
        recipe(dataset, backbone, arguments.recipe)
        for recipe in RECIPES.values()
        for dataset in keys
        for backbone in arguments.backbones
    ]
    if arguments.only:
        parts = [part for part in parts if any(s.part(part) for s in arguments.only)]
    return [part for part in parts if part.rows]


def chosen_cells(arguments: argparse.Namespace, parts: Sequence[Part]) -> tuple[Cell, ...]:
    """The cells of these parts, each once, for all seeds that were asked for."""
    cells: dict[Cell, None] = {}
    for part in parts:
        selections = [s for s in arguments.only if s.part(part)]
        systems = {s.system for s in selections}
        seeds = arguments.seeds[:1] if part.table in ONE_SEED else arguments.seeds
        for row in part.rows:
            if systems and "" not in systems and not {row.key, row.cell.system} & systems:
                continue
            for seed in seeds:
                cells.setdefault(dataclasses.replace(row.cell, seed=seed, epochs=arguments.epochs))
    return tuple(cells)


def places(arguments: argparse.Namespace) -> Places:
    return Places(dict(arguments.data), arguments.data_root, arguments.cache)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m experiments.kdd25`."""
    found = argparse.ArgumentParser(
        prog='make paper ARGS="..."',
        description="Runs what is asked of the paper's tables and figures, goes on with what is "
        "half done, and writes one report. Look first at what would run: --list.",
    )
    add = found.add_argument
    add("--list", action="store_true", help="what would run, and about how long it takes")
    add("--report-only", action="store_true", help="write the report from what is finished")
    add("--only", type=_selections, action="extend", default=[], metavar="PART",
        help="TABLE[:DATA[:BACKBONE[:SYSTEM]]], as table1:ml-1m:sasrec; several with "
        "commas")  # fmt: skip
    add("--data-sets", type=_keys, metavar="KEYS",
        help=f"with commas, of {', '.join(ALL)}; "
        "default: those that --only names, or ml-1m")  # fmt: skip
    add("--backbones", type=_backbones, default=list(BACKBONES), metavar="NAMES",
        help="sasrec, nextitnet or both (default)")  # fmt: skip
    add("--recipe", choices=TRAINING, default=PAPER, help="how all systems are trained: as the "
        "paper does (default), or by forward-ofa train's default recipe")  # fmt: skip
    add("--seeds", type=_seeds, default=[0, 1, 2], metavar="N,N", help="default: 0,1,2; sweeps, "
        "Figure 6 and Table 8 take the first only")  # fmt: skip
    add("--epochs", type=positive, help="another budget than the recipes'; part of a cell's name")
    add("--data", type=_place_of, action="append", default=[], metavar="KEY=PATH",
        help="where a data set is")  # fmt: skip
    add("--data-root", type=Path, default=default_root(),
        help="a folder with a folder for each data set; default: $FORWARD_OFA_DATA")  # fmt: skip
    add("--cache", type=Path, default=Path(".cache/data"), help="where downloaded logs are kept")
    add("--device", default="auto", help="cpu, cuda or auto (default): CUDA if there is one")
    add("--workers", type=positive, default=1, help="cells at the same time, a process each")
    add("--threads", type=positive, help="of torch, for each worker; default: cores / workers")
    add("--hours", type=above_zero, help="start no cell after so many hours")
    add("--again", action="store_true", help="run what is asked anew, even if it is finished")
    add("--runs", type=Path, default=Path("runs/kdd25"), help="folder of run folders")
    add("--results", type=Path, default=_RESULTS, help="folder of index.json and the report")
    add("--quick", action="store_true", help="a smoke run: one epoch of everything, a tiny "
        "synthetic log (or --data-sets), seed 0, folders of its own")  # fmt: skip
    add("--worker", type=float, default=0.0, help=argparse.SUPPRESS)  # when its command began
    return found


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with what --quick implies."""
    arguments = parser().parse_args(words)
    if arguments.quick:
        defaults = parser().parse_args([])
        if not arguments.data_sets and not any(s.dataset for s in arguments.only):
            arguments.data_sets = [SYNTHETIC]
        if arguments.seeds == defaults.seeds:
            arguments.seeds = [0]
        if arguments.runs == defaults.runs:
            arguments.runs = Path("runs/kdd25-quick")
        if arguments.results == defaults.results:
            arguments.results = arguments.runs / "report"
    return arguments


def _selections(text: str) -> list[Selection]:
    return [Selection.parse(part) for part in text.split(",") if part]


def _keys(text: str) -> list[str]:
    return _known(text, list(ALL), "data set")


def _backbones(text: str) -> list[str]:
    return _known(text, BACKBONES, "backbone")


def _known(text: str, choices: Sequence[str], what: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in choices:
            raise argparse.ArgumentTypeError(f"no {what} {name!r}: there are {', '.join(choices)}")
    return names


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use whole numbers and commas") from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: use different numbers, 0 or more")
    return seeds


def _place_of(text: str) -> tuple[str, str]:
    key, _, path = text.partition("=")
    if key not in ALL or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: use KEY=PATH, KEY of {', '.join(ALL)}")
    try:
        if not user_path(path).exists():
            raise argparse.ArgumentTypeError(f"{path} does not exist")
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return key, path
