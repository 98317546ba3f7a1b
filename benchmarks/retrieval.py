"""Exact and approximate retrieval: what a search takes, what it finds, what the index costs.

    python -m benchmarks.retrieval                       # 100k, 300k, 1M items: a table
    python -m benchmarks.retrieval --small               # where a thread begins to pay
    python -m benchmarks.retrieval --end-to-end 1000000  # publish, serve, ask over gRPC

One thread, inner product, D = 64, float32, the best 200. Items are synthetic, of two kinds:

- clustered: Gaussians of equal size around N / 500 centres; queries of the same.
- skewed: made to be harder, as trained tables are: cluster sizes after Zipf, a decaying spectrum,
  lengths that differ (log-normal), queries the noisy mean of three items. Fitted to no data.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from services.controller import ivf
from services.controller.retrieval import Index, ItemIndex

D, WANTED, QUERIES = 64, 200, 300
_KINDS = ("clustered", "skewed")


def make_items(kind: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(items [count, D], queries [QUERIES, D]), float32."""
    rng = np.random.default_rng(seed)
    clusters = max(50, count // 500)
    centres = rng.normal(size=(clusters, D)).astype(np.float32)
    if kind == "clustered":

        def draw(n: int) -> np.ndarray:
            noise = rng.standard_normal((n, D), dtype=np.float32)
            return centres[rng.integers(0, clusters, n)] + 0.5 * noise

        return draw(count), draw(QUERIES)
    spectrum = (np.arange(1, D + 1) ** -0.5).astype(np.float32)
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0].astype(np.float32)
    share = 1 / np.arange(1, clusters + 1) ** 0.8
    items = (centres * spectrum)[rng.choice(clusters, count, p=share / share.sum())]
    items += 0.6 * rng.standard_normal((count, D), dtype=np.float32) * spectrum
    items *= rng.lognormal(0, 0.25, (count, 1)).astype(np.float32)
    items = items @ turn
    means = items[rng.integers(0, count, (QUERIES, 3))].mean(1)
    noise = rng.standard_normal((QUERIES, D), dtype=np.float32)
    return items, (means + 0.15 * items.std() * noise).astype(np.float32)


def milliseconds(
    search: Callable[[np.ndarray], object], queries: np.ndarray
) -> tuple[float, float]:
    """p50 and p99 of one search."""
    times = []
    for query in queries:
        start = time.perf_counter()
        search(query)
        times.append(time.perf_counter() - start)
    return tuple(float(np.percentile(times, q)) * 1e3 for q in (50, 99))  # type: ignore[return-value]


def compare(count: int, kind: str, recall: float) -> None:
    """Rows of the table for one catalogue. Tuned on half of the queries, measured on the rest."""
    items, queries = make_items(kind, count)
    exact = ItemIndex(np.eye(D, dtype=np.float32), np.zeros(D, np.float32), items)
    tuning, held_out = queries[: QUERIES // 2], queries[QUERIES // 2 :]
    p50, p99 = milliseconds(lambda q: exact.search(q, WANTED), held_out)
    size = items.nbytes / 2**20
    print(
        f"| {count:,} | {kind} | exact | {p50:.2f} | {p99:.2f} | 1 | {size:.0f} | 0 | |", flush=True
    )
    start = time.perf_counter()
    lists = ivf.build(items)
    built = time.perf_counter() - start
    plan, _ = ivf.tune(lists, items, tuning, WANTED, recall)
    tuned = time.perf_counter() - start - built
    with tempfile.TemporaryDirectory() as folder:
        ivf.write(lists, Path(folder) / "index")
        size = (Path(folder) / "index").stat().st_size / 2**20
    lists.nprobe = plan.probes
    approximate = ivf.ApproximateIndex(exact, lists, plan.oversample)
    p50, p99 = milliseconds(lambda q: approximate.search(q, WANTED), held_out)
    share = np.mean(
        [np.isin(approximate.search(q, WANTED), exact.search(q, WANTED)).mean() for q in held_out]
    )
    print(
        f"| {count:,} | {kind} | ivf-sq8 | {p50:.2f} | {p99:.2f} | {share:.4f} | +{size:.0f} | "
        f"{built:.1f} + {tuned:.1f} | {plan.probes} of {plan.lists} |",
        flush=True,
    )


async def threads(count: int) -> None:
    """A search on the event loop against one in a thread."""
    items, queries = make_items("clustered", count)
    index: Index = ItemIndex(np.eye(D, dtype=np.float32), np.zeros(D, np.float32), items)
    loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(2)

    async def inline(query: np.ndarray) -> object:
        return index.search(query, WANTED)

    async def in_thread(query: np.ndarray) -> object:
        return await loop.run_in_executor(pool, index.search, query, WANTED)

    shown = [f"{count:,}"]
    for search in (inline, in_thread):
        times, cpu = [], time.process_time()
        for query in queries:
            start = time.perf_counter()
            await search(query)
            times.append(time.perf_counter() - start)
        cpu = (time.process_time() - cpu) / len(queries)
        start = time.perf_counter()
        for at in range(0, len(queries), 15):
            await asyncio.gather(*(search(query) for query in queries[at : at + 15]))
        together = (time.perf_counter() - start) / len(queries)
        shown += [f"{value * 1e6:.0f}" for value in (np.median(times), cpu, together)]
    pool.shutdown()
    print("| " + " | ".join(shown) + f" | {'loop' if index.inline else 'thread'} |", flush=True)


async def end_to_end(count: int) -> None:
    """A version of so many items: published, loaded, asked for candidates over gRPC."""
    import grpc

    from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
    from forward_ofa_device.backbones.contract import BackboneConfig
    from services.controller.indexing import IndexSettings
    from services.registry.files import FileRegistry
    from tests.support.serving import network_request, running
    from tests.support.versions import publish

    config = BackboneConfig(blocks=6, hidden=D, history=5, heads=2)
    items, queries = make_items("skewed", count)
    tuning, asked = queries[:100], queries[100:]
    for choice in ("exact", "approximate"):
        with tempfile.TemporaryDirectory() as folder:
            registry = FileRegistry(Path(folder))
            start = time.perf_counter()
            tiny = publish(
                registry,
                "v1",
                items=count,
                config=config,
                index=IndexSettings(choice),
                table=items,
                queries=tuning,
            )
            published = time.perf_counter() - start
            start = time.perf_counter()
            async with (
                running(registry.root) as services,
                grpc.aio.insecure_channel(services.address) as channel,
            ):
                await services.wait_ready()
                loaded = time.perf_counter() - start
                stub, times, stage, found = ControllerServiceStub(channel), [], [], []
                for number, query in enumerate(asked):
                    request = network_request(tiny, session_id=f"session-{number:04d}")
                    request.interest.values = query.astype("<f4").tobytes()
                    start = time.perf_counter()
                    reply = await stub.RequestNetwork(request)
                    times.append(time.perf_counter() - start)
                    stage.append(reply.cost.times.retrieve_us / 1e3)
                    if number < 50:
                        best = set(tiny.best(query, WANTED))
                        found.append(len(best & set(reply.candidates.item_ids)) / WANTED)
        p50, p99 = np.percentile(times, (50, 99)) * 1e3
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(
            f"{count:,} items, {choice}: published in {published:.1f} s,"
            f" served after {loaded:.1f} s; RequestNetwork p50 {p50:.2f} ms, p99 {p99:.2f} ms"
            f" (retrieval p50 {np.median(stage):.2f} ms), recall@{WANTED} {np.mean(found):.4f};"
            f" {memory:.0f} MB at most, publishing included",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--recall", type=float, default=0.98, help="that the index is tuned to")
    parser.add_argument("--small", action="store_true", help="loop or thread, small catalogues")
    parser.add_argument("--end-to-end", type=int, help="items of a version to publish and serve")
    arguments = parser.parse_args()
    if arguments.end_to_end:
        asyncio.run(end_to_end(arguments.end_to_end))
    elif arguments.small:
        print("| items | loop: p50 us | CPU us | 15 at once us | thread: p50 us | CPU us | "
              "15 at once us | chosen |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
        for count in (1_000, 3_000, 10_000, 16_000, 30_000, 60_000):
            asyncio.run(threads(count))
    else:
        print("| items | kind | index | p50 ms | p99 ms | recall@200 | MB | build + tune s | "
              "probes |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        for count in arguments.items:
            for kind in _KINDS:
                compare(count, kind, arguments.recall)


if __name__ == "__main__":
    main()
