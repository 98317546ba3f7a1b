"""What is not a request for a network: connections, downloads, sessions, memory, training."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import redis

from benchmarks.capacity.chain import Chain, cpu_seconds
from benchmarks.capacity.points import CANDIDATES, fit
from benchmarks.serving.version import BACKBONE, ITEMS, BenchVersion
from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.controller.v1 import controller_pb2_grpc as stubs
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_cli.capacity.costs import (
    Downloads,
    Memory,
    Ranking,
    Redis,
    Retrieval,
    Tls,
    Trainer,
)
from forward_ofa_device.artefact import Network
from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.engine import NetworkEngine
from services.controller.retrieval import ItemIndex
from services.ports import SessionCandidates
from services.registry.contract import BUNDLE_TENSORS
from services.registry.files import FileRegistry
from services.sessions.codec import encode
from tests.support.redis_server import RedisServer
from tests.support.versions import publish

MORE_ITEMS = 50_000
_LARGER = "20260102-000000-0be9c4a1"
_KEY = "forward-ofa:session:"


@contextmanager
def connection(address: str, authority: Path | None = None) -> Iterator[Any]:
    """A stub over a connection of its own. authority: a PEM file; None: without TLS."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    if authority is None:
        channel = grpc.insecure_channel(address, options)
    else:
        trust = grpc.ssl_channel_credentials(authority.read_bytes())
        channel = grpc.secure_channel(address, trust, options)
    with channel:
        yield stubs.ControllerServiceStub(channel)


def network_request(version: BenchVersion, session: str) -> api.RequestNetworkRequest:
    """A float16 network of all blocks."""
    return api.RequestNetworkRequest(
        version=version.version,
        session_id=session,
        path=types.Path(bits=b"\x3f"),
        interest=types.Interest(values=bytes(4 * version.config.hidden)),
        accepted_encodings=[types.ENCODING_FLOAT16],
    )


def front_cpu(chain: Chain, work: Callable[[], object], calls: int) -> float:
    """CPU milliseconds of the front's process for one call of `work`: the median."""
    return _cpu_of([(chain, work)], calls)[0]


def _cpu_of(tasks: Sequence[tuple[Chain, Callable[[], object]]], calls: int) -> list[float]:
    """The same for several, a call of each in turn, so that the machine's moods meet all."""
    times: list[list[float]] = [[] for _ in tasks]
    for number in range(calls + 5):
        for (chain, work), seen in zip(tasks, times, strict=True):
            pids = chain.pids.get("controller") or chain.pids["whole"]
            before = cpu_seconds(pids)
            work()
            if number >= 5:
                seen.append((cpu_seconds(pids) - before) * 1e3)
    return [float(np.median(seen)) for seen in times]


def measure_tls(plain: Chain, secured: Chain, authority: Path, calls: int) -> Tls:
    """plain, secured: the same front without and with TLS."""
    request = network_request(plain.version, secrets.token_urlsafe(15))
    large = api.GetDeviceBundleRequest(part=api.BUNDLE_PART_EXTRACTOR_ONNX)
    with connection(plain.front[0]) as open_stub, connection(secured.front[0], authority) as stub:

        def fresh() -> object:
            with connection(secured.front[0], authority) as other:
                return other.RequestNetwork(request, timeout=20)

        def kept() -> object:
            return stub.RequestNetwork(request, timeout=20)

        def fetched(which: Any) -> Callable[[], int]:
            return lambda: _bundle_bytes(which, large)

        size = fetched(stub)() / 1e6
        once, again = _cpu_of([(secured, fresh), (secured, kept)], calls)
        clear, encrypted = _cpu_of([(plain, fetched(open_stub)), (secured, fetched(stub))], calls)
    return Tls(connection=max(0.0, once - again), megabyte=max(0.0, encrypted - clear) / size)


def _bundle_bytes(stub: Any, request: api.GetDeviceBundleRequest) -> int:
    return sum(len(chunk.data) for chunk in stub.GetDeviceBundle(request, timeout=20))


def measure_downloads(chain: Chain, calls: int) -> Downloads:
    """Files of the bundle, a small one (an item shard) and a large one (ONNX)."""
    rows, times = [], []
    with connection(chain.front[0]) as stub:
        for part in (api.BUNDLE_PART_ITEMS, api.BUNDLE_PART_EXTRACTOR_ONNX):
            request = api.GetDeviceBundleRequest(part=part)
            fetch = partial(_bundle_bytes, stub, request)
            rows.append([1.0, fetch() / 1e6])
            times.append(front_cpu(chain, fetch, calls))
    return Downloads(*fit(np.array(rows), np.array(times)))


def measure_call(chain: Chain, calls: int) -> float:
    """CPU milliseconds of the front for a call whose answer is small: candidates that are held."""
    session = secrets.token_urlsafe(15)
    request = api.GetCandidatesRequest(
        version=chain.version.version,
        session_id=session,
        interest=types.Interest(values=bytes(4 * chain.version.config.hidden)),
    )
    with connection(chain.front[0]) as stub:
        request.held_candidates_etag = stub.GetCandidates(request, timeout=20).candidates.etag
        return front_cpu(chain, lambda: stub.GetCandidates(request, timeout=20), calls)


def measure_redis(server: RedisServer, sessions: int) -> tuple[Redis, dict[str, float]]:
    """Memory of sessions with their time to live; also bytes a session by number of candidates."""
    overhead, seen = [], {}
    with redis.Redis.from_url(server.url) as client:
        for count in (50, CANDIDATES, 800):
            client.flushall()
            before = int(client.info("memory")["used_memory"])
            pipeline = client.pipeline(transaction=False)
            rng, size = np.random.default_rng(count), 0
            for number in range(sessions):
                session = secrets.token_urlsafe(15)
                rows = rng.integers(0, 60_000, count).astype("<u4").tobytes()
                value = encode(session, SessionCandidates("20260101-000000-0be9c4a0", rows))
                size += len(value) + len(_KEY) + len(session)
                pipeline.set(_KEY + session, value, px=3_600_000)
                if number % 500 == 499:
                    pipeline.execute()
            pipeline.execute()
            used = int(client.info("memory")["used_memory"]) - before
            overhead.append((used - size) / sessions)
            seen[str(count)] = used / sessions
        client.flushall()
    return Redis(session_overhead=float(np.mean(overhead))), seen


def publish_larger(version: BenchVersion) -> None:
    """A second version with more items, as canary."""
    registry = FileRegistry(version.registry)
    publish(registry, _LARGER, label="canary", config=BACKBONE, items=MORE_ITEMS)


def measure_memory(
    chain: Chain, larger: Callable[[], object], wait: float = 60
) -> dict[str, Memory]:
    """larger: publishes a second version. Resident bytes of each kind, before and after."""
    kinds = [kind for kind in chain.pids if kind != "redis"]
    before = {kind: _resident(chain.pids[kind][0]) for kind in kinds}
    larger()
    for kind in kinds:
        end = time.monotonic() + wait
        while chain.counter(kind, "forward_ofa_versions_loaded") < 2 * _targets(kind):
            if time.monotonic() > end:
                raise RuntimeError(f"{kind} did not load the second version in {wait:.0f} s")
            time.sleep(0.2)
    time.sleep(1.0)
    config, layout = chain.version.config, chain.version.layout
    weights = config.blocks * (config.hidden + 1) * layout.size
    found = {}
    for kind in kinds:
        grown = max(0, _resident(chain.pids[kind][0]) - before[kind])
        # The hypernetworks' file is mapped: 4 bytes a value once they were used.
        weight = 4.0 if kind in ("mapper", "generator", "whole") else 0.0
        item = max(0.0, (grown - weight * weights) / MORE_ITEMS)
        item = item if kind in ("controller", "whole") else 0.0
        process = max(0.0, before[kind] - weight * weights - item * ITEMS)
        found[kind] = Memory(process=process, item=item, weight=weight)
    return found


def _targets(kind: str) -> int:
    return {"whole": 3, "generator": 2}.get(kind, 1)


def _resident(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def measure_retrieval() -> Retrieval:
    """Exact search; the approximate one is carried over from docs/adr/0011 (a million items)."""
    rng = np.random.default_rng(0)
    table = rng.normal(0, 1, (100_000, 64)).astype(np.float32)
    index = ItemIndex(np.eye(64, dtype="f4"), np.zeros(64, "f4"), table)
    interest = rng.normal(0, 1, 64).astype("f4")
    times = [_thread_ms(lambda: index.search(interest, CANDIDATES)) for _ in range(40)]
    return Retrieval(ITEMS, float(np.median(times)) / (table.size / 1e6), 2.3)


def measure_ranking(version: BenchVersion, call: float) -> Ranking:
    """The dense network's forward pass and 200 products, in numpy, one request at a time."""
    published = FileRegistry(version.registry).open(version.version)
    bundle = read_bundle(published.path(BUNDLE_TENSORS).read_bytes())
    engine, rng, config = NetworkEngine(bundle), np.random.default_rng(0), version.config

    def blocks() -> dict[str, np.ndarray]:
        flat = rng.normal(0, 0.1, version.layout.size).astype(np.float32)
        return version.layout.split(flat)

    path = (True,) * config.blocks
    made = {block: blocks() for block in range(config.blocks)}
    network = Network(version.version, config.name, path, "float32", made)
    history = rng.normal(0, 1, (config.history, config.hidden)).astype(np.float32)
    items = rng.normal(0, 1, (CANDIDATES, config.hidden)).astype(np.float32)
    offset = np.zeros(config.hidden, np.float32)
    times = [_thread_ms(lambda: engine.scores(network, history, items, offset)) for _ in range(200)]
    return Ranking(call, float(np.median(times)), CANDIDATES)


def measure_trainer(rounds: int) -> Trainer:
    """One optimiser step of Forward-OFA by the paper's recipe, CPU of all threads."""
    import torch

    from benchmarks.training.steps import Case, makers, measure
    from forward_ofa.data import FilterConfig, generate_log, prepare
    from forward_ofa.recipes import recipe

    torch.set_num_threads(1)
    data = prepare(generate_log(users=600, items=400, seed=1), FilterConfig(min_item=1))
    found, hidden = {}, 0
    for backbone in ("sasrec", "nextitnet"):
        config = recipe("paper", backbone, 1_000_000)
        config = replace(config, training=replace(config.training, batch_size=256))
        case = Case("Forward-OFA", makers(4)["Forward-OFA"](data, config))
        measure([case], rounds=rounds, warmup=1, device="cpu")
        found[backbone] = float(np.median(case.cpu)) / 256 * 1e3
        hidden = config.method.backbone.hidden
    return Trainer(hidden=hidden, **found)


def _thread_ms(work: Callable[[], object]) -> float:
    before = time.thread_time()
    work()
    return (time.thread_time() - before) * 1e3


def certificate(folder: Path) -> tuple[Path, tuple[Path, Path]]:
    """(authority's PEM file, the server's certificate and key)."""
    from tests.support.certificates import Authority

    authority = Authority(folder)
    return authority.ca, authority.sign("localhost")
