"""The gateway's Envoy, with its configuration and its preStop hook, in front of services that
behave badly."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2_grpc

from deploy.check.builds import DEPLOY

_FOLDER = DEPLOY / "components" / "gateway"
_SERVICE = "forward_ofa_api.controller.v1.ControllerService"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Controller:
    """Answers each call with its own name after `seconds`; healthy all the time."""

    def __init__(self, name: str, seconds: float = 0.0) -> None:
        self.name, self.seconds, self.calls = name, seconds, 0
        self.ended = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), self._server)
        called = grpc.unary_unary_rpc_method_handler(self._answer)
        methods = {"RequestNetwork": called}
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_SERVICE, methods)]
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        self.ended.wait(self.seconds)
        return self.name.encode()

    def stop(self) -> None:
        self.ended.set()
        self._server.stop(0).wait()


class Gateway:
    """Envoy as the manifests start it, on ports of its own."""

    def __init__(self, folder: Path, controllers: list[Controller]) -> None:
        self.port, self.metrics, self.admin = free_port(), free_port(), free_port()
        text = (_FOLDER / "envoy.yaml").read_text(encoding="utf-8")
        for old, new in ((8080, self.port), (9100, self.metrics), (9901, self.admin)):
            text = text.replace(f"port_value: {old}", f"port_value: {new}")
        config = yaml.safe_load(text)
        cluster = next(c for c in config["static_resources"]["clusters"]
                       if c["name"] == "controller")  # fmt: skip
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {
                "address": "127.0.0.1", "port_value": each.port}}}}
            for each in controllers
        ]}]  # fmt: skip
        # Two addresses of one name, without a DNS server.
        del cluster["cluster_type"]
        cluster["type"] = "STATIC"
        path = folder / "envoy.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        arguments = [str(path) if a == "/etc/envoy/envoy.yaml" else a for a in self._main()["args"]]
        tool = Path(sys.executable).with_name("envoy")
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([str(tool), *arguments], stdout=log, stderr=log)

    def _main(self) -> Any:
        documents = yaml.safe_load_all((_FOLDER / "gateway.yaml").read_text(encoding="utf-8"))
        found = next(d for d in documents if d["kind"] == "Deployment")
        return found["spec"]["template"]["spec"]["containers"][0]

    def wait(self, healthy: int) -> None:
        until = time.monotonic() + 60
        wanted = f'membership_healthy{{envoy_cluster_name="controller"}} {healthy}'
        while wanted not in self.scraped():
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)

    def scraped(self) -> str:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.metrics, timeout=5)
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        except OSError:
            return ""

    def count(self, name: str) -> int:
        found = re.search(rf'(?m)^{name}{{[^}}]*="devices"}} (\d+)$', self.scraped())
        return int(found[1]) if found else 0

    def pre_stop(self) -> subprocess.Popen[bytes]:
        """The hook of the manifest, at this Envoy's port, started."""
        command = self._main()["lifecycle"]["preStop"]["exec"]["command"]
        return subprocess.Popen([a.replace("9901", str(self.admin)) for a in command])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def started(stack: ExitStack, folder: Path, *controllers: Controller) -> Gateway:
    for each in controllers:
        stack.callback(each.stop)
    gateway = Gateway(folder, list(controllers))
    stack.callback(gateway.process.wait)
    stack.callback(gateway.process.kill)
    gateway.wait(len(controllers))
    return gateway


def caller(stack: ExitStack, gateway: Gateway) -> grpc.UnaryUnaryMultiCallable:
    # Of its own, not one that another channel of this process has.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{gateway.port}", options))
    return channel.unary_unary(f"/{_SERVICE}/RequestNetwork")


@pytest.mark.slow
def test_a_controller_that_is_silent_costs_a_part_of_a_devices_patience(
    stack: ExitStack, tmp_path: Path
) -> None:
    silent, well = Controller("silent", 60), Controller("well")
    call = caller(stack, started(stack, tmp_path, silent, well))
    # No more at once than three may be tried again at any time, whatever the budget.
    for _ in range(20):
        before = silent.calls
        running = [call.future(b"", timeout=5) for _ in range(3)]
        assert {one.result() for one in running} == {b"well"}
        # None was tried again where it had just failed.
        assert silent.calls <= before + 3
        if silent.calls >= 10:
            break
    assert silent.calls > 0


@pytest.mark.slow
def test_a_gateway_that_ends_lets_calls_end_and_sends_devices_elsewhere(
    stack: ExitStack, tmp_path: Path
) -> None:
    controller = Controller("well")
    gateway = started(stack, tmp_path, controller)
    call = caller(stack, gateway)
    assert call(b"", timeout=5) == b"well"
    assert gateway.count("envoy_http_downstream_cx_drain_close") == 0
    controller.seconds = 1.5
    running = call.future(b"", timeout=10)
    while controller.calls < 2:
        time.sleep(0.01)
    hook = gateway.pre_stop()
    stack.callback(hook.wait)
    stack.callback(hook.kill)
    # The call that ran ends, and its connection is told to go: GOAWAY, the last one 5 s later.
    assert running.result() == b"well"
    controller.seconds = 0
    until = time.monotonic() + 10
    while not gateway.count("envoy_http_downstream_cx_drain_close"):
        assert time.monotonic() < until, gateway.scraped()
        time.sleep(0.2)
    assert hook.poll() is None, "the hook ended before the connections did"
    # Until the balancer knows, new ones are answered.
    assert caller(stack, gateway)(b"", timeout=5) == b"well"
