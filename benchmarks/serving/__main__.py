"""`make bench`: ours, its peers and two floors, measured side by side in one run."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.serving.bars import bars
from benchmarks.serving.loader import Loader
from benchmarks.serving.machine import describe
from benchmarks.serving.measure import Run
from benchmarks.serving.procs import end_on_term
from benchmarks.serving.report import draw, print_run
from benchmarks.serving.servers import Servers
from benchmarks.serving.settings import Settings
from benchmarks.serving.systems import PEER_NAMES
from benchmarks.serving.version import make_version


def read_settings(arguments: list[str] | None = None) -> Settings:
    """The command line. Ends the program with 2 for what cannot work."""
    standard = Settings()
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="about two minutes: 1 round of 1 s, 1 and 32 clients, no trials",
    )
    add("--rounds", type=int, default=standard.rounds, help="all systems are measured so often")
    add("--seconds", type=float, default=standard.seconds, help="of one measurement")
    add("--load-seconds", type=float, default=standard.load_seconds, help="at 80 %% load")
    add("--clients", default="1,8,32", help="connections at once, a measurement each")
    add("--peers", default=",".join(PEER_NAMES), help="to compare with; empty: none")
    add("--registry", type=Path, help="a trained version, for the paths that a model picks")
    add("--data", help="the log it was trained on: path or name")
    add("--no-pin", action="store_true", help="let servers and load generator share all cores")
    add("--ours", default="", help='more options of our services, e.g. "--mapper-workers 1"')
    add("--out", type=Path, default=standard.out, help="folder for raw results")
    a = parser.parse_args(arguments)
    try:
        return Settings(
            clients=(1, 32) if a.quick else tuple(int(each) for each in a.clients.split(",")),
            rounds=1 if a.quick else a.rounds,
            seconds=1.0 if a.quick else a.seconds,
            warmup=0.3 if a.quick else standard.warmup,
            load_seconds=3.0 if a.quick else a.load_seconds,
            trials=not a.quick,
            peers=tuple(each for each in a.peers.split(",") if each),
            registry=a.registry,
            data=a.data,
            pin=not a.no_pin,
            ours=tuple(a.ours.split()),
            out=a.out,
        )
    except ValueError as error:
        parser.error(str(error))


def benchmark(settings: Settings, console: Console) -> dict[str, Any]:
    """One run: measured, printed, written. Returns what is written as JSON."""
    started, machine = time.monotonic(), describe()
    server_cores, client_cores = settings.cores()
    out = settings.out / f"{machine['time'].replace(':', '')[:17]}-{machine['revision'][:8]}"
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="forward-ofa-bench-") as folder,
        Servers(Path(folder) / "logs", server_cores) as servers,
        Loader(client_cores) as loader,
    ):
        version = make_version(Path(folder))

        def say(text: str) -> None:
            console.print(f"[dim]{time.monotonic() - started:5.0f} s  {text}[/]", highlight=False)

        run = Run(settings, version, servers, loader, say)
        run.run()
    found = bars(run)
    result = {
        "machine": machine,
        "settings": {name: _plain(value) for name, value in vars(settings).items()},
        "cores": {"servers": server_cores, "load generator": client_cores},
        "minutes": round((time.monotonic() - started) / 60, 2),
        **run.results(),
        "bars": [bar.as_dict() for bar in found],
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(run, machine, out / "result.png")
    print_run(console, run, found, machine)
    console.print(f"{result['minutes']} minutes; raw results and plot in {out}", highlight=False)
    return result


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def main() -> int:
    """0: measured, whatever the bars say."""
    settings = read_settings()
    end_on_term()
    console = Console(width=None if sys.stdout.isatty() else 190)
    benchmark(settings, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
