"""The demo's cloud and devices: each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from forward_ofa_cli.errors import CommandError
from forward_ofa_cli.processes import failed, running, tail, wait_for_file

READY_SECONDS = 120.0

Samples = dict[str, float]


@dataclass(frozen=True)
class Cloud:
    """All services in one process. address: HOST:PORT of gRPC, metrics: of HTTP."""

    address: str
    metrics: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    @contextlib.contextmanager
    def started(cls, registry: Path, log: Path) -> Iterator[Self]:
        """Up, loaded, warm, and found healthy. Raises CommandError with the end of its log."""
        ready = log.with_suffix(".ready.json")
        ready.unlink(missing_ok=True)
        arguments = ["--registry", str(registry), "--target", "all", "--listen", "127.0.0.1:0"]
        arguments += ["--metrics", "127.0.0.1:0", "--ready-file", str(ready)]
        with running("services", arguments, log) as process:
            said = json.loads(wait_for_file(ready, process, log, READY_SECONDS))
            cloud = cls(said["address"], said["metrics"], process, log)
            cloud.check_health()
            yield cloud
            if process.poll() is not None:
                raise CommandError(f"the services stopped early: {failed(process, log)}")

    def check_health(self) -> None:
        """Raises CommandError unless gRPC's health service says SERVING."""
        with grpc.insecure_channel(self.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.RpcError as error:
                raise CommandError(f"health cannot be asked at {self.address}: {error}") from None
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise CommandError(f"health at {self.address} says {answer.status}, not SERVING")

    def scrape(self, summary: dict[str, Any]) -> Samples:
        """The metrics that the report shows, after they were found to agree with the devices.

        Raises CommandError if they cannot be had or disagree.
        """
        try:
            with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as response:
                text = response.read().decode()
        except OSError as error:
            raise CommandError(f"the metrics at {self.metrics} cannot be read: {error}") from None
        found = _samples(text)
        for key in ("networks", "device_flops_true_count", "artefact_bytes_count"):
            if found.get(key) != summary["requests"]:
                raise CommandError(
                    f"the metrics count {found.get(key)} ({key}), the devices made "
                    f"{summary['requests']} requests"
                )
        return found


def _samples(text: str) -> Samples:
    wanted = {
        ("forward_ofa_requests_total", "OK", "RequestNetwork"): "networks",
        ("forward_ofa_device_flops_count", "true"): "device_flops_true_count",
        ("forward_ofa_device_flops_sum", "true"): "device_flops_true_sum",
        ("forward_ofa_device_flops_count", "paper"): "device_flops_paper_count",
        ("forward_ofa_device_flops_sum", "paper"): "device_flops_paper_sum",
        ("forward_ofa_response_bytes_count", "artefact"): "artefact_bytes_count",
        ("forward_ofa_response_bytes_sum", "artefact"): "artefact_bytes_sum",
        ("forward_ofa_response_bytes_sum", "candidates"): "candidate_bytes_sum",
        ("forward_ofa_response_bytes_sum", "bundle"): "bundle_bytes_sum",
    }
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sorted(value.rpartition("/")[2] for value in sample.labels.values())
            key = wanted.get((sample.name, *labels))
            if key is not None:
                found[key] = sample.value
    return found


def population(address: str, folder: Path, out: Console) -> dict[str, Any]:
    """Let the devices of `folder`/lives.jsonl live; what they tell, and the test items' funnel.

    Raises CommandError unless every device got a network and no request failed.
    """
    command = [sys.executable, "-m", "forward_ofa_device", "population", "--json"]
    command += ["--controller", address, "--histories", str(folder / "lives.jsonl")]
    command += ["--state", str(folder / "state"), "--out", str(folder / "steps.jsonl")]
    log = folder / "devices.log"
    # Progress for people goes through; elsewhere it is kept for the error.
    with log.open("wb") as file:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=None if out.is_terminal else file,
            check=False,
        )
    if done.returncode:
        raise CommandError(
            f"the devices ended with exit code {done.returncode}: "
            f"{tail(log) or done.stdout.decode()[-500:]}"
        )
    summary: dict[str, Any] = json.loads(done.stdout)
    if summary["errors"]:
        raise CommandError(f"some requests of the devices failed: {summary['errors']}")
    return {**summary, "test_funnel": _test_funnel(folder)}


def _test_funnel(folder: Path) -> dict[str, float]:
    """What the devices' own rankings were worth for the last item of each user."""
    last: dict[str, Any] = {}
    for line in (folder / "steps.jsonl").read_text().splitlines():
        row = json.loads(line)
        last[row["device"]] = row
    ranks = [row["rank"] for row in last.values()]
    return {
        "devices": len(ranks),
        "recall": sum(rank is not None for rank in ranks) / len(ranks),
        "hit@10": sum(rank is not None and rank <= 10 for rank in ranks) / len(ranks),
    }


def bundle_bytes(registry: Path, version: str) -> int:
    """What a device downloads once for a version: tensors and the shard of popular items."""
    folder = registry / "versions" / version / "bundle"
    names = ("tensors.safetensors", "items-0000.safetensors")
    return sum((folder / name).stat().st_size for name in names)
