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
    """Forward-OFA's networks against the one dense network, from a run's report."""
    ours, theirs = report["systems"]["forward-ofa"], report["systems"]["device-rec"]
    difference = report["difference"]
    blocks, count = len(ours["block_usage"]), ours["candidates"]
    figures = (
        ("NDCG@10, all items ranked", "ndcg@10"),
        ("Hit@10, all items ranked", "hit@10"),
        (f"NDCG@10, funnel of {count} candidates", "funnel_ndcg@10"),
        (f"Hit@10, funnel of {count} candidates", "funnel_hit@10"),
    )
    costs = (
        (f"blocks on the device, of {blocks} (mean)", "mean_kept_blocks", "{:.2f}"),
        ("MFLOPs an inference (paper's count)", "paper_mflops", "{:.4f}"),
        ("MFLOPs an inference (true)", "true_mflops", "{:.4f}"),
        ("Mbit of parameters (paper's count)", "paper_mbit", "{:.4f}"),
    )
    rows = [["", "Forward-OFA", "DeviceRec", "difference"]]
    for title, key in figures:
        rows.append([title, *_pair(ours[key], theirs[key], "{:.4f}")])
    for title, key, text in costs:
        rows.append([title, *_pair(ours[key], theirs[key], text)])
    sent = [system["payload_bytes"]["float16"] for system in (ours, theirs)]
    rows.append(["bytes of parameters, float16", *_pair(sent[0], sent[1], "{:,.0f}")])
    intervals = "; ".join(
        f"{title.partition(',')[0]}{' in the funnel' if 'funnel' in key else ''} "
        f"{difference[key]['low']:+.4f} to {difference[key]['high']:+.4f}"
        for title, key in figures
        if key in difference
    )
    notes = (
        f"{ours['users']:,} users, {report['split']} split. DeviceRec is one dense network for all "
        "devices, trained under the same protocol.",
        f"95 % intervals of the differences (paired bootstrap over users): {intervals}.",
        f"In the funnel both rerank the same {count} candidates, which the cloud retrieves from h "
        f"alone; {ours['retrieval_recall']:.1%} of the users' next items are unseen and among "
        "them.",
    )
    return Section("Forward-OFA against one dense network for all", table=rows, notes=notes)


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
