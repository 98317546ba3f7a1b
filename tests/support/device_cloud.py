"""A small real ControllerService for the device's tests: real gRPC, real codecs.

Its hypernetworks are linear maps with random weights, so that a different interest gives
a different network, and everything that a device verifies is really there.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc
import numpy as np

from forward_ofa_api.controller.v1 import controller_pb2 as pb
from forward_ofa_api.controller.v1.controller_pb2_grpc import (
    ControllerServiceServicer,
    add_ControllerServiceServicer_to_server,
)
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.artefact import (
    BlockLayout,
    artefact_bytes,
    encode_block,
    unpack_path,
    write_artefact,
)
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig
from forward_ofa_device.bundle import BundleManifest, write_bundle, write_shard
from forward_ofa_device.rows import encode_rows

HIDDEN = 16
ITEMS = 90
SHARD = 30
CHUNK = 4096
_NAMES = {
    types.ENCODING_FLOAT32: "float32",
    types.ENCODING_FLOAT16: "float16",
    types.ENCODING_INT8: "int8",
}


def item(number: int) -> str:
    return f"i{number:03d}"


class Version:
    """A published version: every third item is popular (shard 0), then two shards of 30."""

    def __init__(
        self, name: str, backbone: str = "sasrec", blocks: int = 4, head_bias: float = 1.0
    ) -> None:
        rng = np.random.default_rng(sum(name.encode()))
        self.name = name
        self.config = BackboneConfig(
            name=backbone, blocks=blocks, hidden=HIDDEN, history=5, heads=2
        )
        self.layout = BlockLayout.of(build(self.config).block_parameters())
        self.item_ids = [item(n) for n in range(ITEMS)]
        self.embeddings = _half(rng.normal(0, 0.3, (ITEMS, HIDDEN)))
        popular = [n for n in range(ITEMS) if n % 3 == 0]
        others = [n for n in range(ITEMS) if n % 3]
        starts = (item(others[0]), item(others[SHARD]))
        self.manifest = BundleManifest(name, self.config, 8, starts, ITEMS, fusion=0.5)
        self.bundle = write_bundle(self.manifest, self._tensors(rng, head_bias))
        self.shards = []
        for numbers in (popular, others[:SHARD], others[SHARD:]):
            ids = [item(n) for n in numbers]
            self.shards.append(write_shard(name, ids, self.embeddings[numbers]))
        size = self.layout.size
        self.weights = rng.normal(0, 0.1, (blocks, size, HIDDEN)).astype(np.float32)
        self.base = rng.normal(0, 0.1, (blocks, size)).astype(np.float32)

    def _tensors(self, rng: np.random.Generator, head_bias: float) -> dict[str, np.ndarray]:
        d, blocks = HIDDEN, self.config.blocks
        tensors = {}
        for part in ("controller", "extractor"):
            for name, shape in (
                ("weight_ih", (3 * d, d)),
                ("weight_hh", (3 * d, d)),
                ("bias_ih", (3 * d,)),
                ("bias_hh", (3 * d,)),
            ):
                tensors[f"{part}.gru.{name}"] = rng.normal(0, 0.6, shape).astype(np.float32)
        tensors["controller.head.weight"] = rng.normal(0, 1, (blocks, d)).astype(np.float32)
        tensors["controller.head.bias"] = np.full(blocks, head_bias, np.float32)
        for spec in build(self.config).shared_parameters():
            tensors[f"shared.{spec.name}"] = rng.normal(0, 0.3, spec.shape).astype(np.float32)
        tensors["query.weight"] = rng.normal(0, 0.1, (d, d)).astype(np.float32)
        tensors["query.bias"] = rng.normal(0, 0.1, d).astype(np.float32)
        return tensors

    def artefact(self, path: tuple[bool, ...], h: np.ndarray, encoding: str) -> bytes:
        payloads = [
            encode_block(self.base[b] + self.weights[b] @ h, self.layout, encoding)
            for b, kept in enumerate(path)
            if kept
        ]
        return write_artefact(self.name, self.config.name, path, encoding, self.layout, payloads)

    def size(self, path: tuple[bool, ...], encoding: str) -> int:
        return artefact_bytes(self.name, self.config.name, path, encoding, self.layout)


def _half(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float16).astype(np.float32)


@dataclass
class Faults:
    """What goes wrong. break_after: bytes of a stream until the connection breaks, once.
    broken_digest: announced digests are wrong. refuse: (code, detail) for RequestNetwork.
    tamper: changes a response before it leaves."""

    break_after: int | None = None
    broken_digest: bool = False
    refuse: tuple[grpc.StatusCode, types.ErrorDetail] | None = None
    tamper: object = None
    delay: float = 0.0


@dataclass
class Log:
    """What devices asked."""

    networks: list[pb.RequestNetworkRequest] = field(default_factory=list)
    parts: list[pb.GetDeviceBundleRequest] = field(default_factory=list)


class Controller(ControllerServiceServicer):
    def __init__(self, *versions: Version) -> None:
        self.versions = {version.name: version for version in versions}
        self.current = versions[-1].name
        # The version of those sessions that `in_canary` names; "": none.
        self.canary = ""
        self.in_canary: Callable[[str], bool] = lambda session_id: ord(session_id[0]) % 2 == 0
        self.faults = Faults()
        self.log = Log()
        self.ttl_seconds = 3600
        self.candidates = 40
        self.retry_min_ms = 0
        self._lock = threading.Lock()

    def version_of(self, session_id: str) -> str:
        """What a session should use."""
        return self.canary if self.canary and self.in_canary(session_id) else self.current

    def serve_only(self, version: Version) -> None:
        self.versions = {version.name: version}
        self.current = version.name

    def RequestNetwork(
        self, request: pb.RequestNetworkRequest, context: grpc.ServicerContext
    ) -> pb.RequestNetworkResponse:
        with self._lock:
            self.log.networks.append(request)
        time.sleep(self.faults.delay)
        if self.faults.refuse:
            abort(context, *self.faults.refuse)
        version = self._version(request.version, context)
        assert re.fullmatch(r"[A-Za-z0-9_-]{8,64}", request.session_id)
        path = unpack_path(request.path.bits, version.config.blocks)
        h = np.frombuffer(request.interest.values, "<f4")
        assert h.shape == (HIDDEN,) and np.isfinite(h).all()
        encoding = request.accepted_encodings[0]
        data = version.artefact(path, h, _NAMES[encoding])
        digest = hashlib.sha256(data).digest()
        if self.faults.broken_digest:
            digest = bytes(32)
        flops = build(version.config).fixed_flops() + build(version.config).block_flops() * sum(
            path
        )
        response = pb.RequestNetworkResponse(
            version=version.name,
            artefact=types.Artefact(data=data, sha256=digest, encoding=encoding),
            candidates=self._candidates(version, h, request),
            cost=types.Cost(
                true_device_flops=flops.true,
                paper_device_flops=flops.paper,
                artefact_bytes=len(data),
                times=types.StageTimes(map_us=5, total_us=9),
            ),
            ttl_seconds=self.ttl_seconds,
            retry=types.RetryWindow(min_ms=self.retry_min_ms, max_ms=self.retry_min_ms),
            current_version=self.version_of(request.session_id),
        )
        if callable(self.faults.tamper):
            self.faults.tamper(response)
        return response

    def _candidates(
        self, version: Version, h: np.ndarray, request: pb.RequestNetworkRequest
    ) -> types.Candidates:
        best = np.argsort(-(version.embeddings @ h), kind="stable")[: self.candidates]
        ids = [version.item_ids[n] for n in best]
        etag = hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16]
        if etag == request.held_candidates_etag:
            return types.Candidates(etag=etag, not_modified=True)
        encoding = request.accepted_encodings[0]
        rows = encode_rows(version.embeddings[best], _NAMES[encoding])
        return types.Candidates(etag=etag, item_ids=ids, encoding=encoding, embeddings=rows)

    def GetDeviceBundle(
        self, request: pb.GetDeviceBundleRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GetDeviceBundleResponse]:
        with self._lock:
            self.log.parts.append(request)
        wanted = request.version
        if not wanted:
            wanted = self.version_of(request.session_id) if request.session_id else self.current
        version = self._version(wanted, context)
        if request.part == pb.BUNDLE_PART_TENSORS:
            data = version.bundle
        elif request.part == pb.BUNDLE_PART_ITEMS and request.shard < len(version.shards):
            data = version.shards[request.shard]
        else:
            abort(context, grpc.StatusCode.NOT_FOUND, types.ErrorDetail(reason="UNKNOWN_PART"))
        if request.offset > len(data):
            abort(context, grpc.StatusCode.OUT_OF_RANGE, types.ErrorDetail(reason="BAD_OFFSET"))
        digest = bytes(32) if self.faults.broken_digest else hashlib.sha256(data).digest()
        first = {"version": version.name, "total_bytes": len(data), "sha256": digest}
        for offset in range(request.offset, max(len(data), request.offset + 1), CHUNK):
            if self.faults.break_after is not None and offset >= self.faults.break_after:
                self.faults.break_after = None
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            chunk = data[offset : offset + CHUNK]
            yield pb.GetDeviceBundleResponse(offset=offset, data=chunk, **first)
            first = {}

    def _version(self, name: str, context: grpc.ServicerContext) -> Version:
        if name not in self.versions:
            detail = types.ErrorDetail(reason="UNKNOWN_VERSION", current_version=self.current)
            abort(context, grpc.StatusCode.FAILED_PRECONDITION, detail)
        return self.versions[name]


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, detail: types.ErrorDetail) -> None:
    status = types.StatusDetails(code=code.value[0], message=detail.reason)
    status.details.add().Pack(detail)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, detail.reason)


class RunningCloud:
    """A Controller on a loopback port that can be stopped and started again."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.port = 0
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        add_ControllerServiceServicer_to_server(self.controller, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        server.start()
        self._server = server

    def stop(self) -> None:
        if self._server:
            self._server.stop(0).wait()
            self._server = None
