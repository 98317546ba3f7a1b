"""Health, drain, deadlines, budgets of bytes: what operators and balancers rely on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
import urllib.error
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from services.controller import bundles, domain
from services.errors import Reason
from services.registry.files import FileRegistry
from services.runtime.admission import AdmissionSettings
from services.runtime.settings import ServerSettings
from services.wiring import start
from tests.support.gate import Gate
from tests.support.serving import (
    Process,
    fault_of,
    network_request,
    running,
    settings,
    three_processes,
)
from tests.support.versions import publish


@pytest.fixture
def registry(tmp_path):
    return FileRegistry(tmp_path / "registry")


@pytest.fixture
def tiny(registry):
    return publish(registry, "v1")


def limited(**limits):
    admission = AdmissionSettings(**limits)
    return ServerSettings(listen="127.0.0.1:0", drain_seconds=2, admission=admission)


@contextlib.asynccontextmanager
async def client(address):
    async with grpc.aio.insecure_channel(address) as channel:
        yield ControllerServiceStub(channel), health_pb2_grpc.HealthStub(channel)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return fault_of(caught.value)


def probe(address, path):
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def scrape(address):
    """Samples by name and labels, as Prometheus itself would read them."""
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
    request = urllib.request.Request(f"http://{address}/metrics", headers=headers)
    text = urllib.request.urlopen(request, timeout=5).read().decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_liveness_is_not_readiness(registry):
    """Without a version: alive, not ready. While it drains: alive, not ready, still serving."""
    registry.root.mkdir()
    server = ServerSettings(listen="127.0.0.1:0", drain_delay=1.0)
    services = await start(settings(registry.root, server=server))
    at = services.metrics_address
    async with client(services.address) as (stub, health):

        async def status(name):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

        async def state():
            http = [await asyncio.to_thread(probe, at, path) for path in ("/livez", "/readyz")]
            return (await status("liveness"), await status(""), *http)

        assert await state() == ("SERVING", "NOT_SERVING", 200, 503)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status("no.such.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert await asyncio.to_thread(probe, at, "/else") == 404
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
        seen = [(await watch.read()).status]
        tiny = await asyncio.to_thread(publish, registry, "v1")
        await asyncio.wait_for(services.wait_ready(), 10)
        assert await state() == ("SERVING", "SERVING", 200, 200)
        seen.append((await watch.read()).status)
        stopping = asyncio.create_task(services.stop())
        seen.append((await watch.read()).status)
        assert await state() == ("SERVING", "NOT_SERVING", 200, 503)
        assert (await stub.RequestNetwork(network_request(tiny))).artefact.data
        assert not stopping.done()
        assert seen == [2, 1, 2]
        assert await watch.read() is grpc.aio.EOF, "a watch must not hold the drain up"
        await asyncio.wait_for(stopping, 5)


ROUND_ROBIN = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.02s",
                    "maxBackoff": "0.1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)


class Load:
    """Threads that ask all the time and check each reply; `errors` has what went wrong."""

    def __init__(self, addresses, tiny, threads=4):
        self.errors, self.replies = [], 0
        self._stop = threading.Event()
        target = "ipv4:" + ",".join(addresses)
        # Soon back at a replica that was replaced, as between our own services.
        options = [
            ("grpc.service_config", ROUND_ROBIN),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        ]
        self._channel = grpc.insecure_channel(target, options=options)
        self._stub = ControllerServiceStub(self._channel)
        self._request, self._version = network_request(tiny), tiny.version
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self):
        while not self._stop.is_set():
            try:
                reply = self._stub.RequestNetwork(self._request, timeout=10)
                assert reply.version == self._version and reply.artefact.data
                self.replies += 1
            except Exception as error:
                self.errors.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def go_on(self, replies=150):
        """Until so many more have been answered."""
        wanted, end = self.replies + replies, time.monotonic() + 60
        while self.replies < wanted and not self.errors:
            assert time.monotonic() < end
            time.sleep(0.02)


DRAIN = ("--drain-delay", "0.5", "--drain-seconds", "10")


@pytest.mark.slow
def test_replicas_of_one_process_drain_without_a_failed_request(registry, tiny, tmp_path):
    """Two replicas under load; each in turn gets SIGTERM and is replaced."""
    replicas = [Process(registry.root, tmp_path / str(n), *DRAIN) for n in range(2)]
    try:
        addresses = [replica.wait_ready()["address"] for replica in replicas]
        with Load(addresses, tiny) as load:
            load.go_on()
            for n in range(2):
                assert replicas[n].stop() == 0
                load.go_on()
                arguments = (*DRAIN, "--listen", addresses[n])
                replicas[n] = Process(registry.root, tmp_path / f"{n}-new", *arguments)
                replicas[n].wait_ready()
                load.go_on()
                time.sleep(2)
        assert not load.errors, load.errors[:3]
    finally:
        for replica in replicas:
            replica.stop(signal.SIGKILL)


@pytest.mark.slow
def test_split_services_drain_without_a_failed_request(registry, tiny, tmp_path):
    """Two replicas of each under load; one of each, from the edge to the back, gets SIGTERM."""
    replicas = {}

    def launch(name, target, *arguments):
        replicas[name] = Process(
            registry.root, tmp_path / name, "--target", target, *DRAIN, *arguments
        )

    def address(name):
        return replicas[name].wait_ready()["address"]

    try:
        for n in "12":
            launch(f"mapper-{n}", "mapper")
        mappers = ",".join(address(f"mapper-{n}") for n in "12")
        for n in "12":
            launch(f"assembler-{n}", "assembler", "--mapper", mappers)
        assemblers = ",".join(address(f"assembler-{n}") for n in "12")
        for n in "12":
            launch(f"controller-{n}", "controller", "--assembler", assemblers)
        with Load([address(f"controller-{n}") for n in "12"], tiny) as load:
            load.go_on()
            for name in ("mapper-1", "assembler-2", "controller-1"):
                assert replicas[name].stop() == 0, name
                load.go_on()
        assert not load.errors, load.errors[:3]
    finally:
        for replica in replicas.values():
            replica.stop(signal.SIGKILL)


@pytest.mark.slow
def test_a_caller_that_goes_away_stops_the_work_at_each_hop(registry, tiny, tmp_path):
    """The mapper is halted, the callers give up, it goes on: nothing is generated for them."""
    with three_processes(registry.root, tmp_path) as processes:
        ready = {
            name: json.loads(process.ready_file.read_text()) for name, process in processes.items()
        }
        at = ready["mapper"]["metrics"]
        mapper = processes["mapper"].process
        ok = ("forward_ofa_requests_total", "GenerateBlocks", "OK")
        gone = ("forward_ofa_requests_total", "CANCELLED", "GenerateBlocks")
        with grpc.insecure_channel(ready["controller"]["address"]) as channel:
            stub = ControllerServiceStub(channel)
            assert stub.RequestNetwork(network_request(tiny), timeout=10).artefact.data
            before = scrape(at)
            mapper.send_signal(signal.SIGSTOP)
            calls = [stub.RequestNetwork.future(network_request(tiny)) for _ in range(5)]
            time.sleep(0.3)
            for call in calls:
                call.cancel()
            late = [stub.RequestNetwork.future(network_request(tiny), timeout=0.2) for _ in "abc"]
            for call in late:
                with pytest.raises(grpc.RpcError) as caught:
                    call.result()
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            time.sleep(0.3)
            mapper.send_signal(signal.SIGCONT)
            assert stub.RequestNetwork(network_request(tiny), timeout=10).artefact.data
            after = scrape(at)
        assert after[ok] - before[ok] == 1, "only the last one was worked for"
        edge = scrape(ready["controller"]["metrics"])
        # Who hung up is told from who waited until its deadline: that one is our fault.
        assert edge["forward_ofa_requests_total", "CANCELLED", "RequestNetwork"] == 5
        assert edge["forward_ofa_requests_total", "DEADLINE_EXCEEDED", "RequestNetwork"] == 3
        assert edge["forward_ofa_rejections_total", "DEADLINE", "RequestNetwork"] == 3
        assert edge["forward_ofa_requests_in_flight",] == 0
        assert after["forward_ofa_requests_in_flight",] == 0
        assert after.get(gone, 0) <= 8


async def test_a_call_without_a_deadline_gets_ours(registry, tiny, monkeypatch):
    async with (
        running(registry.root, server=limited(max_seconds=0.3)) as services,
        client(services.address) as (stub, _),
    ):
        gate = Gate(monkeypatch)
        started = time.monotonic()
        fault = await refusal(stub.RequestNetwork(network_request(tiny)))
        assert fault.reason is Reason.DEADLINE
        assert 0.2 < time.monotonic() - started < 3
        gate.open.set()


ONNX = api.GetDeviceBundleRequest(part=api.BUNDLE_PART_EXTRACTOR_ONNX)


async def test_downloads_keep_to_their_budget(registry, tiny, monkeypatch):
    monkeypatch.setattr(bundles, "CHUNK_BYTES", 2048)
    size = registry.open("v1").manifest.files["bundle/extractor.onnx"].bytes
    for limits, streams in (
        ({"stream_rate": size}, 1),
        ({"download_rate": 2 * size}, 3),
    ):
        async with (
            running(registry.root, server=limited(**limits)) as services,
            client(services.address) as (stub, _),
        ):

            async def download(stub=stub):
                return sum([len(chunk.data) async for chunk in stub.GetDeviceBundle(ONNX)])

            started = time.monotonic()
            assert await asyncio.gather(*(download() for _ in range(streams))) == [size] * streams
            assert streams * size / next(iter(limits.values())) * 0.8 < time.monotonic() - started


async def test_a_phone_that_stops_reading_loses_its_place(registry, tiny, monkeypatch):
    """Its windows are full and it does not read on; others get the place after a while."""
    megabyte = bytes(1 << 20)

    async def endless(published, name, offset):
        while True:
            yield bundles.BundleChunk(offset, megabyte)

    monkeypatch.setattr(domain, "stream_file", endless)
    async with (
        running(
            registry.root, server=limited(max_downloads=1, max_download_seconds=0.7)
        ) as services,
        client(services.address) as (stub, _),
    ):
        stalled = stub.GetDeviceBundle(ONNX)
        assert (await stalled.read()).data
        fault = await refusal(stub.GetDeviceBundle(ONNX).read())
        assert fault.reason is Reason.OVERLOADED
        await asyncio.sleep(1.0)
        assert (await stub.GetDeviceBundle(ONNX).read()).data


async def test_refusals_tell_when_to_come_back(registry, tiny, monkeypatch):
    """Each that is refused is told a later moment than the one before."""
    server = ServerSettings(listen="127.0.0.1:0", max_concurrent_requests=2)
    async with (
        running(registry.root, server=server) as services,
        client(services.address) as (stub, _),
    ):
        assert (await stub.RequestNetwork(network_request(tiny))).artefact.data
        gate = Gate(monkeypatch)
        calls = [stub.RequestNetwork(network_request(tiny)) for _ in range(2)]
        await asyncio.sleep(0.3)
        started = time.monotonic()
        faults = [await refusal(stub.RequestNetwork(network_request(tiny))) for _ in range(300)]
        assert time.monotonic() - started < 10
        assert {fault.reason for fault in faults} == {Reason.OVERLOADED}
        assert faults[-1].retry[0] > faults[0].retry[0]
        assert all(100 <= low < high <= 60_000 for low, high in (f.retry for f in faults))
        gate.open.set()
        assert all([(await call).artefact.data for call in calls])
