"""`python -m forward_ofa_device population`: a population of devices, with no torch in sight."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forward_ofa_device import population as crowd
from forward_ofa_device.artefact import ENCODINGS
from forward_ofa_device.cloud import Connection, token_file
from forward_ofa_device.errors import DeviceError
from forward_ofa_device.policy import Budget, RefreshPolicy

_EXIT_CODES = """
exit codes: 0 every device got a network, in each round; 1 some did not; 2 the input is wrong, the
message says how; 3 torch was imported, which the SDK must never do; 130 interrupted.

Each line of HISTORIES: {"device": "u17", "history": ["id", ...], "next": ["id", ...]}.
The first device downloads the bundle, the others take it from its disk.
With more than one round each is lived by new devices, and STEPS has those of the last.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        lives = crowd.read_lives(options.histories)
        population = _population(options)
        if options.rounds == 1:
            return _live(options, population, lives)
        return _rounds(options, population, lives)
    except (ValueError, OSError, DeviceError) as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _rounds(
    options: argparse.Namespace, population: crowd.Population, lives: list[crowd.Life]
) -> int:
    """One after the other, each with new devices; the worst exit code. Whoever lets devices live
    until told to stop wants them back after an outage, so a bad round does not end it."""
    worst = 0
    population.state.mkdir(parents=True, exist_ok=True)
    for _ in itertools.count() if options.rounds == 0 else range(options.rounds):
        # A new one, whatever an earlier run left behind.
        folder = Path(tempfile.mkdtemp(prefix="round-", dir=population.state))
        code = _live(options, dataclasses.replace(population, state=folder), lives)
        worst = max(worst, code)
        shutil.rmtree(folder)
    return worst


def _live(
    options: argparse.Namespace, population: crowd.Population, lives: list[crowd.Life]
) -> int:
    """One round, told; its exit code. Raises ValueError, OSError, DeviceError."""
    summary = crowd.run(population, lives, options.out, _Progress())
    print(json.dumps(summary) if options.json else _text(summary), flush=True)
    if "torch" in sys.modules:
        print("error: torch was imported into the devices' process", file=sys.stderr)
        return 3
    if summary["devices_with_network"] == summary["devices"]:
        return 0
    names = ", ".join(summary["without_network"])
    print(f"error: no network for {names}: {summary['errors']}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forward_ofa_device", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "population",
        help="many devices, each with a real user's history",
        description=crowd.__doc__,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--controller", required=True, help='"host:port"; TLS off loopback')
    add("--histories", required=True, type=Path, help="JSON lines, see below")
    add("--state", required=True, type=Path, help="new folder for the devices' disks")
    add("--out", required=True, type=Path, help="JSON lines, one a step of a device")
    add("--encoding", choices=ENCODINGS, default="float16", help="of parameters (float16)")
    add("--max-bytes", type=int, help="budget: bytes of a network")
    add("--max-flops", type=int, help="budget: FLOPs of a network, everything counted")
    add("--workers", type=int, default=4, help="devices at the same time (4)")
    add("--shift-threshold", type=float, help="cosine distance that counts as a shift (0.15)")
    add("--step-seconds", type=float, default=60.0, help="simulated, between touches (60)")
    add("--pause", type=float, default=0.0, help="real seconds between touches (0)")
    add("--rounds", type=_rounds_number, default=1, help="that the lives are lived; 0: no end (1)")
    add("--patience", type=float, default=60.0, help="seconds to wait for a first network (60)")
    add("--timeout", type=float, default=5.0, help="seconds for one request (5)")
    add("--root-certificates", type=Path, help="PEM file of the authorities to trust")
    add("--token-file", type=Path, help="file with the device's token; read again for each call")
    add("--certificate", type=Path, help="PEM file: shown to a cloud that asks for one")
    add("--key", type=Path, help="PEM file: the private key of --certificate")
    add("--allow-insecure", action="store_true", help="plain text off loopback too")
    add("--json", action="store_true", help="the summary as JSON on stdout")
    return parser


def _rounds_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"0 or more, not {text!r}")
    return int(text)


def _population(options: argparse.Namespace) -> crowd.Population:
    policy = RefreshPolicy()
    if options.shift_threshold is not None:
        policy = RefreshPolicy(shift_threshold=options.shift_threshold)
    return crowd.Population(
        connection=Connection(
            options.controller,
            root_certificates=options.root_certificates,
            allow_insecure=options.allow_insecure,
            token=token_file(options.token_file) if options.token_file else None,
            certificate=options.certificate,
            key=options.key,
            timeout=options.timeout,
        ),
        state=options.state,
        encodings=(options.encoding,),
        budget=Budget(options.max_bytes, options.max_flops),
        policy=policy,
        workers=options.workers,
        step_seconds=options.step_seconds,
        pause=options.pause,
        patience=options.patience,
    )


def _complain(error: Exception) -> None:
    """One line on stderr, below the progress if that is on a terminal."""
    text = str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"error: {text}", file=sys.stderr)


class _Progress:
    """One line on stderr, rewritten on a terminal, written ten times elsewhere."""

    def __init__(self) -> None:
        self._tenth = 0

    def __call__(self, done: int, total: int, offline: int) -> None:
        text = f"devices {done}/{total}" + (f", {offline} steps offline" if offline else "")
        if sys.stderr.isatty():
            print(f"\r{text}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            print(text, file=sys.stderr, flush=True)


def _text(summary: dict[str, Any]) -> str:
    funnel, latency = summary["funnel"], summary["latency_ms"] or {}
    lines = [
        f"devices with a network   {summary['devices_with_network']} of {summary['devices']}",
        f"steps, requests, offline {summary['steps']}, {summary['requests']}, "
        f"{summary['offline_steps']}",
        "RequestNetwork, ms       "
        + (", ".join(f"{name} {value}" for name, value in latency.items()) or "none"),
        f"kept blocks              {summary['kept_blocks']}",
    ]
    if funnel["steps"]:
        lines.append(
            f"funnel                   recall {funnel['recall']:.4f}, "
            f"Hit@10 {funnel['hit@10']:.4f}, NDCG@10 {funnel['ndcg@10']:.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
