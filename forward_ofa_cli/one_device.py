"""`forward-ofa device one`: a single device that tells what it does. Imports no torch."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.text import Text

from forward_ofa_cli.console import console, printable, say, size
from forward_ofa_cli.errors import Exit, unreachable
from forward_ofa_device import Budget, CloudError, Connection, Device, DeviceError
from forward_ofa_device.cloud import UNREACHABLE, token_file

_EXAMPLE = """example:
  forward-ofa device one --controller 127.0.0.1:50051 --history 50,181,258 --max-flops 400000

exit codes: 0 it got a network and reranked; 1 it did not; 2 wrong input; 5 the controller
cannot be reached."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        told = live(options)
    except (DeviceError, ValueError) as error:
        code, text = _explained(error, options.controller)
        print(f"error: {text}", file=sys.stderr)
        return code
    except KeyboardInterrupt:  # the command that started this one says so
        return Exit.INTERRUPTED
    if options.json:
        print(json.dumps(told))
    else:
        _show(told)
    return 0


def live(options: argparse.Namespace) -> dict[str, Any]:
    """Observe the history, ask for a network, rerank; what there is to tell about it.

    Raises DeviceError, ValueError.
    """
    history = [item.strip() for item in options.history.split(",") if item.strip()]
    with ExitStack() as stack:
        state = options.state or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        connection = Connection(
            options.controller,
            root_certificates=options.root_certificates,
            allow_insecure=options.allow_insecure,
            token=token_file(options.token_file) if options.token_file else None,
            certificate=options.certificate,
            key=options.key,
        )
        budget = Budget(options.max_bytes, options.max_flops)
        device = stack.enter_context(Device(state, connection, budget=budget))
        device.observe(*history)
        outcome = device.refresh()
        cost = device.last_cost
        return {
            "version": device.version,
            "session_id": device.session_id,
            "reason": outcome.reason,
            "updated": outcome.updated,
            "error": str(outcome.error) if outcome.error else None,
            "unknown_items": [item for item in history if not device.knows(item)],
            "path": list(device.path or ()),
            "flops": device.flops,
            "latency_ms": outcome.latency_ms,
            "artefact_bytes": cost.artefact_bytes if cost else None,
            "candidate_bytes": cost.candidate_bytes if cost else None,
            "generation_flops": cost.generation_flops if cost else None,
            "ranking": [ranked._asdict() for ranked in device.rerank(top=options.top)],
        }


def _explained(error: DeviceError | ValueError, controller: str) -> tuple[Exit, str]:
    if isinstance(error, ValueError):
        return Exit.USAGE, str(error)
    cause = error.__cause__
    if isinstance(cause, CloudError) and cause.reason == UNREACHABLE:
        return Exit.UNREACHABLE, f"{unreachable(controller)} ({cause})"
    return Exit.FAILED, str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="forward-ofa device one",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--controller", required=True, help='"host:port"; TLS off loopback')
    add("--history", required=True, help="item ids, oldest first, with commas between them")
    add("--state", type=Path, help="folder that keeps the device's disk (a temporary one)")
    add("--top", type=int, default=10, help="items to show (10)")
    add("--max-bytes", type=int, help="budget: bytes of a network")
    add("--max-flops", type=int, help="budget: FLOPs of a network, everything counted")
    add("--root-certificates", type=Path, help="PEM file of the authorities to trust")
    add("--token-file", type=Path, help="file with the device's token; read again for each call")
    add("--certificate", type=Path, help="PEM file: shown to a cloud that asks for one")
    add("--key", type=Path, help="PEM file: the private key of --certificate")
    add("--allow-insecure", action="store_true", help="plain text off loopback too")
    add("--json", action="store_true", help="as JSON")
    return parser


def _show(told: dict[str, Any]) -> None:
    out = console()
    if told["error"]:
        why = printable(told["error"])
        out.print(Text.assemble(("The last good network is in use:", "yellow"), f" {why}"))
    if told["unknown_items"]:
        say(out, f"Not in the catalogue, skipped: {', '.join(told['unknown_items'])}")
    blocks = "".join("■" if kept else "□" for kept in told["path"])
    say(out, f"Network of version {told['version']}, asked because: {told['reason']}")
    out.print(f"  blocks   {blocks}  {sum(told['path'])} of {len(told['path'])}")
    out.print(f"  one inference   {told['flops'] / 1e6:.4f} MFLOPs")
    if told["updated"]:
        out.print(f"  generated by    {told['generation_flops'] / 1e6:.2f} MFLOPs on the cloud")
        out.print(f"  received        {size(told['artefact_bytes'])} of network, "
                  f"{size(told['candidate_bytes'])} of candidates, in "
                  f"{told['latency_ms']:.1f} ms")  # fmt: skip
    out.print("What it would show now:")
    for place, ranked in enumerate(told["ranking"], 1):
        say(out, f"  {place:>2}  {ranked['item_id']:<20} {ranked['score']:.3f}")


if __name__ == "__main__":
    raise SystemExit(main())
