"""A few pieces of Markdown: tables, footnotes, folded sections."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    rule = [":--", *("--:" for _ in header[1:])]
    return [_line(header), _line(rule), *(_line(row) for row in rows), ""]


def bullets(lines: Sequence[str]) -> list[str]:
    return [*(f"- {line}" for line in lines), ""] if lines else []


def folded(summary: str, lines: Sequence[str]) -> list[str]:
    """A section that a reader opens."""
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "</details>", ""]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


class Footnotes:
    """Marks [a], [b], ... beside figures, and the list of what they say. Equal texts share one."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """ " [a]" for a text, "" for none."""
        if not text:
            return ""
        if text not in self._texts:
            self._texts.append(text)
        return f" [{_letters(self._texts.index(text))}]"

    def lines(self) -> list[str]:
        return bullets([f"[{_letters(i)}] {text}." for i, text in enumerate(self._texts)])


def _letters(index: int) -> str:
    """0: a, 25: z, 26: aa."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters
