"""The report: every table and figure that was asked for, as Markdown and PNGs.

It is made from records alone, so it can be made anew without any run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.kdd25 import figures, paper, tables
from experiments.kdd25.datasets import ALL
from experiments.kdd25.markdown import bullets, folded, table
from experiments.kdd25.recipes import BACKBONES, PAPER, RECIPES, TRAINING, Part
from experiments.kdd25.results import Record
from experiments.kdd25.summary import NOT_RUN, Results, duration
from forward_ofa.checkpoint import write_atomically

NAME = "REPORT.md"
_FIGURES: dict[str, Callable[[Sequence[Part], Results, Path], list[str]]] = {
    "figure4": figures.usage_figure,
    "figure5": figures.sweep_figure,
    "figure6": figures.case_figure,
    "figure7": figures.transmission_figure,
}
_ORDER = (*(f"table{number}" for number in range(1, 9)), "variants", *_FIGURES)


def write_report(folder: Path, parts: Sequence[Part], results: Results, quick: bool) -> Path:
    """Writes REPORT.md and its figures into `folder`; returns the report's path.

    quick: say on top that these are figures of a smoke run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = _head(quick)
    # What was run before what was not.
    parts = sorted(parts, key=lambda part: not results.any(part))
    for name in _ORDER:
        lines += _section(name, [p for p in parts if p.table == name], results, folder)
    lines += [*_budgets(parts, results), *_protocols(parts, results)]
    path = folder / NAME
    write_atomically(path, ("\n".join(lines).rstrip("\n") + "\n").encode())
    return path


def covered(asked: Sequence[Part], results: Results) -> list[Part]:
    """The parts of a report that leaves nothing out: what was asked now, all of which something
    was run before, and what the paper's tables have."""
    keys = {part.dataset for part in asked} | {r.cell.dataset for r in results.records.values()}
    datasets = [key for key, found in ALL.items() if found.paper or key in keys]
    every = [
        recipe(dataset, backbone, training)
        for recipe in RECIPES.values()
        for dataset in datasets
        for backbone in BACKBONES
        for training in TRAINING
    ]
    return [part for part in every if part in asked or results.any(part) or _printed(part)]


def _printed(part: Part) -> bool:
    """Whether the paper has it as a table of figures."""
    known = part.recipe == PAPER and part.table in tables.TITLES
    return known and bool(paper.rows(part.table, part.backbone, part.dataset))


def _section(name: str, parts: Sequence[Part], results: Results, folder: Path) -> list[str]:
    if name == "table5":
        return tables.cost_table()
    if name == "table6":
        return tables.data_table(results)
    if not parts:
        return []
    if name == "table8":
        return tables.time_table(parts, results)
    if name in _FIGURES:
        return _FIGURES[name](parts, results, folder)
    return tables.quality_table(name, parts, results)


_UNLIKE = (
    "The extractors of Forward-OFA, DUET, +controller and w.o. structural vector read 50 "
    "items; every backbone, DeviceRec's and the other rivals' too, reads T = 5. That is what "
    "the method offers at equal cost an inference; no control tells the longer history from "
    "the generated parameters.",
    "Those four go on from the trained DeviceRec with 8 targets a network, so they see the "
    "log more often than DeviceRec, Finetune, Gater and STTD. The variant of DeviceRec with more "
    "epochs is the control. With either recipe Rare Gem's epochs count twice, for the search and "
    "for what it leaves, and LitePred is fine-tuned for a quarter of them more, at least one.",
    "In Forward-OFA, DUET and w.o. structural vector the interest and the item embeddings learn "
    "from the loss of the cloud's query too, 0.2 of the objective, which no other system has. The "
    'variant "the query trained apart" is the control; so are they trained in the recipe "paper".',
    "Each test figure is of a network that was made right before its target, so extractors "
    "and generation ran once for one prediction. In a session they run once for many, of "
    "networks that grow older: experiments/ageing.py measures what that costs.",
    "LitePred's predictor is trained on validation targets; no parameters of any other system "
    "are. Where histories are short, Forward-OFA, DUET and w.o. structural vector add the "
    "cloud's query, by one of five weights that validation chooses; other systems have no query. "
    "The variant without it is the control.",
    "Intervals are bootstraps over users of one seed; they say nothing of other seeds.",
)
"""What is not the same for all rows of the default recipe."""


def _head(quick: bool) -> list[str]:
    lines = ["# The paper's tables and figures, ours beside them", ""]
    if quick:
        lines += ["**A smoke run: everything was run for a moment, the figures mean nothing.**", ""]
    lines += [
        '"Forward Once for All" (KDD 2025). "paper" is what the paper prints, footnotes say where '
        "that cannot be right. Ours: mean ± deviation (n - 1) over the seeds named in the last "
        f'column; "{NOT_RUN}" means just that. Full ranking over the catalogue, test split, looked '
        "at once a cell; epochs chosen on validation, recipes too (experiments/LOG.md has the test "
        "figures of earlier ones). MFLOPs are multiply-accumulates of one forward pass "
        'on the device, counted as the paper counts and, "true", with attention products; Mbit are '
        "of float32. How each was run, and the protocol: at the end. To make it: `make paper`, "
        "see docs/paper.md.",
        "",
        'Tables without a word on it are of the recipe "paper": nothing trained before, a fresh '
        'network for every prediction. "default recipe": all systems as `forward-ofa train` does '
        "it, from one foundation and one DeviceRec, pre-LN blocks. Compressed systems are held to "
        "what the paper's keep, with either recipe: Gater and STTD to the paper's own, Rare Gem "
        "too where that is less than all, else to its Forward-OFA, LitePred to its Forward-OFA. "
        "What extractors and controller cost is "
        "told under the tables: they run at a refresh, not at an inference.",
        "",
        "Not like with like, in the default recipe:",
        "",
        *bullets(_UNLIKE),
    ]
    return lines + bullets(paper.notes("protocol"))


def _shown(parts: Sequence[Part], results: Results) -> list[Record]:
    """All records that the report's parts show, once each."""
    found = {r.cell.name: r for part in parts for row in part.rows for r in results.of(row.cell)}
    return [found[name] for name in sorted(found)]


def _budgets(parts: Sequence[Part], results: Results) -> list[str]:
    """What each cell was given, and what it took."""
    shown = _shown(parts, results)
    if not shown:
        return []
    rows = []
    for record in shown:
        if record.cell.look:
            continue
        budget, machine = record.budget, record.machine
        stages = ", ".join(
            f"{k} {v['epochs']} (best {v['best']})" for k, v in budget["stages"].items()
        )
        rows.append([
            f"`{record.cell.name}`", stages, duration(budget["seconds"]),
            f"{machine['cpu']}, threads: {machine['threads']}"
            if machine["device"] == "CPU" else machine["device"],
            machine["revision"][:8] + ("*" if machine["changed_files"] else ""),
            record.finished[:10], tables.difference(record),
        ])  # fmt: skip
    header = ["Cell", "epochs", "wall time", "machine", "revision", "day", "NDCG@10 to DeviceRec"]
    note = [
        "Wall times are those of a machine that others may have used; *: the code had changes "
        "that this revision lacks. The "
        "last column: the difference to DeviceRec of the same seed, 95 % bootstrap over users."
    ]
    return ["## How it was run", "", *bullets(note), *folded("Every cell", table(header, rows))]


def _protocols(parts: Sequence[Part], results: Results) -> list[str]:
    """Protocol cards: what all systems of a data set and backbone share, then what they do not."""
    groups: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for record in _shown(parts, results):
        cell = record.cell
        if cell.look:
            continue
        cards = groups.setdefault((cell.dataset, cell.backbone, cell.recipe), {})
        cards.setdefault(_label(record), record.protocol)
    lines = ["## Protocol cards", ""] if groups else []
    for (dataset, backbone, recipe), cards in groups.items():
        first = next(iter(cards.values()))
        common = [line for line in first if all(line in card for card in cards.values())]
        body = bullets(common)
        for name, card in cards.items():
            own = [line for line in card if line not in common]
            body += [f"{name}:", "", *bullets(own)] if own else []
        title = f"{ALL[dataset].title}, {tables.BACKBONE_TITLES[backbone]}, recipe {recipe}"
        lines += folded(title, body)
    return lines


def _label(record: Record) -> str:
    cell = record.cell
    changes = [f"{name} {value}" for name, value in cell.overrides]
    if cell.blocks != int(paper.setting("blocks", cell.backbone)):
        changes.insert(0, f"{cell.blocks} blocks")
    return cell.system + (f" ({', '.join(changes)})" if changes else "")
