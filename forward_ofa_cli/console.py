"""What people see: consoles, the progress of a training, durations."""

from __future__ import annotations

import re
import textwrap
import time
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_LOG_WIDTH = 110
# Control characters, line separators, what turns the direction of writing, half characters.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NARROWEST_TAIL = 16


def console(*, stderr: bool = False) -> Console:
    """stderr: for everything that is not the result, when the result is JSON on stdout."""
    out = Console(stderr=stderr, highlight=False)
    if not out.is_terminal:  # a log file wraps nothing
        out.width = max(out.width, _LOG_WIDTH)
    return out


def printable(text: str) -> str:
    """For a terminal: a name may hold what moves its cursor or changes its colours, which is
    shown as it is written in Python, `\\x1b`."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def plain(text: str) -> Text:
    """What users, logs and services wrote: printable, and nothing in it is markup."""
    return Text(printable(text))


def say(out: Console, text: str) -> None:
    """A line of `plain`, however long."""
    out.print(plain(text), soft_wrap=True)


class Tail:
    """`plain` in a cell of a table, cut on its left: a path's end says which file it is."""

    def __init__(self, text: str) -> None:
        self._text = printable(text)

    def __rich_console__(self, out: Console, options: ConsoleOptions) -> RenderResult:
        text = self._text
        if cell_len(text) > options.max_width:
            text = text[-options.max_width :]
            while cell_len(text) >= options.max_width:
                text = text[1:]
            text = f"…{text}"
        yield Text(text, no_wrap=True)

    def __rich_measure__(self, out: Console, options: ConsoleOptions) -> Measurement:
        width = min(cell_len(self._text), options.max_width)
        return Measurement(min(width, _NARROWEST_TAIL), width)


def note(out: Console, text: str) -> None:
    """A line in small print, indented also where it wraps."""
    lines = textwrap.wrap(text, max(20, out.width - 2)) or [""]
    for line in lines:
        out.print(Text(f"  {printable(line)}", style="dim"), soft_wrap=True)


def duration(seconds: float) -> str:
    """For people: "40 s", "3 min 20 s", "2 h 5 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 100 * factor else (
                f"{count / factor:,.0f} {unit}")  # fmt: skip
    return f"{count:.0f} B"


class TrainingProgress:
    """Keeps `forward_ofa.training.Progress`: a bar with ETA a stage, a line an epoch."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=out,
            transient=True,
        )
        self._task: TaskID | None = None
        self._stage = ""

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def begin(self, stage: str, steps: int, done: int) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._stage = stage
        self._task = self._bars.add_task(stage, total=steps, completed=done, loss=float("nan"))
        if done:
            self._out.print(f"  {stage}: going on after {done} of {steps} steps")

    def step(self, loss: float) -> None:
        if self._task is not None:
            self._bars.update(self._task, advance=1, loss=loss)

    def epoch(self, record: dict[str, Any]) -> None:
        hit = f"  Hit@10 {record['hit@10']:.4f}" if "hit@10" in record else ""
        chosen = "mean_kept_blocks" in record and self._stage != "DeviceRec"
        kept = f"  {record['mean_kept_blocks']:.2f} blocks" if chosen else ""
        # An epoch without steps tries settings instead.
        made = f"loss {record['loss']:.3f}" if "loss" in record else (
            f"rate {record['rate']:g}, {record['steps']:g} steps"
        )  # fmt: skip
        best = "  [green]best so far[/]" if record["best"] else ""
        self._out.print(
            f"  {self._stage} epoch {record['epoch']}  {duration(record['seconds'])}  "
            f"{made}  validation NDCG@10 {record['ndcg@10']:.4f}"
            f"{hit}{kept}{best}",
            soft_wrap=True,
        )


class DownloadProgress:
    """A line at the start of a download and one at most every five seconds."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._next = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 5
            of = f" of {size(total)}" if total else ""
            self._out.print(f"  downloading: {size(done)}{of}")
