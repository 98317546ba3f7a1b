"""The client and the downloads, over real gRPC."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from forward_ofa_api.controller.v1 import controller_pb2 as pb
from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceServicer
from forward_ofa_api.controller.v1.controller_pb2_grpc import (
    add_ControllerServiceServicer_to_server as register,
)
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.cloud import Cloud, Connection, token_file
from forward_ofa_device.download import BUNDLE, fetch_bundle, fetch_shard
from forward_ofa_device.errors import CloudError, CorruptFile, WrongVersion
from forward_ofa_device.store import StateStore
from tests.support.device_cloud import CHUNK, RunningCloud, Version


@pytest.fixture
def client(cloud: RunningCloud) -> Cloud:
    client = Cloud(Connection(cloud.address))
    yield client
    client.close()


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    store = StateStore(tmp_path)
    yield store
    store.close()


def offsets(cloud: RunningCloud) -> list[int]:
    return [request.offset for request in cloud.controller.log.parts]


# Connection


@pytest.mark.parametrize(
    ("controller", "secure"),
    [
        ("127.0.0.1:1", False),
        ("127.9.8.7:1", False),
        ("[::1]:1", False),
        ("localhost:1", False),
        ("unix:/run/x.sock", False),
        ("recommender.example.com:443", True),
        ("10.0.0.1:443", True),
        ("localhost.example.com:443", True),
    ],
)
def test_tls_is_the_default_off_loopback(controller: str, secure: bool) -> None:
    assert Connection(controller).secure is secure
    assert Connection(controller, root_certificates=Path("ca.pem")).secure
    assert not Connection(controller, allow_insecure=True).secure


@pytest.mark.parametrize("controller", ["", "host", "host:", ":50051", "host:http"])
def test_addresses_that_are_none(controller: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Connection(controller)


def test_missing_certificates_are_named() -> None:
    with pytest.raises(ValueError, match="no-such"):
        Cloud(Connection("127.0.0.1:1", root_certificates=Path("no-such.pem")))


def test_a_tls_client_does_not_talk_to_a_plain_server(cloud: RunningCloud, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    client = Cloud(Connection(cloud.address, root_certificates=tmp_path / "ca.pem", timeout=1))
    with pytest.raises(CloudError) as caught:
        client.request_network(pb.RequestNetworkRequest(version="v1"))
    assert caught.value.reason == "UNREACHABLE" and not cloud.controller.log.networks
    client.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_tls_with_its_own_authority(cloud: RunningCloud, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=controller", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    register(cloud.controller, server)
    pair = (key.read_bytes(), certificate.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    client = Cloud(Connection(f"127.0.0.1:{port}", root_certificates=certificate))
    chunks = list(client.get_bundle(pb.GetDeviceBundleRequest(part=pb.BUNDLE_PART_TENSORS)))
    assert b"".join(c.data for c in chunks) == cloud.controller.versions["v1"].bundle
    client.close()
    plain = Cloud(Connection(f"127.0.0.1:{port}", timeout=1))
    with pytest.raises(CloudError):
        plain.request_network(pb.RequestNetworkRequest(version="v1"))
    plain.close()
    server.stop(0).wait()


# Errors


def test_error_details_arrive(client: Cloud, cloud: RunningCloud) -> None:
    with pytest.raises(CloudError) as caught:
        client.request_network(pb.RequestNetworkRequest(version="v0"))
    error = caught.value
    assert (error.reason, error.code) == ("UNKNOWN_VERSION", "FAILED_PRECONDITION")
    assert error.current_version == "v1" and error.retry_ms is None
    detail = types.ErrorDetail(reason="OVERLOADED", action="wait a moment")
    detail.retry.min_ms, detail.retry.max_ms = 500, 100
    cloud.controller.faults.refuse = (grpc.StatusCode.UNAVAILABLE, detail)
    with pytest.raises(CloudError) as caught:
        client.request_network(pb.RequestNetworkRequest(version="v1"))
    assert caught.value.reason == "OVERLOADED" and caught.value.action == "wait a moment"
    assert caught.value.retry_ms == (500, 500)


class Rude(ControllerServiceServicer):
    """Answers with details that are garbage, or with none."""

    def RequestNetwork(self, request: object, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff garbage"),))
        context.abort(grpc.StatusCode.INTERNAL, "oops")

    def GetDeviceBundle(
        self, request: object, context: object
    ) -> Iterator[pb.GetDeviceBundleResponse]:
        yield pb.GetDeviceBundleResponse(data=bytes(2_000_000))


def test_garbage_details_and_oversize_replies() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    register(Rude(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = Cloud(Connection(f"127.0.0.1:{port}", max_message_bytes=1_000_000))
    with pytest.raises(CloudError) as caught:
        client.request_network(pb.RequestNetworkRequest())
    assert (caught.value.reason, str(caught.value)) == ("INTERNAL", "oops")
    with pytest.raises(CloudError) as caught:
        list(client.get_bundle(pb.GetDeviceBundleRequest()))
    assert caught.value.reason == "RESOURCE_EXHAUSTED"
    client.close()
    server.stop(0).wait()


class Flooded(ControllerServiceServicer):
    """Answers as gRPC itself does when too many calls come at once."""

    def RequestNetwork(self, request: object, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.CANCELLED, "")


def test_a_server_that_cancels_is_one_that_is_away() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    register(Flooded(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = Cloud(Connection(f"127.0.0.1:{port}"))
    with pytest.raises(CloudError) as caught:
        client.request_network(pb.RequestNetworkRequest())
    assert (caught.value.reason, caught.value.code) == ("UNREACHABLE", "CANCELLED")
    client.close()
    server.stop(0).wait()


# Downloads


def test_bundle_and_shards_arrive(client: Cloud, cloud: RunningCloud, store: StateStore) -> None:
    version = cloud.controller.versions["v1"]
    assert fetch_bundle(client, store) == "v1"
    fetch_shard(client, store, "v1", 2)
    bundle, shard = store.read("v1", BUNDLE), store.read("v1", "items-2")
    assert bundle is not None and bundle.data == version.bundle
    assert shard is not None and shard.data == version.shards[2]


def test_a_broken_download_goes_on_where_it_stopped(
    client: Cloud, cloud: RunningCloud, store: StateStore
) -> None:
    cloud.controller.faults.break_after = 2 * CHUNK
    fetch_bundle(client, store)
    assert offsets(cloud) == [0, 2 * CHUNK], "at once, since bytes came"
    stored = store.read("v1", BUNDLE)
    assert stored is not None and stored.data == cloud.controller.versions["v1"].bundle


def test_a_half_download_goes_on_after_a_restart(
    client: Cloud, cloud: RunningCloud, tmp_path: Path
) -> None:
    half(tmp_path, cloud.controller.versions["v1"].bundle[: CHUNK + 100], cloud)
    store = StateStore(tmp_path)
    assert fetch_bundle(client, store) == "v1"
    assert offsets(cloud) == [CHUNK + 100]
    stored = store.read("v1", BUNDLE)
    assert stored is not None and stored.data == cloud.controller.versions["v1"].bundle
    store.close()


def test_a_complete_download_that_was_not_finished(
    client: Cloud, cloud: RunningCloud, tmp_path: Path
) -> None:
    whole = cloud.controller.versions["v1"].bundle
    half(tmp_path, whole, cloud)
    store = StateStore(tmp_path)
    fetch_bundle(client, store)
    assert offsets(cloud) == [len(whole)] and store.read("v1", BUNDLE) is not None
    store.close()


def test_a_half_download_of_another_file_is_dropped(
    client: Cloud, cloud: RunningCloud, tmp_path: Path
) -> None:
    half(tmp_path, b"x" * 10, cloud, digest="00" * 32)
    store = StateStore(tmp_path)
    fetch_bundle(client, store)
    assert offsets(cloud) == [10, 0] and store.read("v1", BUNDLE) is not None
    store.close()


def test_a_half_download_beyond_the_end_is_dropped(
    client: Cloud, cloud: RunningCloud, tmp_path: Path
) -> None:
    size = len(cloud.controller.versions["v1"].bundle) + 5
    half(tmp_path, b"x" * size, cloud, total=size)
    store = StateStore(tmp_path)
    fetch_bundle(client, store)
    assert offsets(cloud) == [size, 0] and store.read("v1", BUNDLE) is not None
    store.close()


def test_a_half_download_of_a_version_that_is_gone_is_dropped(
    client: Cloud, cloud: RunningCloud, tmp_path: Path
) -> None:
    half(tmp_path, b"x" * 10, cloud)
    cloud.controller.serve_only(Version("v2"))
    store = StateStore(tmp_path)
    assert fetch_bundle(client, store) == "v2"
    assert store.partial("v1", BUNDLE) is None and store.read("v2", BUNDLE) is not None
    store.close()


def half(folder: Path, data: bytes, cloud: RunningCloud, digest: str = "", total: int = 0) -> None:
    """Leaves a download of v1's bundle as an app that was killed would."""
    import hashlib

    bundle = cloud.controller.versions["v1"].bundle
    store = StateStore(folder)
    digest = digest or hashlib.sha256(bundle).hexdigest()
    store.begin_partial("v1", BUNDLE, digest, total or len(bundle))
    store.append_partial("v1", BUNDLE, data)
    store.close()


def test_a_wrong_digest_is_never_used(
    client: Cloud, cloud: RunningCloud, store: StateStore
) -> None:
    cloud.controller.faults.broken_digest = True
    with pytest.raises(CorruptFile, match="digest"):
        fetch_bundle(client, store)
    assert store.read("v1", BUNDLE) is None and store.partial("v1", BUNDLE) is None


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ([], CloudError),
        ([{"version": "v1", "total_bytes": 4, "sha256": bytes(32), "data": b"ab"}], CloudError),
        ([{"version": "", "total_bytes": 4, "sha256": bytes(32), "data": b"abcd"}], WrongVersion),
        ([{"version": "v1", "total_bytes": 4, "sha256": b"", "data": b"abcd"}], CorruptFile),
        (
            [{"version": "v1", "total_bytes": 2, "sha256": bytes(32), "data": b"abcd"}],
            CorruptFile,
        ),
        (
            [
                {"version": "v1", "total_bytes": 4, "sha256": bytes(32), "data": b"ab"},
                {"offset": 3, "data": b"cd"},
            ],
            CorruptFile,
        ),
        ([{"version": "v1", "total_bytes": 1 << 40, "sha256": bytes(32)}], CorruptFile),
    ],
)
def test_streams_that_are_not_as_promised(
    store: StateStore, chunks: list[dict], error: type[Exception]
) -> None:
    class Server(ControllerServiceServicer):
        def GetDeviceBundle(self, request: pb.GetDeviceBundleRequest, context: object):
            yield from (
                pb.GetDeviceBundleResponse(**chunk)
                for chunk in (chunks if not request.offset else [])
            )

    server = grpc.server(futures.ThreadPoolExecutor(1))
    register(Server(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = Cloud(Connection(f"127.0.0.1:{port}"))
    with pytest.raises(error):
        fetch_bundle(client, store)
    assert all(store.read(version, BUNDLE) is None for version in store.versions())
    client.close()
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"token": "two words"}, "visible ASCII"),
        ({"token": "newline\n"}, "visible ASCII"),
        ({"token": ""}, "visible ASCII"),
        ({"certificate": Path("c.pem")}, "belong together"),
        ({"certificate": Path("c.pem"), "key": Path("k.pem")}, "root_certificates"),
    ],
)
def test_credentials_that_cannot_work(changes, says):
    with pytest.raises(ValueError, match=says):
        Connection("127.0.0.1:1", **changes)


def test_a_token_is_not_shown_and_never_leaves_in_plain_text():
    connection = Connection("example.com:443", token="secret-token")
    assert connection.secure
    assert "secret-token" not in repr(connection)


def test_a_token_source_that_fails_is_a_cloud_error(cloud, tmp_path):
    for token in (token_file(tmp_path / "none"), lambda: "not a token", lambda: None):
        client = Cloud(Connection(cloud.address, token=token))
        with pytest.raises(CloudError) as caught:
            client.request_network(pb.RequestNetworkRequest())
        client.close()
        assert caught.value.reason == "NO_TOKEN"
        assert "not a token" not in str(caught.value)
