"""Tables 1 to 5, 6, 7 and 8 as Markdown: ours beside the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.kdd25 import paper
from experiments.kdd25.datasets import ALL
from experiments.kdd25.markdown import Footnotes, bullets, folded, table
from experiments.kdd25.recipes import PAPER, Part, Row, requirements
from experiments.kdd25.results import Record
from experiments.kdd25.summary import Results, agreement, order
from forward_ofa.cost import cloud_modules_cost, device_modules_cost, network_cost
from forward_ofa_device.backbones.contract import BackboneConfig

BACKBONE_TITLES = {"sasrec": "SASRec", "nextitnet": "NextItNet"}
TITLES = {
    "table1": "Table 1: quality and cost",
    "table2": "Table 2: controller and mapper apart",
    "table3": "Table 3: structural parameters",
    "table4": "Table 4: baselines on small networks",
    "table7": "Table 7: a network searched for each device (LitePred)",
    "variants": "Variants of the default recipe (not the paper's)",
}
_TRUE = {"mflops": "MFLOPs, true", "mbit": "Mbit, true"}
_EXTRA = {"unseen": "NDCG@10, seen removed", "funnel": "NDCG@10, funnel"}
"""Shown where a row of the part has them."""
_SAME = 5e-5
"""Figures that differ by less look the same where they are printed."""
_HEADERS = {"ndcg": "NDCG@10", "hit": "Hit@10", "mflops": "MFLOPs", "mbit": "Mbit"}


def title_of(part: Part) -> str:
    """Data set and backbone, and the recipe of training if it is not the paper's."""
    named = f"{ALL[part.dataset].title}, {BACKBONE_TITLES[part.backbone]}"
    return named if part.recipe == PAPER else f"{named}, {part.recipe} recipe"


def quality_table(name: str, parts: Sequence[Part], results: Results) -> list[str]:
    """Tables 1, 2, 3, 4 and 7. Parts of which nothing was run are folded."""
    lines = [f"## {TITLES[name]}", "", *bullets(paper.notes(name))]
    footnotes = Footnotes()
    for part in parts:
        title = title_of(part)
        body = [
            *_part(part, results, footnotes), *_refresh_line(part, results),
            *_order_line(part, results),
        ]  # fmt: skip
        if results.any(part):
            lines += [f"### {title}", "", *body]
        else:
            lines += folded(f"{title}: not run", body)
    return lines + footnotes.lines()


def _part(part: Part, results: Results, footnotes: Footnotes) -> list[str]:
    printed = paper.columns(part.table)
    has_paper = bool(paper.rows(part.table, part.backbone, part.dataset))
    header = ["Method"]
    for column in printed:
        header += ([f"{_HEADERS[column]}, paper"] if has_paper else []) + [_HEADERS[column]]
        header += [_TRUE[column]] if column in _TRUE else []
    extra = [
        column for column in _EXTRA if any(results.mean(row.cell, column) for row in part.rows)
    ]
    compared = any(_to_device_rec(row, results) for row in part.rows)
    header += [_EXTRA[column] for column in extra]
    header += ["NDCG@10 less DeviceRec's, first seed, 95 %"] if compared else []
    alike = results.alike(part)
    best = {column: _best(part.rows, alike, column) for column in ("ndcg", "hit")}
    rows = []
    for row in part.rows:
        why = results.failure(row.cell) if not results.of(row.cell) else ""
        marks = (
            footnotes.mark(text) for text in (why, _budget(row, results), _start(row, results))
        )
        line = [row.title + "".join(marks)]
        for column in printed:
            line += [_printed(part, row, column, footnotes)] if has_paper else []
            text = results.text(row.cell, column)
            line.append(f"**{text}**" if row is best.get(column) else text)
            if column in _TRUE:
                line.append(results.text(row.cell, f"true_{column}"))
        line += [results.text(row.cell, column) for column in extra]
        line += [_to_device_rec(row, results)] if compared else []
        rows.append([*line, _seeds(row, results)])
    return table([*header, "seeds"], rows)


def _budget(row: Row, results: Results) -> str:
    """A footnote for a row that was trained for another number of epochs than the recipe's."""
    found = results.of(row.cell)
    if not found or found[0].cell.epochs is None:
        return ""
    return f"{found[0].cell.epochs} epochs in place of the recipe's"


def _start(row: Row, results: Results) -> str:
    """A footnote for a row whose DeviceRec is not the one that the report has: the same seed leads
    to other weights on another kind of processor. "" if it is, and for DeviceRec itself."""
    for record in results.of(row.cell):
        found = record.figures.get("difference", {}).get("ndcg@10")
        theirs = [results.records.get(cell.name) for cell in requirements(record.cell)]
        if found is None or not theirs or theirs[0] is None:
            continue
        own = record.figures["ndcg@10"] - found["mean"]
        shown = theirs[0].figures["ndcg@10"]
        if abs(own - shown) > _SAME:
            return (
                f"seed {record.cell.seed}: from, or beside, another DeviceRec than this report's, "
                f"the same seed on another kind of processor: its NDCG@10 is {own:.4f}, not "
                f"{shown:.4f}. Compare the differences to DeviceRec, not the figures"
            )
    return ""


def _to_device_rec(row: Row, results: Results) -> str:
    """The difference to DeviceRec of the same seed with its interval over users; of the first seed
    that was run."""
    found = results.of(row.cell)
    return difference(found[0]) if found else ""


def difference(record: Record) -> str:
    """NDCG@10 less DeviceRec's of the same seed, with its interval over users; "" for DeviceRec."""
    found = record.figures.get("difference", {}).get("ndcg@10")
    if found is None:
        return ""
    return f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"


def _printed(part: Part, row: Row, column: str, footnotes: Footnotes) -> str:
    found = paper.figure(part.table, part.backbone, part.dataset, row.key, column)
    return "" if found is None else f"{found.value:.4f}{footnotes.mark(found.note)}"


def _best(rows: Iterable[Row], results: Results, column: str) -> Row | None:
    means = [(row, results.mean(row.cell, column)) for row in rows]
    ran = [(row, mean.value) for row, mean in means if mean is not None]
    return max(ran, key=lambda pair: pair[1])[0] if len(ran) > 1 else None


def _seeds(row: Row, results: Results) -> str:
    found = results.of(row.cell)
    return ", ".join(str(record.cell.seed) for record in found) if found else ""


def _order_line(part: Part, results: Results) -> list[str]:
    """Systems from best to worst by NDCG, ours and the paper's, where three or more were run.

    Over the seeds that all of them have. A data set that the paper does not have is compared with
    the paper's that is most like it.
    """
    like = ALL[part.dataset].like
    named = "the paper's" if part.dataset == like else f"the paper's on {ALL[like].title}"
    results = results.alike(part)
    ours, theirs, seeds = {}, {}, ""
    for row in part.rows:
        mean = results.mean(row.cell, "ndcg")
        printed = paper.figure(part.table, part.backbone, like, row.key, "ndcg")
        if mean is not None and printed is not None:
            ours[row.title], theirs[row.title] = mean.value, printed.value
            seeds = _seeds(row, results)
    if len(ours) < 3:
        return []
    same, total = agreement(ours, theirs)
    return [
        f"Order by NDCG@10 with seed {seeds}, ours: "
        f"{' > '.join(order(list(ours.items())))}; {named}: "
        f"{' > '.join(order(list(theirs.items())))}. {same} of {total} pairs in the same order, "
        "those that the intervals do not tell apart among them.",
        "",
    ]


def _refresh_line(part: Part, results: Results) -> list[str]:
    """What a device computes at each refresh, beside the network's inferences of the table."""
    said = []
    for row in part.rows:
        found = results.of(row.cell)
        modules = found[0].figures.get("device_modules", {}) if found else {}
        if modules.get("flops_per_request"):
            items = modules["extractor_history"]
            reads = f" (over {items} items)" if items > 1 else ""
            said.append(f"{row.title} {modules['flops_per_request'] / 1e6:.4f}{reads}")
    if not said:
        return []
    return [f"Beside that, MFLOPs on the device at each refresh: {'; '.join(said)}.", ""]


def data_table(results: Results) -> list[str]:
    """Table 6: the logs after the filter."""
    cards = {record.cell.dataset: record.data for record in results.records.values()}
    rows = []
    for key, found in ALL.items():
        printed, card = paper.statistics(key), cards.get(key)
        if printed is None and card is None:
            continue
        row = [found.title + ("" if found.paper else " (not the paper's)")]
        for column in ("users", "items", "interactions"):
            row.append(f"{printed[column]:,.0f}" if printed else "")
            row.append(f"{card[column]:,}" if card else "not run")
        rows.append(row)
    header = ["Data", "users, paper", "users", "items, paper", "items"]
    lines = ["## Table 6: data", ""]
    lines += bullets(["The paper's items count the padding, ours do not.", *paper.notes("table6")])
    return lines + table([*header, "interactions, paper", "interactions"], rows)


def cost_table() -> list[str]:
    """Table 5: computed, nothing is run for it."""
    footnotes = Footnotes()
    rows = []
    for backbone in BACKBONE_TITLES:
        config = BackboneConfig(backbone, blocks=int(paper.setting("blocks", backbone)))
        network = network_cost(config, config.blocks)
        device = device_modules_cost(config, config.history)
        cloud = cloud_modules_cost(config)
        ours = {
            "backbone": (network.flops.paper, network.flops.true, network.parameter_mbit),
            "device": (device.flops.paper, device.flops.true, device.parameters / 1e6),
            "cloud": (cloud.flops.paper, cloud.flops.true, cloud.parameters / 1e6),
        }
        names = {"backbone": "Backbone", "device": "Forward-device", "cloud": "Forward-cloud"}
        for part, (flops, true, parameters) in ours.items():
            theirs, param = (paper.component(backbone, part, c) for c in ("mflops", "param"))
            unit = "Mbit" if part == "backbone" else "M parameters"
            rows.append([
                f"{BACKBONE_TITLES[backbone]}, {names[part]}",
                f"{theirs.value:.4f}{footnotes.mark(theirs.note)}",
                f"{flops / 1e6:.4f}", f"{true / 1e6:.4f}",
                f"{param.value:.4f}", f"{parameters:.4f}", unit,
            ])  # fmt: skip
    header = ["Component", "MFLOPs, paper", "MFLOPs", "MFLOPs, true", "Param, paper", "Param", ""]
    lines = ["## Table 5: what each part costs", "", *bullets(paper.notes("table5"))]
    return [*lines, *table(header, rows), *footnotes.lines()]


def time_table(parts: Sequence[Part], results: Results) -> list[str]:
    """Table 8, in seconds, measured where `make paper` ran; the paper's column of a device is its
    cloud's scaled, ours is one thread of the same processor."""
    rows = []
    machines = set()
    for part in parts:
        theirs = paper.adaptation_seconds(part.backbone)
        found = results.of(part.rows[0].cell)
        title = title_of(part)
        rows.append([f"{title}: paper", *(f"{theirs[k]:.4f}" for k in theirs), ""])
        if not found:
            rows.append([f"{title}: ours", *["not run"] * 3, ""])
            continue
        times, machine = found[0].figures["seconds"], found[0].machine
        machines.add(
            f"{title}: {machine['cpu']}, {machine['device']}, threads: {machine['threads']}; "
            f"{times['finetune-steps']:.0f} steps of Finetune"
        )
        rows.append([
            f"{title}: ours", f"{times['forward-ofa']:.4f}", f"{times['finetune']:.4f}",
            f"{times['finetune-one-thread']:.4f}" if machine["threads"] != 1 else "as before",
            f"{times['finetune'] / times['forward-ofa']:,.0f}x",
        ])  # fmt: skip
    ours = (
        "Ours: medians for one device. Forward-OFA: E, H and E' and the generation of the kept "
        "blocks. Fine-tuning: all steps of Finetune on the device's own history, with all threads "
        "(cloud) and with one thread of the same processor (device), the same where torch had one. "
        "Ratio: the cloud's fine-tuning to Forward-OFA. No network in any of them; Figure 7 "
        "has that."
    )
    header = ["", "Forward-OFA", "fine-tuning, cloud", "fine-tuning, device", "ratio"]
    lines = ["## Table 8: seconds until a device has adapted", ""]
    lines += bullets([*paper.notes("table8"), ours, *sorted(machines)])
    return lines + table(header, rows)
