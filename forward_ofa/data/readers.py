"""Read an interaction log: the files that `folders` finds, in the formats of `layouts`.

Titles come from `u.item`, `movies.dat`, `movies.csv`, `items.*`, `<name>.item` or `meta_<name>.*`
beside the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from forward_ofa.data.columns import ColumnNames, TimeReader, resolve, to_ids
from forward_ofa.data.folders import LogFiles, find_log
from forward_ofa.data.layouts import open_table
from forward_ofa.data.log import DataError, InteractionLog
from forward_ofa.data.sorting import LogSorter, Rows
from forward_ofa.data.titles import find_titles
from forward_ofa.data.workspace import Workspace


def read_log(
    path: Path, columns: ColumnNames | None = None, workspace: Workspace | None = None
) -> InteractionLog:
    """Read the log at `path`, a file or a folder.

    workspace: where a log goes that is larger than memory; left out: all in memory.
    Raises DataError for anything that is not a usable log, saying where and what to do; OSError
    when the workspace cannot be written.
    """
    names = columns or ColumnNames()
    found = find_log(path, names)
    sorter = LogSorter(workspace or Workspace())
    notes = list(found.notes)
    for rows in read_rows(found, names, notes):
        sorter.add(rows)
    titles = find_titles(found.files[0])
    return sorter.finish(titles, log_name(path), found.describe(), notes)


def log_name(path: Path) -> str:
    """The short name of the log at a path."""
    name = path.resolve().name
    return name if path.is_dir() else name.partition(".")[0] or name


def read_rows(found: LogFiles, names: ColumnNames, notes: list[str]) -> Iterator[Rows]:
    """The rows of all files, some millions at most at a time; adds to `notes` what a person should
    know of the files. Raises DataError."""
    kinds: dict[Path, bool] = {}
    for file in found.files:
        table, _ = open_table(file, names)
        indices = resolve(table.header, names, str(file))
        user, item, time = (table.header[index] for index in indices)
        times = TimeReader(time, str(file))
        last: list[str] = []
        place = ""
        for part in table.parts(list(indices)):
            last = [*last, *part.frame[time].tail(2)][-2:]
            place = part.place(part.frame.height - 1)
            values, micros = times.read(part)
            yield Rows(to_ids(part, user, str(file)), to_ids(part, item, str(file)), values, micros)
        if table.unended:
            _refuse_cut_time(f"{file}, {place}", last)
            # Not by its name if it is alone: a prepared log is found again by what is in it.
            what = file.name if len(found.files) > 1 else "the log"
            notes.append(f"the last line of {what} has no line end: the file may be cut off")
        kinds[file] = times.are_numbers
    if len(set(kinds.values())) > 1:
        numbers = next(file for file, number in kinds.items() if number)
        dates = next(file for file, number in kinds.items() if not number)
        raise DataError(
            f"{numbers} has times as numbers, {dates} as dates: give all parts in one form."
        )


def _refuse_cut_time(place: str, times: list[str]) -> None:
    """Raises DataError if the last of the last times of a text looks cut off.

    Such a time is still a time, only far too early: the user's last item would become the first.
    Digits of a fraction do not count, they differ in whole files too.
    """
    if len(times) < 2:
        return
    before, last = (len(re.sub(r"[.,]\d*|\D", "", time)) for time in times)
    if last < before:
        raise DataError(
            f"{place}: the last line has no line end, and its time {times[1]!r} has fewer digits "
            f"than {times[0]!r} in the row before: the file seems to be cut off. Copy or export it "
            "again; if the line is whole, add the line end."
        )
