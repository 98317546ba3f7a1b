"""The systems that are measured: how each is started, asked and read."""

from __future__ import annotations

import base64
import json
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.serving import messages
from benchmarks.serving.load import Job
from benchmarks.serving.loader import Loader
from benchmarks.serving.servers import Servers, free_ports, services
from benchmarks.serving.venvs import PEERS, interpreter
from benchmarks.serving.version import BenchVersion
from benchmarks.serving.workload import Workload
from forward_ofa_device.artefact import Encoding

BATCH = 16
"""How many requests a peer may put into one product, where it has batching."""

Make = Callable[[bytes, bytes], bytes]
"""(path, interest) to a request."""


@dataclass(frozen=True)
class System:
    """A running server and how to speak to it.

    batch: 1, or how many requests it may put together. pids: its processes, without those
    that they have started.
    """

    name: str
    version: BenchVersion
    target: str
    pids: tuple[int, ...]
    reader: str
    method: str
    kind: str = "grpc"
    batch: int = 1
    make: Make | None = None

    def job(self, workload: Workload, ask: Ask, loader: Loader) -> Job:
        """Closed-loop job of one client; change it with dataclasses.replace."""
        if self.make is not None:
            pairs = zip(workload.paths, workload.interests, strict=True)
            requests = [self.make(path, interest) for path, interest in pairs]
        else:
            requests = self._our_requests(workload, ask)
        job = Job(
            op="closed",
            kind=self.kind,
            target=self.target,
            method=self.method,
            reader=self.reader,
            requests=[request.hex() for request in requests],
            paths=[path.hex() for path in workload.paths],
            interests=[interest.hex() for interest in workload.interests],
            weights=str(self.version.weights),
            backbone=self.version.backbone,
            encoding=ask.encoding,
            pids=list(self.pids),
        )
        if not ask.held:
            return job
        etags = loader.run(replace(job, op="etags"))
        held = self._our_requests(workload, ask, etags)
        return replace(job, requests=[request.hex() for request in held], held=True)

    def _our_requests(self, workload: Workload, ask: Ask, etags: Sequence[str] = ()) -> list[bytes]:
        return [
            messages.our_request(
                self.version.version,
                f"bench-{ask.encoding}-{index:06d}",
                path,
                interest,
                ask.encoding,
                etags[index] if etags else "",
            )
            for index, (path, interest) in enumerate(
                zip(workload.paths, workload.interests, strict=True)
            )
        ]


@dataclass(frozen=True)
class Ask:
    """What only our API has. held: the session has its candidates; False: they are sent."""

    encoding: Encoding = "float32"
    held: bool = False


@dataclass
class Starter:
    """Starts systems. ours: more options for `python -m services`."""

    servers: Servers
    version: BenchVersion
    ours: Sequence[str] = field(default_factory=list)

    def one_process(self, name: str = "ours", version: BenchVersion | None = None) -> System:
        """Everything in one process. Raises Unavailable."""
        version = version or self.version
        pid, address = self._service(name, version, "--target", "all", *self.ours)
        return System(name, version, address, (pid,), "ours", messages.OURS)

    def three_processes(self, name: str = "ours split") -> System:
        """Mapper, assembler and controller apart. Raises Unavailable."""
        mapper, mapper_at = self._service(f"{name} mapper", self.version, "--target", "mapper")
        assembler, assembler_at = self._service(
            f"{name} assembler", self.version, "--target", "assembler", "--mapper", mapper_at
        )
        controller, address = self._service(
            f"{name} controller",
            self.version,
            *("--target", "controller", "--assembler", assembler_at),
        )
        pids = (mapper, assembler, controller)
        return System(name, self.version, address, pids, "ours", messages.OURS)

    def _service(self, name: str, version: BenchVersion, *options: str) -> tuple[int, str]:
        file = self.servers.folder / f"{name.replace(' ', '-')}.ready"
        file.unlink(missing_ok=True)
        command = services("--registry", str(version.registry), "--listen", "127.0.0.1:0")
        command += ["--ready-file", str(file), "--log-level", "WARNING"]
        process = self.servers.start(name, [*command, *options])
        return process.pid, self.servers.wait_ready_file(process, name, file)["address"]

    def echo(self, size: int) -> System:
        """See `benchmarks.serving.echo`."""
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "benchmarks.serving.echo", str(port), str(size)]
        process = self.servers.start("echo", command)
        self.servers.wait_port(process, "echo", port)
        target, pids = f"127.0.0.1:{port}", (process.pid,)
        return System("echo", self.version, target, pids, "echo", messages.PLAIN, make=_as_ours)

    def peer(self, name: str, batch: int) -> System:
        """One of PEER_NAMES. Raises Unavailable."""
        port, *others = free_ports(3)
        folder = PEERS / name
        label = f"{name} batch {batch}"
        command = [str(interpreter(name)), str(folder / "server.py")]
        command += ["--weights", str(self.version.weights.resolve()), "--port", str(port)]
        command += ["--batch", str(batch)]
        if name in ("mlserver", "pytriton"):
            command += ["--other-ports", ",".join(map(str, others))]
        if name == "mlserver":
            command += ["--folder", str(self.servers.folder / f"mlserver-{batch}")]
        environment = {"LD_LIBRARY_PATH": _libpython()} if name == "pytriton" else {}
        process = self.servers.start(label, command, environment)
        self.servers.wait_port(process, label, port)
        kind, method, reader, make = _PEERS[name]
        target = f"127.0.0.1:{port}"
        return System(name, self.version, target, (process.pid,), reader, method, kind, batch, make)


def _as_ours(path: bytes, interest: bytes) -> bytes:
    """A request of the size of ours."""
    return messages.our_request("20260101-000000-00000000", "bench-echo", path, interest, "float32")


def _text_tensor(path: bytes, interest: bytes) -> bytes:
    return messages.kserve_request(interest, text=True)


def _float_tensor(path: bytes, interest: bytes) -> bytes:
    return messages.kserve_request(interest, text=False)


def _json(path: bytes, interest: bytes) -> bytes:
    return json.dumps({"interest": base64.b64encode(interest).decode()}).encode()


def _bytes(path: bytes, interest: bytes) -> bytes:
    return interest


_PEERS: dict[str, tuple[str, str, str, Make]] = {
    "grpc_torch": ("grpc", messages.PLAIN, "plain", _bytes),
    "mlserver": ("grpc", messages.KSERVE, "kserve-text", _text_tensor),
    "pytriton": ("grpc", messages.KSERVE, "kserve", _float_tensor),
    "litserve": ("http", "/predict", "plain", _json),
}
PEER_NAMES = tuple(_PEERS)
BARE = "grpc_torch"
BARE_BATCHING = "bare, with a batching queue"
TITLES = {
    "grpc_torch": "bare grpc.aio + torch",
    "mlserver": "MLServer",
    "pytriton": "PyTriton",
    "litserve": "LitServe",
}


def _libpython() -> str:
    """The folder of this interpreter's shared library: Triton's Python backend loads it."""
    return str(sysconfig.get_config_var("LIBDIR") or "")
