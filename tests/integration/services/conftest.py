"""The services as users run them: one process, and three."""

from __future__ import annotations

import json

import grpc
import pytest

from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from services.registry.files import FileRegistry
from tests.support.serving import Process, three_processes
from tests.support.versions import publish


class Deployment:
    """address, metrics: of the controller. stub: a plain synchronous client."""

    def __init__(self, tiny, processes):
        self.tiny, self.processes = tiny, processes
        ready = json.loads(processes["controller"].ready_file.read_text())
        self.address, self.metrics = ready["address"], ready["metrics"]
        self.ready = ready
        self.channel = grpc.insecure_channel(self.address)
        self.stub = ControllerServiceStub(self.channel)


@pytest.fixture(scope="module", params=["one process", "three processes"])
def deployment(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployment")
    registry = FileRegistry(folder / "registry")
    tiny = publish(registry, "v1")
    if request.param == "one process":
        process = Process(registry.root, folder / "all")
        process.wait_ready()
        made = Deployment(tiny, {"controller": process})
        yield made
        made.channel.close()
        process.stop()
        return
    with three_processes(registry.root, folder) as processes:
        made = Deployment(tiny, processes)
        yield made
        made.channel.close()
