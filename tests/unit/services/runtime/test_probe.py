"""The container's health check, against the HTTP port that services have."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.runtime.http import HttpEndpoint
from services.runtime.metrics import Metrics
from services.runtime.probe import main


@pytest.fixture
def endpoint():
    made = HttpEndpoint(Metrics(), "127.0.0.1:0")
    yield made
    made.stop()


def test_it_says_what_the_process_says(endpoint, capsys):
    assert main([endpoint.address]) == 1, "no probes yet: starting"
    endpoint.probe(alive=lambda: True, ready=lambda: False)
    assert main([endpoint.address]) == 1
    assert main([endpoint.address, "--live"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{endpoint.address}/readyz: not now",
        f"{endpoint.address}/livez: ok",
    ]
    endpoint.probe(alive=lambda: True, ready=lambda: True)
    assert main([endpoint.address]) == 0


def test_nobody_there(endpoint, capsys):
    address = endpoint.address
    endpoint.stop()
    endpoint.stop = lambda: None
    assert main([address, "--timeout", "0.5"]) == 1
    assert address in capsys.readouterr().err


def test_no_address(capsys):
    assert main(["here"]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_it_loads_the_standard_library_only():
    code = (
        "import sys; before = set(sys.modules); import services.runtime.probe\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['services']"
