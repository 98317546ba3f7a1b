"""Figures 4 to 7: a PNG each where there is something to draw, and the text beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.kdd25 import paper
from experiments.kdd25.markdown import bullets, table
from experiments.kdd25.recipes import Part
from experiments.kdd25.summary import Results
from experiments.kdd25.tables import title_of
from experiments.kdd25.transmission import update_bytes, update_milliseconds

_OURS, _OTHER, _PALE = "#1b6ca8", "#c8553d", "#b8c4cc"


def usage_figure(parts: Sequence[Part], results: Results, folder: Path) -> list[str]:
    """Figure 4: (a) users who keep each block, (b) users by how many blocks they keep."""
    lines = ["## Figure 4: which blocks are kept", "", *bullets(paper.notes("figure4"))]
    for part in parts:
        found = results.of(part.rows[0].cell)
        if not found:
            lines += [f"{title_of(part)}: not run.", ""]
            continue
        path = folder / f"figure4-{part.slug}.png"
        # A mean over seeds would show blocks as shared that are all or nothing in each.
        with _drawing(path, (8, 0.6 + 2.3 * len(found)), len(found), 2) as axes:
            for left, right, record in zip(axes[::2], axes[1::2], found, strict=True):
                usage = np.array(record.figures["block_usage"])
                counts = np.array(record.figures["kept_blocks_histogram"])
                blocks = np.arange(1, len(usage) + 1)
                _bars(left, blocks, 100 * usage, "block", "users who keep it, %")
                _bars(right, np.arange(len(counts)), 100 * counts / counts.sum(), "blocks kept",
                      "users, %")  # fmt: skip
                left.set_title(f"seed {record.cell.seed}", fontsize=9, loc="left")
            axes[0].figure.suptitle(title_of(part), fontsize=10)
        lines += [f"![Blocks kept, {title_of(part)}]({path.name})", ""]
    return lines


def sweep_figure(parts: Sequence[Part], all_results: Results, folder: Path) -> list[str]:
    """Figure 5: NDCG, Hit, FLOPs and Param over lambda, of the same seeds."""
    lines = ["## Figure 5: the compact constraint", "", *bullets(paper.notes("figure5"))]
    columns = {"ndcg": "NDCG@10", "hit": "Hit@10", "mflops": "MFLOPs", "mbit": "Mbit"}
    for part in parts:
        results = all_results.alike(part)
        header = ["lambda", *columns.values(), "blocks"]
        rows = [
            [_lambda(row.title), *(results.text(row.cell, c) for c in (*columns, "kept"))]
            for row in part.rows
        ]
        lines += [f"### {title_of(part)}", ""]
        ran = [row for row in part.rows if results.of(row.cell)]
        if len(ran) > 1:
            path = folder / f"figure5-{part.slug}.png"
            with _drawing(path, (8, 4.6), 2, 2) as axes:
                for axis, (column, label) in zip(axes, columns.items(), strict=True):
                    means = [results.mean(row.cell, column) for row in ran]
                    values = [mean.value for mean in means if mean is not None]
                    axis.plot(range(len(ran)), values, marker="o", color=_OURS)
                    axis.set_xticks(range(len(ran)), [_lambda(row.title) for row in ran])
                    axis.set_ylabel(label)
                    axis.ticklabel_format(axis="y", useOffset=False)
                    axis.set_xlabel("lambda")
                axes[0].figure.suptitle(title_of(part), fontsize=10)
            lines += [f"![Sweep of lambda, {title_of(part)}]({path.name})", ""]
        lines += table(header, rows)
    return lines


def case_figure(parts: Sequence[Part], results: Results, folder: Path) -> list[str]:
    """Figure 6: four users' paths; one user's list from three networks; all users counted."""
    lines = ["## Figure 6: a network of one's own", "", *bullets(paper.notes("figure6"))]
    for part in parts:
        found = results.of(part.rows[0].cell)
        if not found:
            lines += [f"{title_of(part)}: not run.", ""]
            continue
        case = found[0].figures["case"]
        path = folder / f"figure6-{part.slug}.png"
        with _drawing(path, (6, 2.2), 1, 1) as (axis,):
            _paths(axis, case["users"])
            axis.set_title(f"Blocks of four users' networks: {title_of(part)}", fontsize=10)
        lines += [f"### {title_of(part)}", "", f"![Paths of four users]({path.name})", ""]
        lines += _case_text(case)
    return lines


def _case_text(case: dict[str, Any]) -> list[str]:
    users, lists = case["users"], case["lists"]
    lines = ["What they had watched or bought before, the most recent last:", ""]
    lines += bullets([f"{user['letter']}: {'; '.join(user['history'])}" for user in users])
    lines += [f"What P took next: **{case['target']}**. The first of its lists, by network:", ""]
    names = {"own": "P's own", "dense": "dense (DeviceRec)", "other": "made from Y's behaviour"}
    header = ["", *(f"{names[k]}, {lists[k]['blocks']} blocks" for k in names)]
    rows = [
        [str(place + 1), *(lists[k]["titles"][place] for k in names)]
        for place in range(len(lists["own"]["titles"]))
    ]
    rows.append(["rank of the target", *(str(lists[k]["rank"]) for k in names)])
    lines += table(header, rows)
    lines += ["One user proves nothing, so the same for every user on the test split:", ""]
    counted = case["all_users"]
    rows = [
        [title, f"{counted[k]['ndcg@10']:.4f}", f"{counted[k]['hit@10']:.4f}"]
        for k, title in {"own": "own network", "dense": "dense (DeviceRec)",
                         "other": "network of another user, drawn at random"}.items()
    ]  # fmt: skip
    return lines + table(["", "NDCG@10", "Hit@10"], rows) + bullets([case["rule"]])


def transmission_figure(parts: Sequence[Part], results: Results, folder: Path) -> list[str]:
    """Figure 7: milliseconds of a model update over the paper's link."""
    link = paper.link_mbit_per_second()
    note = (
        f"Computed: bytes over {link:g} Mbit/s, no latency. The paper's from its Param; ours from "
        "the artefacts that the assembler sends, header included, at the mean number of kept "
        "blocks. Regular: all blocks."
    )
    lines = ["## Figure 7: how long an update takes", ""]
    lines += bullets([*paper.notes("figure7"), note])
    header = ["", "regular", "Forward-OFA"]
    for part in parts:
        rows, bars = _transmission(part, results)
        lines += [f"### {title_of(part)}", "", *table(header, rows)]
        if bars:
            path = folder / f"figure7-{part.slug}.png"
            with _drawing(path, (6, 2.6), 1, 1) as (axis,):
                places = np.arange(len(bars))
                axis.barh(places - 0.2, [b[1] for b in bars], 0.38, color=_PALE, label="regular")
                axis.barh(places + 0.2, [b[2] for b in bars], 0.38, color=_OURS,
                          label="Forward-OFA")  # fmt: skip
                axis.set_yticks(places, [b[0] for b in bars])
                axis.invert_yaxis()
                axis.set_xlabel(f"ms over {link:g} Mbit/s")
                axis.legend(fontsize=8)
                axis.set_title(title_of(part), fontsize=10)
            lines += [f"![Time of an update, {title_of(part)}]({path.name})", ""]
    return lines


def _transmission(
    part: Part, results: Results
) -> tuple[list[list[str]], list[tuple[str, float, float]]]:
    """Table rows, and bars (label, regular, Forward-OFA) where Forward-OFA was run."""
    rows: list[list[str]] = []
    bars: list[tuple[str, float, float]] = []
    link = paper.link_mbit_per_second()
    printed = [
        paper.figure("table1", part.backbone, part.dataset, system, "mbit")
        for system in ("device-rec", "forward-ofa")
    ]
    if all(printed):
        times = [1000 * found.value / link for found in printed if found is not None]
        rows.append(["float32, paper", *(f"{time:.1f} ms" for time in times)])
        bars.append(("float32, paper", times[0], times[1]))
    mean = results.mean(part.rows[0].cell, "kept")
    for encoding in ("float32", "float16", "int8"):
        blocks = part.rows[0].cell.blocks
        regular = update_bytes(part.backbone, blocks, encoding)[blocks]
        row = [encoding, f"{update_milliseconds(regular, link):.1f} ms ({regular:,} bytes)"]
        if mean is None:
            rows.append([*row, "not run"])
            continue
        ours = float(np.interp(mean.value, range(blocks + 1),
                               update_bytes(part.backbone, blocks, encoding)))  # fmt: skip
        rows.append([*row, f"{update_milliseconds(ours, link):.1f} ms ({ours:,.0f} bytes)"])
        bars.append((encoding, update_milliseconds(regular, link), update_milliseconds(ours, link)))
    return rows, bars if mean is not None else []


def _bars(axis: Axes, places: np.ndarray, heights: np.ndarray, x: str, y: str) -> None:
    axis.bar(places, heights, color=_OURS)
    axis.set_xticks(places)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_ylim(0, 105 if heights.max() > 90 else None)


def _paths(axis: Axes, users: Sequence[dict[str, Any]]) -> None:
    """A row a user, a square a block, filled where it is kept."""
    for row, user in enumerate(users):
        color = {"P": _OURS, "Y": _OTHER}.get(user["letter"], "#5f6b73")
        for block, kept in enumerate(user["path"]):
            face = color if kept else "white"
            axis.add_patch(
                Rectangle((block + 0.6, row - 0.35), 0.8, 0.7, facecolor=face, edgecolor=color)
            )
    blocks = len(users[0]["path"])
    axis.set_xlim(0.3, blocks + 0.7)
    axis.set_ylim(len(users) - 0.4, -0.6)
    axis.set_xticks(range(1, blocks + 1))
    axis.set_yticks(range(len(users)), [user["letter"] for user in users])
    axis.set_xlabel("block")


def _lambda(title: str) -> str:
    return title.removeprefix("lambda ")


@contextmanager
def _drawing(
    path: Path, size: tuple[float, float], rows: int, columns: int
) -> Iterator[list[Axes]]:
    """Axes in reading order; then a small PNG, with the same bytes for the same data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)
    yield list(axes.flat)
    figure.savefig(path, metadata={"Software": None})
