"""A run as tables and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.serving.bars import ECHO_AND_PRODUCT, Bar
from benchmarks.serving.measure import Cell, Run

_COLOURS = {"PASS": "green", "FAIL": "bold red", "SKIPPED": "yellow"}


def print_run(console: Console, run: Run, found: list[Bar], machine: dict[str, Any]) -> None:
    """Everything that was measured."""
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}, revision {machine['revision'][:10]}"
        f"{' with changes' if machine['changed_files'] else ''}; {_cores(run)}"
    )
    console.print(_measurements(run))
    console.print(_product(run))
    if run.at_load:
        console.print(_at_load(run))
    console.print(_bars(found))
    for name, why in run.skipped.items():
        console.print(f"[yellow]skipped[/]: {name}: {why}", highlight=False)
    for note in run.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def _cores(run: Run) -> str:
    server, client = run.settings.cores()
    if not server:
        return "servers and load generator share all cores"
    return f"servers on cores {server}, load generator on {client}"


def _measurements(run: Run) -> Table:
    table = Table(title=f"Medians of {run.settings.rounds} rounds, {run.settings.seconds:g} s each")
    for name in ("system", "clients", "batch"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for name in ("p50 ms", "p95 ms", "p99 ms", "requests/s", "spread"):
        table.add_column(name, justify="right")
    for name in (
        "server CPU-ms",
        "client CPU-ms",
        "client cores",
        "other cores",
        "PSS MB",
        "errors",
    ):
        table.add_column(name, justify="right")
    for cell in run.cells:
        for clients in cell.rounds:
            table.add_row(*_row(run, cell, clients))
        table.add_section()
    return table


def _row(run: Run, cell: Cell, clients: int) -> list[str]:
    median = cell.median(clients)
    memory = run.memory.get(f"{cell.name}, {clients}", {})
    return [
        cell.name,
        str(clients),
        str(cell.systems[clients].batch) if cell.systems[clients].batch > 1 else "",
        *(f"{median[name]:.2f}" for name in ("p50", "p95", "p99")),
        f"{median['rps']:.0f}",
        f"{median['rps_spread']:.0%}" if len(cell.rounds[clients]) > 1 else "",
        f"{median['server_cpu_ms']:.2f}",
        f"{median['client_cpu_ms']:.2f}",
        f"{median['client_cores']:.2f}",
        f"{median['other_cores']:.2f}",
        f"{memory.get('pss_mb', 0):.0f}",
        f"{median['errors']:.0f}" if median["errors"] else "",
    ]


def _product(run: Run) -> Table:
    table = Table(title="The matrix product alone, one thread")
    table.add_column("batch", justify="right")
    table.add_column("ms a request", justify="right")
    table.add_column("best way")
    for batch, best in run.product.items():
        table.add_row(batch, f"{best['ms']:.3f}", best["way"])
    return table


def _at_load(run: Run) -> Table:
    table = Table(title="80 % of the capacity at the most clients, random arrivals")
    table.add_column("system")
    for name in ("offered/s", "answered/s", "p50 ms", "p99 ms", "max ms", "refused", "errors"):
        table.add_column(name, justify="right")
    for each in run.at_load:
        latency = each["latency_ms"]
        table.add_row(
            each["name"],
            f"{each['phases'][0]['wanted_rps']:.0f}",
            f"{each['rps']:.0f}",
            *(f"{latency.get(name, float('nan')):.2f}" for name in ("p50", "p99", "max")),
            str(each["refused"]),
            str(each["errors"]),
        )
    return table


def _bars(found: list[Bar]) -> Table:
    table = Table(title="Bars")
    table.add_column("bar")
    table.add_column("ratio", justify="right")
    table.add_column("bound", justify="right")
    table.add_column("")
    table.add_column("figures")
    for bar in found:
        table.add_row(
            bar.name,
            "" if bar.value is None else f"{bar.value:.2f}",
            str(bar.as_dict()["bound"]),
            f"[{_COLOURS[bar.verdict]}]{bar.verdict}[/]",
            bar.detail,
        )
    return table


def draw(run: Run, machine: dict[str, Any], path: Path) -> None:
    """Latency of one client, requests a second, CPU and memory of the servers, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    few, most = min(run.settings.clients), max(run.settings.clients)
    figure, axes = pyplot.subplots(2, 2, figsize=(15, 9.5), layout="constrained")
    _bars_of(axes[0, 0], run, few, "p50", f"p50 latency, {_clients(few)} (ms)", whisker="p99")
    echo = run.cell("echo")
    if echo is not None and echo.median(few):
        floor = echo.median(few)["p50"] + run.product["1"]["ms"]
        _line(axes[0, 0], floor, "echo + product")
        _line(axes[0, 0], floor * ECHO_AND_PRODUCT, f"{ECHO_AND_PRODUCT:g} × that", "tab:red")
    _bars_of(axes[0, 1], run, most, "rps", f"requests a second, {_clients(most)}")
    best = run.best_peer(most)
    if best is not None:
        _line(axes[0, 1], best.median(most)["rps"], "best peer")
        _line(axes[0, 1], 1.5 * best.median(most)["rps"], "1.5 × best peer", "tab:red")
    _bars_of(axes[1, 0], run, most, "server_cpu_ms", f"server CPU, {_clients(most)} (ms a request)")
    _bars_of(axes[1, 1], run, most, "pss_mb", "server memory (PSS, MB)")
    figure.suptitle(
        f"Parameters of a network for one interest vector. {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['time'][:10]}, {machine['revision'][:10]}; "
        + _cores(run),
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _bars_of(
    axis: Any, run: Run, clients: int, metric: str, title: str, whisker: str | None = None
) -> None:
    cells = [cell for cell in run.cells if cell.median(clients)][::-1]
    if metric == "pss_mb":
        values = [run.memory[f"{cell.name}, {clients}"]["pss_mb"] for cell in cells]
    else:
        values = [cell.median(clients)[metric] for cell in cells]
    colours = [_colour(cell) for cell in cells]
    places = range(len(cells))
    axis.barh(places, values, color=colours)
    shown = [f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in values]
    ends = values
    if whisker:
        ends = [cell.median(clients)[whisker] for cell in cells]
        axis.hlines(places, values, ends, color="black", linewidth=1)
        axis.plot(ends, places, "|", color="black")
        shown = [f"{text}  ({end:.1f})" for text, end in zip(shown, ends, strict=True)]
        title += ", line to p99"
    for place, end, text in zip(places, ends, shown, strict=True):
        axis.text(end, place, f"  {text}", va="center", fontsize=8)
    axis.set_yticks(places, [cell.name for cell in cells], fontsize=9)
    axis.set_xlim(0, max(ends) * 1.18)
    axis.set_title(title, fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)


def _line(axis: Any, value: float, name: str, colour: str = "tab:gray") -> None:
    axis.axvline(value, linestyle="--", linewidth=1, color=colour, label=name)
    axis.legend(fontsize=8, loc="lower right")


def _colour(cell: Cell) -> str:
    if cell.group == "floor":
        return "tab:gray"
    return "tab:blue" if cell.name.startswith("ours") else "tab:orange"
