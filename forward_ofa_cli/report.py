"""Reports: the same sections on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table

BAR = "█"
BAR_WIDTH = 32


@dataclass(frozen=True)
class Section:
    """A title and what it has of: lines of text, a table, a drawing, notes in small print.

    table: the first row is its header, the first column says what the others are.
    drawing: lines in which every space counts.
    """

    title: str
    lines: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    drawing: Sequence[str] = ()
    notes: Sequence[str] = ()


def show(out: Console, sections: Sequence[Section]) -> None:
    """On a terminal."""
    for section in sections:
        out.print()
        out.print(Rule(f"[bold]{escape(section.title)}[/]", align="left", style="dim"))
        for line in section.lines:
            out.print(escape(line))
        if section.table:
            out.print(_table(section.table))
        for line in section.drawing:
            out.print(escape(line), soft_wrap=True)
        for note in section.notes:
            out.print(f"[dim]{escape(note)}[/]")


def markdown(title: str, sections: Sequence[Section]) -> str:
    """As a Markdown document."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.lines:
            parts.append("\n".join(f"- {line}" for line in section.lines))
        if section.table:
            parts.append(_markdown_table(section.table))
        if section.drawing:
            parts.append("\n".join(("```", *section.drawing, "```")))
        if section.notes:
            parts.append("\n\n".join(f"_{note}_" for note in section.notes))
    return "\n\n".join(parts) + "\n"


def systems(report: dict[str, Any]) -> Section:
    """A run's system against the one dense network for all, if the run has one."""
    from forward_ofa.systems import DEVICE_REC, SYSTEMS

    title = SYSTEMS[report["system"]].title
    ours, theirs = report["systems"][report["system"]], report["systems"].get(DEVICE_REC)
    if "difference" not in report:
        theirs = None
    heading = (
        ["", title] if theirs is None else ["", title, SYSTEMS[DEVICE_REC].title, "difference"]
    )
    rows = [heading]
    for name, key, text in _rows(ours):
        rows.append([name, text.format(ours[key])] if theirs is None else
                    [name, *_pair(ours[key], theirs[key], text)])  # fmt: skip
    if "payload_bytes" in ours:
        sent = [figures["payload_bytes"]["float16"] for figures in (ours, theirs) if figures]
        pair = [f"{sent[0]:,.0f}"] if theirs is None else _pair(sent[0], sent[1], "{:,.0f}")
        rows.append(["bytes of parameters, float16", *pair])
    against = "" if theirs is None else " against one dense network for all"
    return Section(f"{title}{against}", table=rows, notes=_notes(report, ours))


def _rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What a report says of a system: title, key, format."""
    blocks, count = len(figures["block_usage"]), figures.get("candidates")
    quality = _FIGURES + (_FUNNEL if count is not None else ())
    return [
        *((name.format(count=count), key, "{:.4f}") for name, key in quality),
        (f"blocks on the device, of {blocks} (mean)", "mean_kept_blocks", "{:.2f}"),
        ("MFLOPs an inference (paper's count)", "paper_mflops", "{:.4f}"),
        ("MFLOPs an inference (true)", "true_mflops", "{:.4f}"),
        ("Mbit of parameters (paper's count)", "paper_mbit", "{:.4f}"),
        ("Mbit of parameters (true)", "true_mbit", "{:.4f}"),
    ]


_FIGURES = (
    ("NDCG@10, all items ranked", "ndcg@10"),
    ("Hit@10, all items ranked", "hit@10"),
    ("NDCG@10, seen items removed", "unseen_ndcg@10"),
    ("Hit@10, seen items removed", "unseen_hit@10"),
)
_FUNNEL = (
    ("NDCG@10, funnel of {count} candidates", "funnel_ndcg@10"),
    ("Hit@10, funnel of {count} candidates", "funnel_hit@10"),
)
_MANY_REPEATED = 0.01
"""Share of repeated targets from which a report speaks of them."""
_WHERE = {
    "unseen_ndcg@10": " without seen items",
    "funnel_ndcg@10": " in the funnel",
}
"""A difference's key -> what to add to the figure's name; the others are of the full ranking."""


def _notes(report: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    users = f"{ours['users']:,} users, {report['split']} split."
    difference = report.get("difference")
    if difference is not None:
        users += " DeviceRec is one dense network for all devices, trained under the same protocol."
    notes = [users]
    if difference is not None:
        intervals = "; ".join(
            f"{name.partition(',')[0]}{_WHERE.get(key, '')} "
            f"{difference[key]['low']:+.4f} to {difference[key]['high']:+.4f}"
            for name, key in (*_FIGURES, *_FUNNEL)
            if key in difference
        )
        notes.append(
            f"95 % intervals of the differences (paired bootstrap over users): {intervals}."
        )
    if ours["repeated_targets"] >= _MANY_REPEATED:
        notes.append(
            f"{ours['repeated_targets']:.1%} of the users' next items are ones that they had "
            "before, which is missed where seen items are removed: for such a log let devices "
            "keep them, rerank(include_seen=True)."
        )
    if "candidates" in ours:
        both = "In the funnel both rerank the same" if difference is not None else "The funnel has"
        notes.append(
            f"{both} {ours['candidates']} candidates, which the cloud retrieves from h alone; "
            f"{ours['retrieval_recall']:.1%} of the users' next items are unseen and among them."
        )
    return notes


def _pair(ours: float, theirs: float, text: str) -> list[str]:
    change = f"{ours / theirs - 1:+.1%}" if theirs else "n/a"
    return [text.format(ours), text.format(theirs), change]


def verdict(report: dict[str, Any]) -> str:
    """One plain sentence: did the made-for-you networks win, and at what cost."""
    ours, theirs = report["systems"]["forward-ofa"], report["systems"]["device-rec"]
    change = report["difference"]["ndcg@10"]
    figures = f"NDCG@10 {ours['ndcg@10']:.4f} against {theirs['ndcg@10']:.4f}"
    cost = (
        f"at {ours['true_mflops'] / theirs['true_mflops']:.1%} of its FLOPs an inference and "
        f"{ours['paper_mbit'] / theirs['paper_mbit']:.1%} of its bytes"
    )
    if change["low"] > 0:
        return f"Forward-OFA's networks beat the dense network: {figures}, {cost}."
    if change["mean"] > 0:
        return (
            f"Forward-OFA's networks are ahead of the dense network, {figures}, {cost}; but the "
            "95 % interval of the difference includes 0, so this log does not prove it."
        )
    if change["high"] < 0:
        return f"Forward-OFA does NOT beat the dense network here: {figures}, {cost}."
    return (
        f"Forward-OFA does NOT beat the dense network here: {figures}, {cost}; the 95 % interval "
        "of the difference includes 0."
    )


def histogram(counts: dict[int, int]) -> list[str]:
    """One line a number of kept blocks: bar, share, count."""
    total, most = sum(counts.values()), max(counts.values(), default=0)
    if not total:
        return []
    width = len(str(max(counts)))
    return [
        f"{kept:>{width}}  {BAR * round(BAR_WIDTH * count / most):<{BAR_WIDTH}} "
        f"{count / total:>6.1%}  {count:,}"
        for kept, count in sorted(counts.items())
    ]


def _table(rows: Sequence[Sequence[str]]) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(rows[0]):
        shown.add_column(name, justify="right" if index else "left")
    for row in rows[1:]:
        shown.add_row(*row)
    return shown


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |"]
    lines.append("|" + "---|" + "---:|" * (len(rows[0]) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
    return "\n".join(lines)
