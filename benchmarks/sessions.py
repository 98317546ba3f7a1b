"""Sessions: bytes that a second request saves, and what a session costs to keep.

    python -m benchmarks.sessions --registry registry --data ml-1m   # bytes, on real histories
    python -m benchmarks.sessions --keep                             # rows or embeddings in Redis

The first needs a published version and the log that it was trained on. Real devices with real
histories ask real services: a session starts before a user's last 20 items, and asks again after
every few of them. Whole: what the answer would have been without the list that is held.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from forward_ofa_device import Device
from forward_ofa_device.artefact import Encoding
from forward_ofa_device.rows import decode_rows, encode_rows
from services.ports import SessionCandidates
from services.registry.files import FileRegistry
from services.sessions.codec import decode, encode

SESSION_ITEMS = 20


async def bytes_saved(registry: Path, data: str, users: int) -> None:
    """One line for each number of touches between two requests."""
    from forward_ofa_cli.console import console
    from forward_ofa_cli.source import Source
    from tests.support.serving import running

    log = Source(data=data).load(console(stderr=True))
    chosen = np.random.default_rng(0).choice(log.num_users, users, replace=False)
    ids = np.array(["", *log.item_ids])
    histories = [ids[log.history(int(user))].tolist() for user in chosen]
    async with running(registry) as services:
        for every in (1, 2, 5, 10, 20):
            with tempfile.TemporaryDirectory() as folder:
                sizes = await asyncio.to_thread(
                    _live, services.address, Path(folder), histories, every
                )
            sent, whole, new = np.array(sizes, float).T
            print(
                f"a request every {every} items: {len(sent)} requests, {whole.mean():.0f} bytes"
                f" whole, {sent.mean():.0f} sent: {1 - sent.sum() / whole.sum():.1%} saved;"
                f" {new.mean():.0f} of 200 items new",
                flush=True,
            )


def _live(
    address: str, folder: Path, histories: list[list[str]], every: int
) -> list[tuple[int, int, int]]:
    """(bytes sent, bytes of the whole list, new items) of all requests but each first."""
    found = []
    for number, history in enumerate(histories):
        before, during = history[:-SESSION_ITEMS], history[-SESSION_ITEMS:]
        with Device(folder / str(number), address, sync=False) as device:
            device.observe(*before)
            device.refresh(force=True)
            held = set(_list(device))
            for at in range(0, len(during), every):
                device.observe(*during[at : at + every])
                outcome = device.refresh(force=True)
                assert outcome.updated and device.last_cost is not None, outcome
                listed = _list(device)
                width = device._held.candidates.embeddings.shape[1]  # type: ignore[union-attr]
                whole = sum(len(item.encode()) + 2 * width for item in listed)
                new = len(set(listed) - held)
                held = set(listed)
                found.append((device.last_cost.candidate_bytes, whole, new))
    return found


def _list(device: Device) -> tuple[str, ...]:
    assert device._held is not None
    return device._held.candidates.item_ids


def keep() -> None:
    """Bytes and microseconds a session, for 200 items of 3,000, D = 64."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(3000, 64)).astype(np.float32)
    item_ids = [str(number) for number in range(3000)]
    rows = rng.permutation(3000)[:200].astype("<u4")
    session = SessionCandidates("20260101-120000-0a1b2c3d", rows.tobytes())

    def microseconds(what: Callable[[], object]) -> float:
        times = []
        for _ in range(2000):
            start = time.perf_counter()
            what()
            times.append(time.perf_counter() - start)
        return float(np.median(times)) * 1e6

    value = encode("session-0123", session)
    print("| kept | bytes | write us | read us | then: ids and float16 for the answer, us |")
    print("|---|---|---|---|---|")

    def answer() -> object:
        found = np.frombuffer(session.rows, "<u4")
        return [item_ids[row] for row in found.tolist()], encode_rows(items[found], "float16")

    print(
        f"| rows | {len(value)} | {microseconds(lambda: encode('session-0123', session)):.0f} |"
        f" {microseconds(lambda: decode('session-0123', value)):.0f} | {microseconds(answer):.0f} |"
    )
    text = "\n".join(item_ids[row] for row in rows.tolist()).encode()
    for name in ("float16", "int8"):
        payload = text + encode_rows(items[rows], name)

        def write(name: Encoding = name) -> object:
            listed = "\n".join([item_ids[row] for row in rows.tolist()]).encode()
            return listed + encode_rows(items[rows], name)

        def read(name: str = name, payload: bytes = payload) -> object:
            listed = payload[: len(text)].decode().split("\n")
            if name == "float16":
                return listed, payload[len(text) :]
            return listed, encode_rows(
                decode_rows(payload[len(text) :], "int8", 200, 64), "float16"
            )

        print(
            f"| ids and embeddings, {name} | {len(payload)} | {microseconds(write):.0f} |"
            f" {microseconds(read):.0f} | 0 |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sessions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--registry", type=Path, help="with a version, labelled stable")
    parser.add_argument("--data", help="the log that it was trained on")
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="what a session costs to keep")
    arguments = parser.parse_args()
    if arguments.keep:
        keep()
        return
    if arguments.registry is None or arguments.data is None:
        parser.error("give --registry and --data, or --keep")
    if FileRegistry(arguments.registry).current() is None:
        parser.error(f"nothing is labelled stable in {arguments.registry}")
    asyncio.run(bytes_saved(arguments.registry, arguments.data, arguments.users))


if __name__ == "__main__":
    main()
