"""Several processes behind one port."""

from __future__ import annotations

import os
import signal
import time
import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from forward_ofa_device.artefact import read_artefact
from services.registry.files import FileRegistry
from tests.support.serving import Process, network_request
from tests.support.versions import publish

pytestmark = pytest.mark.slow


@pytest.fixture
def supervised(tmp_path):
    registry = FileRegistry(tmp_path / "registry")
    tiny = publish(registry, "v1")
    process = Process(registry.root, tmp_path / "all", "--processes", "2")
    ready = process.wait_ready()
    yield tiny, process, ready
    process.stop(signal.SIGKILL)


def ask(address, tiny, seed):
    """One network over a connection of its own, checked for being the right one."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    interest = tiny.interest(seed)
    with grpc.insecure_channel(address, options) as channel:
        request = network_request(tiny)
        request.interest.values = interest.tobytes()
        reply = ControllerServiceStub(channel).RequestNetwork(request, timeout=10)
    weight = read_artefact(reply.artefact.data, tiny.layout).blocks[2]["query.weight"]
    wanted = tiny.layout.split(tiny.parameters(2, interest))["query.weight"]
    assert abs(weight - wanted).max() < 2e-3


def served(metrics):
    text = urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10).read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "forward_ofa_requests_total"
    )


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_all_share_the_work_and_one_that_dies_comes_back(supervised):
    tiny, process, ready = supervised
    children = ready["processes"]
    assert len(children) == 2
    assert {child["address"] for child in children} == {ready["address"]}
    for seed in range(40):
        ask(ready["address"], tiny, seed)
    counts = [served(child["metrics"]) for child in children]
    assert sum(counts) == 40
    assert min(counts) > 0

    os.kill(children[0]["pid"], signal.SIGKILL)
    wait_until(lambda: process.log().count('"ready"') >= 4)
    for seed in range(20):
        ask(ready["address"], tiny, seed)
    assert process.stop() == 0
    assert not process.ready_file.exists()
    wait_until(lambda: not alive(children[1]["pid"]))


def test_nobody_is_left_when_the_supervisor_is_killed(supervised):
    _, process, ready = supervised
    process.stop(signal.SIGKILL)
    wait_until(lambda: not any(alive(child["pid"]) for child in ready["processes"]))


def test_settings_that_no_process_can_start_with_end_it(tmp_path):
    registry = FileRegistry(tmp_path / "registry")
    publish(registry, "v1")
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    tls = ["--tls-cert", str(broken), "--tls-key", str(broken)]
    process = Process(registry.root, tmp_path / "all", "--processes", "2", *tls)
    assert process.process.wait(60) == 2
    assert "certificate" in process.log()
