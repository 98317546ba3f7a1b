"""`python -m deploy.monitoring.live`: the whole system for some minutes, then its pictures.

The split services, a trainer with a job, devices that ask, and a Prometheus that scrapes them
with our rules, all on loopback.

Needs `prometheus` on PATH; for pictures `chromium`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.monitoring.picture import draw_all
from forward_ofa.data import generate_log
from forward_ofa_api.controller.v1 import controller_pb2, controller_pb2_grpc

HERE = Path(__file__).parent
_READY_SECONDS = 180.0
_NOT_REACHED = 5
"""The command's exit code for a server that does not answer."""
# What kinds of phones ask: any network, a quantised one, a small one.
_PHONES = ((), ("--encoding", "int8"), ("--max-bytes", "130000"))
_SMALL = ("training.epochs=1", "method.backbone.blocks=6", "candidates=100")


@dataclass(frozen=True)
class Live:
    """prometheus: its URL. targets: job -> HOST:PORT of its metrics. registry: of the versions."""

    prometheus: str
    targets: dict[str, str]
    controller: str
    authority: Path
    registry: Path
    trainer: str


class NotReady(Exception):
    """Something did not start in time; the text has the end of its log."""


@contextlib.contextmanager
def live(folder: Path) -> Iterator[Live]:
    """Everything up, a version trained and served, devices asking, until the block ends."""
    with contextlib.ExitStack() as stack:
        log = _write_log(folder)
        registry = folder / "registry"
        trainer = _start(
            stack, folder, "trainer",
            ["forward_ofa_cli", "trainer", "up", "--home", str(folder / "home"),
             "--registry", str(registry), "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
             "--heartbeat-seconds", "0.5"],
        )  # fmt: skip
        _train(trainer["address"], log, folder)
        certificate, key = _certificate(folder)
        tls = ["--tls-cert", str(certificate), "--tls-key", str(key)]
        mapper = _service(stack, folder, registry, "mapper")
        assembler = _service(stack, folder, registry, "assembler", "--mapper", mapper["address"])
        controller = _service(
            stack, folder, registry, "controller", "--assembler", assembler["address"], *tls
        )
        parts = trainer["parts"]
        targets = {
            "controller": controller["metrics"], "assembler": assembler["metrics"],
            "mapper": mapper["metrics"], "trainer-api": parts["serve"]["metrics"],
            "trainer-beat": parts["beat"]["metrics"], "trainer-worker": parts["worker"]["metrics"],
        }  # fmt: skip
        prometheus = _prometheus(stack, folder, targets)
        running = Live(
            prometheus, targets, controller["address"], certificate, registry, trainer["address"]
        )
        stack.enter_context(_devices(running, folder))
        yield running


def train_again(running: Live, folder: Path) -> None:
    """One more job on the same log, by the gate, as a canary for a fifth of the sessions."""
    _train(running.trainer, folder / "log.csv", folder, "--label", "canary", "--percent", "20",
           label=False)  # fmt: skip


def _write_log(folder: Path) -> Path:
    """A synthetic log as CSV, and the lives of its users for the devices."""
    log = generate_log(users=60, items=160)
    path, lives = folder / "log.csv", folder / "lives.jsonl"
    histories: dict[int, list[str]] = {}
    with path.open("w") as file:
        file.write("user_id,item_id,timestamp\n")
        for user, item, at in zip(log.users, log.items, log.timestamps, strict=True):
            file.write(f"{log.user_ids[user]},{log.item_ids[item]},{at}\n")
            histories.setdefault(int(user), []).append(log.item_ids[item])
    with lives.open("w") as file:
        for user, items in list(histories.items())[:15]:
            life = {"device": log.user_ids[user], "history": items[:-10], "next": items[-10:]}
            file.write(json.dumps(life) + "\n")
    return path


def _train(trainer: str, log: Path, folder: Path, *more: str, label: bool = True) -> None:
    command = [sys.executable, "-m", "forward_ofa_cli", "jobs", "--server", trainer, "submit"]
    command += ["--data", str(log), "--recipe", "quick", "--watch", *more]
    command += [part for setting in _SMALL for part in ("--set", setting)]
    command += ["--gate", "off", *(["--label", "stable"] if label else [])]
    # A machine that has much to do may not answer in time; a second job does no harm.
    for _ in range(5):
        with (folder / "job.log").open("a") as output:
            done = subprocess.run(command, stdout=output, stderr=output, check=False, timeout=600)
        if done.returncode == 0:
            return
        if done.returncode != _NOT_REACHED:
            break
    raise NotReady(f"the job failed: {(folder / 'job.log').read_text()[-2000:]}")


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Its own authority, for 127.0.0.1, for 30 days: PEM files of certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forward-ofa")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "tls.crt", folder / "tls.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def _service(
    stack: contextlib.ExitStack, folder: Path, registry: Path, target: str, *more: str
) -> dict[str, Any]:
    arguments = ["services", "--registry", str(registry), "--target", target]
    arguments += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *more]
    return _start(stack, folder, target, arguments)


def _start(
    stack: contextlib.ExitStack, folder: Path, name: str, module: Sequence[str]
) -> dict[str, Any]:
    """A module of ours with a ready file; what that says."""
    ready = folder / f"{name}.ready"
    process = _run(stack, folder, name, [sys.executable, "-m", *module, "--ready-file", str(ready)])
    _wait(process, folder, name, ready.exists)
    said: dict[str, Any] = json.loads(ready.read_text())
    return said


def _run(
    stack: contextlib.ExitStack, folder: Path, name: str, command: Sequence[str]
) -> subprocess.Popen[bytes]:
    output = stack.enter_context((folder / f"{name}.log").open("wb"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], folder: Path, name: str, done: Any) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not done():
        if process.poll() is not None or time.monotonic() > deadline:
            end = (folder / f"{name}.log").read_text()[-2000:]
            raise NotReady(f"{name} did not start: {end}")
        time.sleep(0.1)


def _prometheus(stack: contextlib.ExitStack, folder: Path, targets: dict[str, str]) -> str:
    """With prometheus.yml as it is but for targets and haste; its URL."""
    config = yaml.safe_load((HERE / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "5s"}
    config["rule_files"] = [str(HERE / "rules" / "*.yaml")]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["prometheus", f"--config.file={path}", f"--web.listen-address=127.0.0.1:{port}"]
    process = _run(
        stack, folder, "prometheus", [*command, f"--storage.tsdb.path={folder / 'tsdb'}"]
    )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=5):
            return True
        return False

    _wait(process, folder, "prometheus", answers)
    return url


@contextlib.contextmanager
def _devices(running: Live, folder: Path) -> Iterator[None]:
    """Devices that live their users' lives, one population after the other, and an app that is
    wrong now and then."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=work, args=(running, folder, stop))
        for work in (_populations, _rubbish)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _populations(running: Live, folder: Path, stop: threading.Event) -> None:
    for turn in range(1_000):
        state = folder / f"state-{turn}"
        command = [sys.executable, "-m", "forward_ofa_device", "population", "--controller"]
        command += [running.controller, "--root-certificates", str(running.authority)]
        command += ["--histories", str(folder / "lives.jsonl"), "--state", str(state)]
        command += ["--out", str(folder / "steps.jsonl"), "--workers", "2", "--pause", "0.1"]
        command += ["--step-seconds", "900", *_PHONES[turn % len(_PHONES)]]
        with (folder / "devices.log").open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        while process.poll() is None:
            if stop.wait(0.2):
                process.terminate()
        shutil.rmtree(state, ignore_errors=True)
        if stop.is_set():
            return


def _rubbish(running: Live, folder: Path, stop: threading.Event) -> None:
    credentials = grpc.ssl_channel_credentials(running.authority.read_bytes())
    with grpc.secure_channel(running.controller, credentials) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        while not stop.wait(1.0):
            with contextlib.suppress(grpc.RpcError):
                request = controller_pb2.RequestNetworkRequest(version="no-such", session_id="?")
                stub.RequestNetwork(request, timeout=5)


def main() -> int:
    """Pictures of all boards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, live(Path(name)) as running:
        started = time.time()
        print(f"Prometheus: {running.prometheus}", file=sys.stderr)
        time.sleep(a.minutes * 30)
        train_again(running, Path(name))
        time.sleep(max(0.0, started + a.minutes * 60 - time.time()))
        for path in draw_all(running.prometheus, started, time.time(), a.out):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
