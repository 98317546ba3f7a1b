"""Who reaches what: TLS that renews itself, mutual TLS, devices' tokens, rates."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
import time

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from forward_ofa_api.assembler.v1.assembler_pb2_grpc import AssemblerServiceStub
from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from forward_ofa_api.mapper.v1 import mapper_pb2
from forward_ofa_api.mapper.v1.mapper_pb2_grpc import MapperServiceStub
from forward_ofa_device import CloudError, Connection, Device
from forward_ofa_device.cloud import Cloud, token_file
from services.clients import RemoteMapper
from services.errors import Reason
from services.ports import GenerationRequest
from services.registry.files import FileRegistry
from services.runtime import channels, watched
from services.runtime.access import AccessSettings
from services.runtime.settings import ChannelSettings, ServerSettings
from services.runtime.tokens import add_token, revoke_tokens
from tests.support.certificates import Authority
from tests.support.serving import fault_of, network_request, running
from tests.support.versions import publish


@pytest.fixture
def registry(tmp_path):
    return FileRegistry(tmp_path / "registry")


@pytest.fixture
def tiny(registry):
    return publish(registry, "v1")


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "pki")


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    """Files are looked at again after 50 ms instead of a second."""
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.05)


def tls(authority, name="server", **changes):
    cert, key = authority.sign(name)
    return ServerSettings(
        listen="127.0.0.1:0", drain_seconds=1, tls_cert=cert, tls_key=key, **changes
    )


@contextlib.asynccontextmanager
async def stub_of(address, authority=None, pair=None, kind=ControllerServiceStub):
    if authority is None:
        channel = grpc.aio.insecure_channel(address)
    else:
        own = [] if pair is None else [pair[1].read_bytes(), pair[0].read_bytes()]
        credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes(), *own)
        channel = grpc.aio.secure_channel(address, credentials)
    async with channel:
        yield kind(channel)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return fault_of(caught.value)


async def works(address, tiny, *credentials):
    async with stub_of(address, *credentials) as stub:
        try:
            return bool((await stub.RequestNetwork(network_request(tiny), timeout=5)).artefact.data)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False


async def metric(services, name):
    reader, writer = await asyncio.open_connection(*services.metrics_address.split(":"))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


async def test_certificates_are_renewed_without_a_restart(
    registry, tiny, authority, tmp_path, caplog
):
    server = tls(authority)
    other = Authority(tmp_path / "other")
    async with running(registry.root, server=server) as services:
        async with stub_of(services.address, authority) as before:
            assert (await before.RequestNetwork(network_request(tiny))).artefact.data
            assert not await works(services.address, tiny, other)
            expiry = await metric(services, "forward_ofa_tls_certificate_expiry")
            assert expiry > time.time()
            # A new certificate, by another authority, in place of the old one.
            cert, key = other.sign("server", days=9)
            server.tls_key.write_bytes(key.read_bytes())
            server.tls_cert.write_bytes(cert.read_bytes())
            assert await works(services.address, tiny, other)
            assert not await works(services.address, tiny, authority)
            assert await metric(services, "forward_ofa_tls_certificate_expiry") > expiry
            # Who was connected stays connected.
            assert (await before.RequestNetwork(network_request(tiny))).artefact.data
        # Rubbish, or half of a pair, changes nothing, is counted and logged without a restart.
        with caplog.at_level(logging.WARNING, "services"):
            server.tls_cert.write_text("-----BEGIN CERTIFICATE-----\nrubbish")
            assert await works(services.address, tiny, other)
            server.tls_cert.write_bytes(authority.sign("mismatch")[0].read_bytes())
            await asyncio.sleep(0.5)
            server.tls_cert.unlink()
            assert await works(services.address, tiny, other)
        failures = 'forward_ofa_file_reload_failures_total{what="tls"}'
        assert await metric(services, failures) == 3
        assert "the private key is not that of the certificate" in str(
            [record.__dict__ for record in caplog.records]
        )
        assert "BEGIN PRIVATE" not in str([record.__dict__ for record in caplog.records])
        # And a good pair is taken again.
        cert, key = authority.sign("server")
        server.tls_key.write_bytes(key.read_bytes())
        server.tls_cert.write_bytes(cert.read_bytes())
        assert await works(services.address, tiny, authority)


async def test_mutual_tls_between_services(registry, tiny, authority, tmp_path):
    """Three services; who has no certificate of the authority, or not the name, gets nothing."""
    cert, key = authority.sign("assembler")
    trusted = ChannelSettings(ca=authority.ca, cert=cert, key=key)
    front = ChannelSettings(
        ca=authority.ca, **dict(zip(("cert", "key"), authority.sign("edge"), strict=True))
    )
    only = {"tls_client_ca": authority.ca}
    async with (
        running(
            registry.root,
            server=tls(authority, "m", tls_client_names=("assembler",), **only),
            targets=("mapper",),
        ) as mapper,
        running(
            registry.root,
            server=tls(authority, "a", **only),
            targets=("assembler",),
            mapper=mapper.address,
            channels=trusted,
        ) as assembler,
        running(
            registry.root,
            server=tls(authority, "c"),
            targets=("controller",),
            assembler=assembler.address,
            channels=front,
        ) as edge,
    ):
        assert await works(edge.address, tiny, authority)
        request = mapper_pb2.GenerateBlocksRequest(version="v1")
        async with stub_of(mapper.address, authority, kind=MapperServiceStub) as nobody:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await nobody.GenerateBlocks(request, timeout=3)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        stranger = Authority(tmp_path / "stranger").sign("assembler")
        async with stub_of(mapper.address, authority, stranger, MapperServiceStub) as forged:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await forged.GenerateBlocks(request, timeout=3)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        known = authority.sign("edge-2")
        async with stub_of(mapper.address, authority, known, MapperServiceStub) as wrong_name:
            fault = await refusal(wrong_name.GenerateBlocks(request, timeout=3))
            assert fault.reason is Reason.NOT_ALLOWED


async def test_a_channel_follows_its_certificates(registry, tiny, authority, tmp_path):
    """The authority behind is exchanged, the client's files with it: calls go on."""
    server = tls(authority)
    server = ServerSettings(**{**vars(server), "tls_client_ca": authority.ca})
    cert, key = authority.sign("client")
    settings = ChannelSettings(ca=authority.ca, cert=cert, key=key)
    request = GenerationRequest("v1", tiny.path(0), tiny.interest().tobytes(), "float16", 5)
    async with running(registry.root, server=server, targets=("mapper",)) as services:
        async with channels.open_channel(services.address, settings) as channel:
            mapper = RemoteMapper(channel)
            before, first = await mapper.generate(request), channel.current()
            cert.write_text("rubbish")
            await asyncio.sleep(0.1)
            assert (await mapper.generate(request)).payload == before.payload
            other = Authority(tmp_path / "other")
            for path, new in zip(
                (server.tls_cert, server.tls_key, cert, key, authority.ca),
                (*other.sign("server"), *other.sign("client"), other.ca),
                strict=True,
            ):
                path.write_bytes(new.read_bytes())
            await asyncio.sleep(0.1)
            used = channel.current()
            assert (await mapper.generate(request)).payload == before.payload
            assert channel.current() is used is not first
        async with stub_of(services.address, other, other.sign("c"), MapperServiceStub) as stub:
            fault = await refusal(stub.GenerateBlocks(mapper_pb2.GenerateBlocksRequest()))
            assert fault.reason is Reason.UNKNOWN_ENCODING


@pytest.mark.parametrize("exposed", [False, True])
async def test_internal_calls_are_not_offered_with_the_controller(registry, tiny, exposed):
    async with running(registry.root, expose_internal=exposed) as services:
        assert await works(services.address, tiny)
        code = grpc.StatusCode
        expected = code.INVALID_ARGUMENT if exposed else code.UNIMPLEMENTED
        for kind, method in (
            (MapperServiceStub, "GenerateBlocks"),
            (AssemblerServiceStub, "AssembleNetwork"),
        ):
            async with stub_of(services.address, kind=kind) as stub:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await getattr(stub, method)(mapper_pb2.GenerateBlocksRequest())
                assert caught.value.code() is expected
        names = await asyncio.to_thread(_listed, services.address)
        assert ("forward_ofa_api.mapper.v1.MapperService" in names) == exposed
        assert "forward_ofa_api.controller.v1.ControllerService" in names


def _listed(address):
    command = [f"{sys.prefix}/bin/buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    command += ["--list-services", f"http://{address}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


async def test_reflection_can_be_turned_off(registry, tiny):
    server = ServerSettings(listen="127.0.0.1:0", reflection=False)
    async with running(registry.root, server=server) as services:
        assert await works(services.address, tiny)
        assert "forward_ofa_api" not in await asyncio.to_thread(_listed, services.address)


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


async def test_api_tokens(registry, tiny, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "services")
    tokens = tmp_path / "tokens"
    token = add_token(tokens, "kiosk-1")
    server = ServerSettings(listen="127.0.0.1:0", access=AccessSettings(tokens=tokens))
    async with (
        running(registry.root, server=server) as services,
        stub_of(services.address) as stub,
    ):

        async def ask(metadata):
            return await stub.RequestNetwork(network_request(tiny), metadata=metadata)

        assert (await refusal(ask(None))).reason is Reason.NO_TOKEN
        for wrong in ("Basic x", "Bearer ", "Bearer"):
            fault = await refusal(ask((("authorization", wrong),)))
            assert fault.reason is Reason.NO_TOKEN
        for wrong in ("x", token[:-1], token + "x", token.upper(), "fot_", "a.b.c", "x" * 5000):
            fault = await refusal(ask(bearer(wrong)))
            assert fault.reason is Reason.BAD_TOKEN
            assert fault.status == "UNAUTHENTICATED"
        assert (await ask(bearer(token))).artefact.data
        bundle = stub.GetDeviceBundle(api.GetDeviceBundleRequest(part=1))
        assert (await refusal(bundle.read())).reason is Reason.NO_TOKEN
        # A second one works soon, a revoked one does not, a broken file changes nothing.
        second = add_token(tokens, "kiosk-2")
        await asyncio.sleep(0.1)
        assert (await ask(bearer(second))).artefact.data
        assert revoke_tokens(tokens, "kiosk-1") == 1
        await asyncio.sleep(0.1)
        assert (await refusal(ask(bearer(token)))).reason is Reason.BAD_TOKEN
        tokens.write_text("kiosk-3 not-a-digest\n")
        await asyncio.sleep(0.1)
        assert (await ask(bearer(second))).artefact.data
        assert await metric(services, 'forward_ofa_file_reload_failures_total{what="tokens"}') == 1
        refused = 'forward_ofa_rejections_total{method="%s",reason="NO_TOKEN"}'
        assert await metric(services, refused % "RequestNetwork") == 4
        assert await metric(services, refused % "GetDeviceBundle") == 1
        text = str([record.__dict__ for record in caplog.records])
        assert "kept the old files" in text
        assert token not in text and second not in text and "not-a-digest" not in text


async def test_the_sdk_shows_its_token(registry, tiny, authority, tmp_path):
    """Over mutual TLS, from a file that is rotated under it."""
    tokens = tmp_path / "tokens"
    mine = tmp_path / "mine"
    mine.write_text(add_token(tokens, "one") + "\n")
    access = AccessSettings(tokens=tokens)
    server = tls(authority, access=access, tls_client_ca=authority.ca)
    cert, key = authority.sign("phone")
    async with running(registry.root, server=server) as services:
        connection = Connection(
            services.address,
            root_certificates=authority.ca,
            token=token_file(mine),
            certificate=cert,
            key=key,
        )

        def use(folder):
            with Device(tmp_path / folder, connection) as device:
                device.observe(*tiny.item_ids[:4])
                outcome = device.refresh()
                assert outcome.error is None, outcome
                return bool(device.rerank(top=3))

        assert await asyncio.to_thread(use, "a")
        mine.write_text(add_token(tokens, "two"))
        revoke_tokens(tokens, "one")
        await asyncio.sleep(0.2)
        assert await asyncio.to_thread(use, "b")
        revoke_tokens(tokens, "two")
        await asyncio.sleep(0.2)

        def refused():
            client = Cloud(connection)
            with pytest.raises(CloudError) as caught:
                client.request_network(network_request(tiny))
            client.close()
            return caught.value

        error = await asyncio.to_thread(refused)
        assert (error.reason, error.code) == ("BAD_TOKEN", "UNAUTHENTICATED")
        assert "operator" in error.action


async def test_jwts(registry, tiny, tmp_path):
    signer = ed25519.Ed25519PrivateKey.generate()
    keys = tmp_path / "jwt.pem"

    def publish_key(key):
        form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        keys.write_bytes(key.public_key().public_bytes(*form))

    publish_key(signer)
    access = AccessSettings(jwt_keys=keys, jwt_issuer="us", jwt_audience="networks")
    server = ServerSettings(listen="127.0.0.1:0", access=access)
    good = {"iss": "us", "aud": "networks", "sub": "phone-1", "exp": time.time() + 60}
    async with (
        running(registry.root, server=server) as services,
        stub_of(services.address) as stub,
    ):

        async def ask(token):
            return await stub.RequestNetwork(network_request(tiny), metadata=bearer(token))

        token = jwt.encode(good, signer, "EdDSA")
        for _ in range(2):
            assert (await ask(token)).artefact.data
        # The key is exchanged: what was checked with the old one counts no more.
        other = ed25519.Ed25519PrivateKey.generate()
        publish_key(other)
        await asyncio.sleep(0.2)
        assert (await refusal(ask(token))).reason is Reason.BAD_TOKEN
        assert (await ask(jwt.encode(good, other, "EdDSA"))).artefact.data


async def test_rates_by_device(registry, tiny, tmp_path):
    tokens = tmp_path / "tokens"
    one, two = add_token(tokens, "one"), add_token(tokens, "two")
    access = AccessSettings(tokens=tokens, device_rate=2, device_burst=3)
    server = ServerSettings(listen="127.0.0.1:0", access=access)
    async with (
        running(registry.root, server=server) as services,
        stub_of(services.address) as stub,
    ):

        async def ask(token):
            return await stub.RequestNetwork(network_request(tiny), metadata=bearer(token))

        for _ in range(3):
            assert (await ask(one)).artefact.data
        fault = await refusal(ask(one))
        assert fault.reason is Reason.RATE_LIMITED
        assert fault.status == "RESOURCE_EXHAUSTED"
        assert 0 < fault.retry[0] <= 500 < fault.retry[1] + 500
        assert (await ask(two)).artefact.data
        await asyncio.sleep(fault.retry[0] / 1e3)
        assert (await ask(one)).artefact.data


def test_a_bad_token_file_is_refused_at_the_start(registry, tiny, tmp_path):
    bad = tmp_path / "tokens"
    bad.write_text("name\n")
    command = [sys.executable, "-m", "services", "--registry", str(registry.root)]
    command += ["--listen", "127.0.0.1:0", "--tokens", str(bad)]
    command += ["--target", "controller", "--assembler", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "line 1 is not" in done.stderr
    assert "Traceback" not in done.stderr
