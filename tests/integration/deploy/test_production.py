"""What the production overlay says about TLS and the gateway, run for real: the services with its
arguments, Envoy with its configuration, certificates in the place of cert-manager's."""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.check.builds import overlay
from deploy.check.objects import World, parse
from forward_ofa_device import Connection, Device
from forward_ofa_device.errors import DeviceError
from services.registry.files import FileRegistry
from services.runtime.tokens import add_token
from tests.support.certificates import Authority
from tests.support.serving import Process
from tests.support.versions import publish

# Set by the test itself, or of things that are not under test here.
_OURS = ("--listen", "--metrics", "--registry", "--sessions", "--mapper", "--assembler")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def mounted(folder: Path, authority: Authority, name: str) -> Path:
    """A Secret of cert-manager for `name`, as a folder."""
    certificate, key = authority.sign(name)
    folder.mkdir(parents=True)
    for source, target in ((certificate, "tls.crt"), (key, "tls.key"), (authority.ca, "ca.crt")):
        shutil.copy(source, folder / target)
    return folder


def arguments(world: World, name: str, places: dict[str, Path]) -> list[str]:
    """Of the Deployment, with the mounted folders where they are here."""
    item = world.get("Deployment", name)
    assert item is not None
    found = []
    for word in item["spec"]["template"]["spec"]["containers"][0]["args"][1:]:
        if not word.startswith((*_OURS, "--log-level", "--registry-cache")):
            for mount, folder in places.items():
                word = word.replace(mount, str(folder))
            found.append(word)
    return found


def envoy_config(world: World, folder: Path, places: dict[str, str]) -> Path:
    item = next(i for i in world.of("ConfigMap") if i["metadata"]["name"].startswith("gateway-"))
    folder.mkdir()
    for name, text in item["data"].items():
        for old, new in places.items():
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "envoy.yaml"


class Cloud:
    """device: address for devices; controller: what is behind; edge: who signs for devices."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        world = World(parse(overlay("production")))
        registry = folder / "registry"
        publish(FileRegistry(registry), "v1")
        internal, self.edge = Authority(folder / "internal"), Authority(folder / "edge")
        self.internal = internal
        self.token = add_token(folder / "tokens", "kiosk")
        tls = "/etc/forward-ofa/tls"

        def start(name: str, *more: str) -> str:
            secret = mounted(folder / "secrets" / name, internal, name)
            told = arguments(world, name, {tls: secret, "/etc/forward-ofa/tokens": folder})
            process = Process(registry, folder / name, *told, *more)
            stack.callback(process.stop, signal.SIGKILL)
            return str(process.wait_ready(240)["address"])

        self.assembler = start("assembler")
        self.controller = start("controller", "--assembler", self.assembler)
        ports = {name: free_port() for name in ("8080", "9100", "9901")}
        self.device, self.metrics = f"localhost:{ports['8080']}", ports["9100"]
        host, port = "127.0.0.1", self.controller.rpartition(":")[2]
        places = {
            "address: controller, port_value: 50051": f"address: {host}, port_value: {port}",
            "/etc/envoy-tls": str(mounted(folder / "secrets/edge", self.edge, "localhost")),
            "/etc/envoy-upstream": str(mounted(folder / "secrets/gateway", internal, "gateway")),
            "/etc/envoy/": f"{folder}/envoy/",
            **{f"port_value: {old}": f"port_value: {new}" for old, new in ports.items()},
        }
        config = envoy_config(world, folder / "envoy", places)
        tool = Path(sys.executable).with_name("envoy")
        command = [str(tool), "-c", str(config), "--disable-hot-restart", "--concurrency", "1"]
        log = stack.enter_context((folder / "envoy.log").open("w"))
        self.log = folder / "envoy.log"
        envoy = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        stack.callback(envoy.wait)
        stack.callback(envoy.kill)

    def wait(self) -> None:
        """Until Envoy sees a ready controller."""
        until = time.monotonic() + 120
        while 'membership_healthy{envoy_cluster_name="controller"} 1' not in self.scraped():
            assert time.monotonic() < until, self.explained()
            time.sleep(0.2)

    def explained(self) -> str:
        of_cluster = [
            x for x in self.scraped().splitlines() if "controller" in x and x[-2:] != " 0"
        ]
        warnings = [x for x in self.log.read_text().splitlines() if "][info]" not in x]
        return "\n".join([*of_cluster, *warnings])

    def scraped(self) -> str:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.metrics, timeout=5)
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        except OSError:
            return ""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with ExitStack() as stack:
        started = Cloud(tmp_path_factory.mktemp("production"), stack)
        started.wait()
        yield started


def refreshed(state: Path, connection: Connection) -> int:
    """Blocks of the network that a device got. Raises DeviceError."""
    with Device(state, connection) as device:
        device.observe("item-1", "item-2", "item-3")
        outcome = device.refresh()
        assert outcome.error is None
        return sum(device.path or ())


@pytest.mark.slow
def test_a_device_with_a_token_is_served_over_tls_on_every_hop(
    cloud: Cloud, tmp_path: Path
) -> None:
    connection = Connection(cloud.device, root_certificates=cloud.edge.ca, token=cloud.token)
    assert refreshed(tmp_path / "a", connection) > 0
    without = Connection(cloud.device, root_certificates=cloud.edge.ca)
    with pytest.raises(DeviceError, match=r"(?i)token"):
        refreshed(tmp_path / "b", without)


@pytest.mark.slow
def test_nobody_goes_round_the_gateway(cloud: Cloud, tmp_path: Path) -> None:
    authority = cloud.internal
    stranger, key = authority.sign("stranger")
    behind = cloud.controller.replace("127.0.0.1", "localhost")
    for certificate in ({}, {"certificate": stranger, "key": key}):
        connection = Connection(
            behind, root_certificates=authority.ca, token=cloud.token, **certificate
        )
        with pytest.raises(DeviceError):
            refreshed(tmp_path / f"{len(certificate)}", connection)
    gateway, key = authority.sign("gateway")
    connection = Connection(
        behind, root_certificates=authority.ca, token=cloud.token, certificate=gateway, key=key
    )
    assert refreshed(tmp_path / "gateway", connection) > 0


@pytest.mark.slow
def test_a_browser_is_answered_and_internal_calls_are_not_passed_on(cloud: Cloud) -> None:
    trusted = ssl.create_default_context(cafile=str(cloud.edge.ca))
    host, _, port = cloud.device.rpartition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=trusted, timeout=10)
    headers = {"content-type": "application/grpc-web+proto", "origin": "https://shop.example"}
    path = "/grpc.health.v1.Health/Check"
    connection.request("POST", path, body=b"\0\0\0\0\0", headers=headers)
    reply = connection.getresponse()
    body = reply.read()
    assert reply.status == 200 and b"grpc-status:0" in body, body
    assert reply.getheader("access-control-allow-origin") == "https://shop.example"
    connection.request("POST", "/forward_ofa_api.assembler.v1.AssemblerService/Assemble", b"")
    assert connection.getresponse().status == 404
