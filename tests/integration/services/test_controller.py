"""What devices ask for, over real gRPC, with the services in one process and in three."""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from prometheus_client.parser import text_string_to_metric_families

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.artefact import read_artefact
from forward_ofa_device.bundle import read_bundle, read_shard
from forward_ofa_device.rows import decode_rows
from services.errors import Fault, Reason
from tests.support.serving import SESSION, fault_of, network_request

SERVICE = "forward_ofa_api.controller.v1.ControllerService"


def ask(deployment, timeout=10, **changes):
    return deployment.stub.RequestNetwork(
        network_request(deployment.tiny, **changes), timeout=timeout
    )


def test_a_network_and_its_candidates(deployment):
    tiny = deployment.tiny
    reply = ask(deployment, accepted_encodings=[types.ENCODING_FLOAT32])
    assert (reply.version, reply.current_version) == ("v1", "v1")
    assert reply.artefact.sha256 == hashlib.sha256(reply.artefact.data).digest()
    network = read_artefact(reply.artefact.data, tiny.layout)
    assert network.path == (True, False, True, False)
    for block in (0, 2):
        wanted = tiny.layout.split(tiny.parameters(block, tiny.interest()))
        for name, value in network.blocks[block].items():
            np.testing.assert_allclose(value, wanted[name], atol=1e-6)
    found = reply.candidates
    assert list(found.item_ids) == tiny.best(tiny.interest(), 200)
    rows = decode_rows(found.embeddings, "float32", len(found.item_ids), 8)
    wanted_rows = tiny.items[[tiny.item_ids.index(item) for item in found.item_ids]]
    np.testing.assert_array_equal(rows, wanted_rows)
    assert reply.ttl_seconds == 1800
    assert (reply.retry.min_ms, reply.retry.max_ms) == (1000, 3000)


def test_what_it_cost(deployment):
    reply = ask(deployment)
    cost, times = reply.cost, reply.cost.times
    assert cost.artefact_bytes == len(reply.artefact.data)
    ids = sum(len(item) for item in reply.candidates.item_ids)
    assert cost.candidate_bytes == len(reply.candidates.embeddings) + ids
    assert cost.generation_flops == 2 * 8 * deployment.tiny.layout.size
    assert cost.true_device_flops > 0
    assert cost.paper_device_flops > 0
    assert min(times.map_us, times.assemble_us, times.retrieve_us) > 0
    assert times.total_us >= max(times.map_us, times.retrieve_us)
    assert times.total_us >= times.queue_us + times.map_us + times.assemble_us


@pytest.mark.parametrize(
    ("accepted", "chosen", "row_bytes"),
    [
        ([], types.ENCODING_FLOAT16, 16),
        ([types.ENCODING_INT8], types.ENCODING_INT8, 10),
        ([types.ENCODING_INT8, types.ENCODING_FLOAT32], types.ENCODING_INT8, 10),
        ([types.ENCODING_FLOAT32, types.ENCODING_INT8], types.ENCODING_FLOAT32, 32),
        ([77, types.ENCODING_FLOAT16], types.ENCODING_FLOAT16, 16),
    ],
)
def test_the_first_encoding_that_is_known_wins(deployment, accepted, chosen, row_bytes):
    reply = ask(deployment, accepted_encodings=accepted)
    assert reply.artefact.encoding == reply.candidates.encoding == chosen
    assert len(reply.candidates.embeddings) == 60 * row_bytes
    read_artefact(reply.artefact.data, deployment.tiny.layout)


def test_candidates_are_not_sent_twice(deployment):
    first = ask(deployment).candidates
    again = ask(deployment, held_candidates_etag=first.etag)
    assert again.candidates == types.Candidates(etag=first.etag, not_modified=True)
    assert again.cost.candidate_bytes == 0
    assert again.artefact.data
    other = ask(
        deployment,
        held_candidates_etag=first.etag,
        interest=types.Interest(values=deployment.tiny.interest(5).tobytes()),
    )
    assert not other.candidates.not_modified
    assert other.candidates.etag != first.etag
    int8 = [types.ENCODING_INT8]
    in_int8 = ask(deployment, held_candidates_etag=first.etag, accepted_encodings=int8)
    assert not in_int8.candidates.not_modified


def test_candidates_alone(deployment):
    session = "a-session-of-its-own"
    request = api.GetCandidatesRequest(version="v1", session_id=session)
    with pytest.raises(grpc.RpcError) as caught:
        deployment.stub.GetCandidates(request, timeout=10)
    assert fault_of(caught.value).reason is Reason.UNKNOWN_SESSION
    sent = ask(deployment, session_id=session).candidates
    assert deployment.stub.GetCandidates(request, timeout=10).candidates == sent
    held = api.GetCandidatesRequest(
        version="v1", session_id=session, held_candidates_etag=sent.etag
    )
    assert deployment.stub.GetCandidates(held, timeout=10).candidates.not_modified
    interest = deployment.tiny.interest(9)
    with_interest = api.GetCandidatesRequest(
        version="v1", session_id=session, interest=types.Interest(values=interest.tobytes())
    )
    found = deployment.stub.GetCandidates(with_interest, timeout=10).candidates
    assert list(found.item_ids) == deployment.tiny.best(interest, 60)
    assert deployment.stub.GetCandidates(request, timeout=10).candidates == found


def interest_of(value, count=8):
    return types.Interest(values=np.full(count, value, "<f4").tobytes())


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        ({"interest": interest_of(0, 7)}, "MALFORMED_INTEREST", "28 bytes, 32 expected"),
        ({"interest": types.Interest(values=b"abc")}, "MALFORMED_INTEREST", "3 bytes"),
        ({"interest": None}, "MALFORMED_INTEREST", "0 bytes"),
        ({"interest": interest_of(np.nan)}, "NON_FINITE_INTEREST", "finite"),
        ({"interest": interest_of(-np.inf)}, "NON_FINITE_INTEREST", "finite"),
        ({"interest": interest_of(3e38)}, "NON_FINITE_INTEREST", "so large"),
        ({"path": types.Path(bits=b"\x11")}, "MALFORMED_PATH", "beyond the 4 blocks"),
        ({"path": types.Path(bits=b"\x01\x00")}, "MALFORMED_PATH", "2 bytes, 1 expected"),
        ({"path": None}, "MALFORMED_PATH", "0 bytes"),
        ({"path": types.Path(bits=b"\x00")}, "EMPTY_PATH", "no block"),
        ({"session_id": ""}, "MALFORMED_SESSION", "8 to 64"),
        ({"session_id": "short"}, "MALFORMED_SESSION", "8 to 64"),
        ({"session_id": "x" * 65}, "MALFORMED_SESSION", "8 to 64"),
        ({"session_id": "user@example.com"}, "MALFORMED_SESSION", "A-Z"),
        ({"session_id": "with-newline\n"}, "MALFORMED_SESSION", "A-Z"),
        ({"version": ""}, "MISSING_VERSION", "no version"),
        ({"version": "v0"}, "UNKNOWN_VERSION", "v0 is not served; the current one is v1"),
        ({"version": "../../etc"}, "UNKNOWN_VERSION", "current one is v1"),
        ({"version": "x" * 5000}, "UNKNOWN_VERSION", "current one is v1"),
        ({"accepted_encodings": [99]}, "UNKNOWN_ENCODING", "99"),
        ({"accepted_encodings": [2, 0]}, "UNKNOWN_ENCODING", "2, 0"),
        ({"accepted_encodings": [2] * 17}, "TOO_LARGE", "accepted_encodings"),
        ({"held_candidates_etag": "x" * 200}, "TOO_LARGE", "held_candidates_etag"),
        ({"budget": types.Budget(max_flops=10)}, "IMPOSSIBLE_BUDGET", "one block needs"),
        ({"budget": types.Budget(max_artefact_bytes=10)}, "IMPOSSIBLE_BUDGET", "one block needs"),
    ],
)
def test_bad_input(deployment, change, reason, says):
    with pytest.raises(grpc.RpcError) as caught:
        ask(deployment, **change)
    fault = fault_of(caught.value)
    assert fault.reason == reason
    assert says in fault.text
    assert len(fault.text) < 300
    assert fault.current_version == ("v1" if reason == "UNKNOWN_VERSION" else "")
    assert fault.retry is None
    assert ask(deployment).artefact.data, "and the service goes on"


def test_a_budget_is_a_contract(deployment):
    tiny = deployment.tiny
    full = types.Path(bits=tiny.path(0, 1, 2, 3))
    sizes, flops = [], []
    for kept in range(1, 5):
        reply = ask(deployment, path=types.Path(bits=tiny.path(*range(kept))))
        sizes.append(len(reply.artefact.data))
        flops.append(reply.cost.true_device_flops)
    for kept in range(1, 4):
        for budget in (
            types.Budget(max_artefact_bytes=sizes[kept - 1]),
            types.Budget(max_flops=flops[kept - 1]),
            types.Budget(max_artefact_bytes=sizes[kept] - 1, max_flops=flops[3]),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                ask(deployment, path=full, budget=budget)
            fault = fault_of(caught.value)
            assert fault.reason is Reason.BUDGET_EXCEEDED
            assert f"room for {kept}" in fault.text
            cut = types.Path(bits=tiny.path(*range(kept)))
            assert len(ask(deployment, path=cut, budget=budget).artefact.data) == sizes[kept - 1]
    enough = types.Budget(max_artefact_bytes=sizes[3], max_flops=flops[3])
    assert len(ask(deployment, path=full, budget=enough).artefact.data) == sizes[3]


def test_an_oversize_message_is_refused(deployment):
    with pytest.raises(grpc.RpcError) as caught:
        ask(deployment, interest=types.Interest(values=b"\0" * 100_000))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ask(deployment).artefact.data


def test_garbage_bytes_are_refused(deployment):
    call = deployment.channel.unary_unary(f"/{SERVICE}/RequestNetwork")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff" * 50, timeout=10)
    assert fault_of(caught.value).reason is Reason.MALFORMED_MESSAGE
    assert ask(deployment).artefact.data


def test_garbage_to_health_and_reflection_gets_no_inner_text(deployment):
    health = deployment.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert health(b"\xff", timeout=10) == health(b"", timeout=10)
    reflect = deployment.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    assert b"invalid argument" in next(reflect(iter([b"\xff"]), timeout=10))


def test_a_flood_is_answered_to_the_last_call(deployment):
    request = network_request(deployment.tiny)
    calls = [deployment.stub.RequestNetwork.future(request, timeout=60) for _ in range(2000)]
    refused = 0
    for call in calls:
        try:
            assert call.result().artefact.data
        except grpc.RpcError as error:
            # gRPC itself ends those for whom there is no place even to wait.
            if error.code() is not grpc.StatusCode.CANCELLED:
                assert fault_of(error).reason is Reason.OVERLOADED
            refused += 1
    assert refused < len(calls)
    assert ask(deployment).artefact.data


def test_a_deadline_that_has_passed(deployment):
    with pytest.raises(grpc.RpcError) as caught:
        ask(deployment, timeout=0.0001)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert ask(deployment).artefact.data


def fetch(deployment, **fields):
    return list(deployment.stub.GetDeviceBundle(api.GetDeviceBundleRequest(**fields), timeout=10))


@pytest.mark.parametrize(
    ("part", "shard"),
    [(api.BUNDLE_PART_TENSORS, 0), (api.BUNDLE_PART_EXTRACTOR_ONNX, 0)]
    + [(api.BUNDLE_PART_ITEMS, shard) for shard in range(3)],
)
def test_bundles(deployment, part, shard):
    chunks = fetch(deployment, part=part, shard=shard)
    data = b"".join(chunk.data for chunk in chunks)
    assert chunks[0].version == "v1"
    assert chunks[0].total_bytes == len(data)
    assert chunks[0].sha256 == hashlib.sha256(data).digest()
    assert all(not c.version and not c.sha256 and not c.total_bytes for c in chunks[1:])
    assert max(len(chunk.data) for chunk in chunks) <= 256 * 1024
    for offset in {0, 1, len(data) // 2, len(data) - 1, len(data)}:
        rest = fetch(deployment, version="v1", part=part, shard=shard, offset=offset)
        assert b"".join(chunk.data for chunk in rest) == data[offset:]
        assert rest[0].offset == offset
        assert rest[0].sha256 == chunks[0].sha256
    if part == api.BUNDLE_PART_TENSORS:
        assert read_bundle(data).manifest.version == "v1"
    if part == api.BUNDLE_PART_ITEMS:
        assert read_shard(data)[0] == "v1"
    if part == api.BUNDLE_PART_EXTRACTOR_ONNX:
        assert len(chunks) == 3


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, Reason.UNKNOWN_PART),
        ({"part": 9}, Reason.UNKNOWN_PART),
        ({"part": 1, "shard": 1}, Reason.UNKNOWN_PART),
        ({"part": 2, "shard": 3}, Reason.UNKNOWN_PART),
        ({"part": 4}, Reason.UNKNOWN_PART),
        ({"part": 1, "offset": 5}, Reason.MISSING_VERSION),
        ({"part": 1, "version": "v1", "offset": 10**9}, Reason.BAD_OFFSET),
        ({"part": 1, "version": "v9"}, Reason.UNKNOWN_VERSION),
        ({"part": 2, "version": "v1/../v1"}, Reason.UNKNOWN_VERSION),
    ],
)
def test_bad_bundle_requests(deployment, fields, reason):
    with pytest.raises(grpc.RpcError) as caught:
        fetch(deployment, **fields)
    assert fault_of(caught.value).reason is reason


@pytest.mark.parametrize(
    "change",
    [
        {"version": ""},
        {"version": "nope"},
        {"session_id": "!"},
        {"interest": interest_of(np.nan)},
        {"interest": interest_of(0, 3)},
        {"accepted_encodings": [0]},
    ],
)
def test_bad_candidate_requests(deployment, change):
    fields = {"version": "v1", "session_id": SESSION, **change}
    with pytest.raises(grpc.RpcError) as caught:
        deployment.stub.GetCandidates(api.GetCandidatesRequest(**fields), timeout=10)
    assert isinstance(fault_of(caught.value), Fault)


def test_many_devices_at_once(deployment):
    """Each gets its own network, whatever the others ask."""
    tiny = deployment.tiny

    def one(seed):
        interest = tiny.interest(seed)
        block = seed % 4
        reply = ask(
            deployment,
            session_id=f"session-{seed:04d}",
            path=types.Path(bits=tiny.path(block)),
            interest=types.Interest(values=interest.tobytes()),
            accepted_encodings=[types.ENCODING_FLOAT32],
        )
        network = read_artefact(reply.artefact.data, tiny.layout)
        wanted = tiny.layout.split(tiny.parameters(block, interest))
        np.testing.assert_allclose(
            network.blocks[block]["ffn1.weight"], wanted["ffn1.weight"], atol=1e-6
        )
        return list(reply.candidates.item_ids) == tiny.best(interest, 60)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(64)))


def test_health(deployment):
    stub = health_pb2_grpc.HealthStub(deployment.channel)
    for service in ("", SERVICE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection(deployment):
    database = ProtoReflectionDescriptorDatabase(deployment.channel)
    assert SERVICE in database.get_services()
    pool = DescriptorPool(database)
    methods = pool.FindServiceByName(SERVICE).methods_by_name
    assert set(methods) == {"RequestNetwork", "GetDeviceBundle", "GetCandidates"}


def test_a_client_that_is_not_ours(deployment):
    """`buf curl` knows nothing but the address: it learns the API by reflection."""
    import base64

    tiny = deployment.tiny
    request = {
        "version": "v1",
        "sessionId": "buf-curl-session",
        "path": {"bits": base64.b64encode(tiny.path(1, 3)).decode()},
        "interest": {"values": base64.b64encode(tiny.interest().tobytes()).decode()},
        "acceptedEncodings": ["ENCODING_FLOAT32"],
    }
    buf = Path(sys.executable).with_name("buf")
    command = [str(buf), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    command += ["-d", json.dumps(request), f"http://{deployment.address}/{SERVICE}/RequestNetwork"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    network = read_artefact(base64.b64decode(reply["artefact"]["data"]), tiny.layout)
    assert network.path == (False, True, False, True)
    assert len(reply["candidates"]["itemIds"]) == 60


def scrape(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


def test_metrics(deployment):
    before = scrape(deployment.metrics)
    reply = ask(deployment)
    with pytest.raises(grpc.RpcError):
        ask(deployment, session_id="?")
    fetch(deployment, part=api.BUNDLE_PART_TENSORS)
    after = scrape(deployment.metrics)

    def grown(*key):
        return after[key] - before.get(key, 0)

    cost = reply.cost
    for name, added in {
        ("forward_ofa_device_flops_sum", "paper"): cost.paper_device_flops,
        ("forward_ofa_device_flops_sum", "true"): cost.true_device_flops,
        ("forward_ofa_generation_flops_sum",): cost.generation_flops,
        ("forward_ofa_response_bytes_sum", "artefact"): cost.artefact_bytes,
        ("forward_ofa_response_bytes_sum", "candidates"): cost.candidate_bytes,
        ("forward_ofa_kept_blocks_sum",): 2,
        ("forward_ofa_device_flops_count", "true"): 1,
        ("forward_ofa_response_bytes_count", "bundle"): 1,
        ("forward_ofa_request_seconds_count", "RequestNetwork"): 2,
        ("forward_ofa_message_bytes_count", "RequestNetwork", "received"): 2,
        ("forward_ofa_stage_seconds_count", "map"): 1,
        ("forward_ofa_requests_total", "OK", "RequestNetwork"): 1,
        ("forward_ofa_requests_total", "INVALID_ARGUMENT", "RequestNetwork"): 1,
        ("forward_ofa_rejections_total", "MALFORMED_SESSION", "RequestNetwork"): 1,
    }.items():
        assert grown(*name) == pytest.approx(added), name
    assert grown("forward_ofa_dense_bytes_total") > 1.5 * cost.artefact_bytes
    assert grown("forward_ofa_dense_flops_total", "true") > cost.true_device_flops
    created = datetime.datetime(2026, 1, 1, 0, 0, 1, tzinfo=datetime.UTC).timestamp()
    assert after["forward_ofa_current_version_timestamp_seconds", "controller"] == created
    assert after["forward_ofa_version_metric", "controller", "ndcg@10", "v1"] == 0.1
    # There before the first failure, so that its rate is seen.
    assert ("forward_ofa_rejections_total", "OVERLOADED", "RequestNetwork") in after
    assert ("forward_ofa_version_load_failures_total", "controller") in after
    assert ("forward_ofa_file_reload_failures_total", "tls") in after
    assert any(key[0] == "forward_ofa_build_info" for key in after)
    assert after["forward_ofa_versions_loaded", "controller"] == 1
    assert after["forward_ofa_current_version", "controller", "v1"] == 1
    assert after["forward_ofa_requests_in_flight",] == 0
    assert ("forward_ofa_device_flops_bucket", "+Inf", "true") in after


def test_reports_of_devices_are_added_up(deployment):
    def told(**counts):
        ask(deployment, report=api.DeviceReport(**counts))

    before = scrape(deployment.metrics)
    told(version="v1", touched=10, hits=4)
    told(version="v1", touched=5, hits=0, damaged=2)
    told(version="of-long-ago", touched=3, hits=3)
    # Rubbish is ignored; the request is answered all the same.
    told(version="v1", touched=1, hits=2)
    told(version="v1", touched=21, hits=2)
    # Whatever it claims, one report is one.
    told(version="v1", damaged=1_000)
    after = scrape(deployment.metrics)
    grown = {
        key: value - before.get(key, 0)
        for key, value in after.items()
        if key[0].startswith(("forward_ofa_online", "forward_ofa_device_damaged_total",
                              "forward_ofa_device_reports_total"))
        and not key[0].endswith("_created")
    }  # fmt: skip
    assert grown == {
        ("forward_ofa_online_touches_total", "v1"): 15,
        ("forward_ofa_online_hits_total", "v1"): 4,
        ("forward_ofa_online_touches_total", "other"): 3,
        ("forward_ofa_online_hits_total", "other"): 3,
        ("forward_ofa_device_damaged_total",): 2,
        ("forward_ofa_device_reports_total", "counted"): 4,
        ("forward_ofa_device_reports_total", "ignored"): 2,
    }


def test_the_log_has_no_interest(deployment):
    """Neither the bytes nor the numbers of h, and an id to find a refused request by."""
    interest = deployment.tiny.interest(3)
    with pytest.raises(grpc.RpcError) as caught:
        ask(
            deployment,
            interest=types.Interest(values=interest.tobytes()),
            budget=types.Budget(max_flops=1),
        )
    trailing = dict(caught.value.trailing_metadata())
    lines = [json.loads(line) for line in deployment.processes["controller"].log().splitlines()]
    mine = [line for line in lines if line.get("request_id") == trailing["x-request-id"]]
    assert mine[0]["reason"] == "IMPOSSIBLE_BUDGET"
    text = json.dumps(lines)
    assert repr(float(interest[0]))[:8] not in text
    assert interest.tobytes().hex()[:16] not in text
