"""Spans across three processes, received by a real OTLP collector; exemplars; nothing personal."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from services.registry.files import FileRegistry
from tests.support.serving import Process, network_request
from tests.support.versions import publish

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps (service, span) of all that it is sent."""

    def __init__(self):
        self._lock, self.spans = threading.Lock(), []

    def Export(self, request, context):
        with self._lock:
            for resource in request.resource_spans:
                attributes = {pair.key: pair.value for pair in resource.resource.attributes}
                name = attributes["service.name"].string_value
                for scope in resource.scope_spans:
                    self.spans += [(name, span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace):
        with self._lock:
            return [pair for pair in self.spans if pair[1].trace_id.hex() == trace]


@pytest.fixture
def collector():
    server = grpc.server(futures.ThreadPoolExecutor(4))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(0)


def attributes(span):
    return {
        pair.key.removeprefix("forward_ofa."): pair.value.string_value or pair.value.int_value
        for pair in span.attributes
    }


@pytest.mark.slow
def test_a_trace_across_three_services(collector, tmp_path):
    registry = FileRegistry(tmp_path / "registry")
    tiny = publish(registry, "v1")
    options = ("--otlp-endpoint", collector.url)
    processes = []

    def launch(target, *arguments):
        processes.append(
            Process(registry.root, tmp_path / target, "--target", target, *options, *arguments)
        )
        return processes[-1].wait_ready()

    try:
        mapper = launch("mapper")
        assembler = launch("assembler", "--mapper", mapper["address"])
        edge = launch("controller", "--assembler", assembler["address"])
        request = network_request(tiny)
        with grpc.insecure_channel(edge["address"]) as channel:
            stub = ControllerServiceStub(channel)
            sent = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
            stub.RequestNetwork(request, metadata=sent, timeout=10)
            unsampled = (("traceparent", f"00-{'1' * 32}-{PARENT}-00"),)
            stub.RequestNetwork(request, metadata=unsampled, timeout=10)
            with pytest.raises(grpc.RpcError):
                refused = (("traceparent", f"00-{'2' * 32}-{PARENT}-01"),)
                stub.RequestNetwork(network_request(tiny, session_id="x"), metadata=refused)
            stub.RequestNetwork(request, metadata=(("traceparent", "rubbish"),), timeout=10)
            headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
            wanted = urllib.request.Request(f"http://{edge['metrics']}/metrics", headers=headers)
            exposed = urllib.request.urlopen(wanted, timeout=5).read().decode()
        for process in processes:
            assert process.stop() == 0
        check_spans(collector, len(request.interest.values))
        check_exemplars(exposed)
        lines = [json.loads(line) for line in processes[-1].log().splitlines()]
        failed = [line for line in lines if line["message"] == "call failed"]
        assert [line["trace_id"] for line in failed] == ["2" * 32]
    finally:
        for process in processes:
            process.stop(9)


def check_spans(collector, interest_bytes):
    end = time.monotonic() + 10
    while len(collector.of(TRACE)) < 6:
        assert time.monotonic() < end, [span.name for _, span in collector.of(TRACE)]
        time.sleep(0.1)
    found = {(service, span.name): span for service, span in collector.of(TRACE)}
    api = "forward_ofa_api"
    chain = [
        ("forward-ofa-controller", f"{api}.controller.v1.ControllerService/RequestNetwork"),
        ("forward-ofa-controller", "assemble"),
        ("forward-ofa-assembler", f"{api}.assembler.v1.AssemblerService/AssembleNetwork"),
        ("forward-ofa-assembler", "map"),
        ("forward-ofa-mapper", f"{api}.mapper.v1.MapperService/GenerateBlocks"),
    ]
    retrieve = ("forward-ofa-controller", "retrieve")
    assert set(found) == {*chain, retrieve}
    parent = PARENT
    for key in chain:
        assert found[key].parent_span_id.hex() == parent, key
        parent = found[key].span_id.hex()
    assert found[retrieve].parent_span_id == found[chain[0]].span_id
    mapped = attributes(found[chain[3]])
    assert (mapped["version"], mapped["kept_blocks"], mapped["encoding"]) == ("v1", 2, "float16")
    assert mapped["bytes"] > 0
    assert attributes(found[chain[1]])["bytes"] > mapped["bytes"]
    assert not collector.of("1" * 32), "the caller decided against it"
    failed = {span.name.rpartition("/")[2]: span for _, span in collector.of("2" * 32)}
    assert attributes(failed["RequestNetwork"])["reason"] == "MALFORMED_SESSION"
    assert failed["RequestNetwork"].status.code == 2
    allowed = {"version", "kept_blocks", "encoding", "bytes", "queue_us", "map_us", "reason"}
    for _, span in collector.spans:
        assert set(attributes(span)) <= allowed | {"items"}
        assert all(len(str(value)) < interest_bytes for value in attributes(span).values())


def check_exemplars(exposed):
    traces = {
        sample.exemplar.labels["trace_id"]
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
        if sample.exemplar
    }
    assert TRACE in traces
    assert "1" * 32 not in traces


def test_without_the_packages_the_message_says_what_to_install(tmp_path, monkeypatch):
    from services.runtime.checks import SettingsError
    from services.runtime.tracing import Tracing, TracingSettings

    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"requirements/tracing\.txt"):
        Tracing(TracingSettings("http://127.0.0.1:1"), "test")
