"""What a call costs a server before any work is done, and where one request's time goes.

    python -m benchmarks.serving.calls

Empty calls (300 bytes in, none out) with 32 clients: server CPU of grpc.aio, of our accept
loops, and of a call that is refused before its message is received; in turns, medians. Then
one client that asks our services for all blocks in float32, with candidates held: its own
time beside those that the replies tell. Servers on all cores but the last, clients on that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from benchmarks.serving import messages, procs
from benchmarks.serving.echo import KINDS
from benchmarks.serving.servers import Servers, free_ports
from benchmarks.serving.settings import Settings
from benchmarks.serving.stand import standing
from benchmarks.serving.systems import Ask
from forward_ofa_api.controller.v1 import controller_pb2

_REQUEST = bytes(300)
_LOCAL = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
_WARM = 50
STAGES = ("queue_us", "map_us", "assemble_us", "retrieve_us", "total_us")


async def ask_for(address: str, seconds: float, clients: int) -> int:
    """Calls that `clients` connections made in that time, answered or refused."""
    ends, calls = time.perf_counter() + seconds, 0

    async def client() -> None:
        nonlocal calls
        async with grpc.aio.insecure_channel(address, options=_LOCAL) as channel:
            method: Any = channel.unary_unary(messages.PLAIN)
            while time.perf_counter() < ends:
                try:
                    await method(_REQUEST)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                calls += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return calls


def empty_calls(settings: Settings, seconds: float, rounds: int, clients: int = 32) -> Table:
    """CPU milliseconds and calls a second of each kind of server."""
    table = Table("accepted by", "server CPU-ms a call", "calls/s", title="Empty calls")
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with (
        tempfile.TemporaryDirectory(prefix="forward-ofa-bench-") as folder,
        Servers(Path(folder), settings.cores()[0]) as servers,
    ):
        running = {}
        for kind, port in zip(KINDS, free_ports(len(KINDS)), strict=True):
            command = [sys.executable, "-m", "benchmarks.serving.echo", str(port), "0", kind]
            process = servers.start(kind, command)
            servers.wait_port(process, kind, port)
            running[kind] = (process.pid, f"127.0.0.1:{port}")
        for _ in range(rounds):
            for kind, (pid, address) in running.items():
                servers.only([pid])
                asyncio.run(ask_for(address, 0.3, clients))
                processes = procs.tree([pid])
                before = procs.cpu_seconds(processes)
                calls = asyncio.run(ask_for(address, seconds, clients))
                used = procs.cpu_seconds(processes) - before
                found[kind].append((1e3 * used / calls, calls / seconds))
    for kind, rows in found.items():
        cpu, rate = (statistics.median(column) for column in zip(*rows, strict=True))
        table.add_row(kind, f"{cpu:.2f}", f"{rate:.0f}")
    return table


async def one_client(address: str, requests: Sequence[bytes], count: int) -> list[list[float]]:
    """[count, 1 + stages] microseconds: the client's own, then what the reply tells."""
    rows = []
    async with grpc.aio.insecure_channel(address, options=_LOCAL) as channel:
        method: Any = channel.unary_unary(messages.OURS)
        for number in range(_WARM + count):
            started = time.perf_counter()
            reply = await method(requests[number % len(requests)])
            took = 1e6 * (time.perf_counter() - started)
            if number >= _WARM:
                times = controller_pb2.RequestNetworkResponse.FromString(reply).cost.times
                rows.append([took, *(float(getattr(times, stage)) for stage in STAGES)])
    return rows


def one_request(settings: Settings, count: int) -> Table:
    """Medians of a request's stages."""
    table = Table("stage", "median ms", title="One client, float32, all blocks")
    with standing(settings, Ask("float32", held=True)) as stand:
        requests = [bytes.fromhex(request) for request in stand.job.requests]
        rows = asyncio.run(one_client(stand.system.target, requests, count))
    for name, column in zip(("client", *STAGES), zip(*rows, strict=True), strict=True):
        table.add_row(name.removesuffix("_us"), f"{statistics.median(column) / 1e3:.2f}")
    return table


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="all servers are measured so often")
    parser.add_argument("--requests", type=int, default=600, help="of the one client")
    a = parser.parse_args()
    procs.end_on_term()
    settings = Settings()
    if cores := settings.cores()[1]:
        os.sched_setaffinity(0, cores)
    console = Console()
    console.print(empty_calls(settings, a.seconds, a.rounds))
    console.print(one_request(settings, a.requests))


if __name__ == "__main__":
    main()
