"""The HTTP port of a process: GET /metrics, /livez, /readyz."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from services.runtime.checks import SettingsError, split_address
from services.runtime.logs import log

_LOGGER = logging.getLogger(__name__)
Probe = Callable[[], bool]


class Scraped(Protocol):
    """Anything with time series."""

    @property
    def registry(self) -> CollectorRegistry: ...


class HttpEndpoint:
    """In a thread of its own, so that it answers when the event loop does not.

    address: HOST:PORT; port 0: a free one. Raises SettingsError if the address cannot be taken.
    /livez and /readyz say 503 until `probes` are set.
    """

    def __init__(self, metrics: Scraped, address: str) -> None:
        host, port = split_address(address, "metrics")
        kind = _Http6 if ":" in host else _Http
        self._probes: dict[str, Probe] = {}
        members = {"registry": metrics.registry, "probes": self._probes}
        handler = type("Handler", (_Handler,), members)
        try:
            self._server = kind((host, port), handler)
        except OSError as error:
            raise SettingsError(f"metrics cannot listen on {address}: {error.strerror}") from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_port}"
        # A short poll, since that is how long `stop` waits.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="metrics", daemon=True
        )
        self._thread.start()

    def probe(self, *, alive: Probe, ready: Probe) -> None:
        """From now on /livez and /readyz answer what these say."""
        self._probes.update({"/livez": alive, "/readyz": ready})

    def stop(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(MetricsHandler):
    """Prometheus' own handler for /metrics; it negotiates the format (OpenMetrics has
    exemplars) and compression."""

    probes: dict[str, Probe]
    timeout = 30

    def version_string(self) -> str:
        # Python's own default tells strangers which Python.
        return "forward-ofa"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in ("/metrics", "/"):
            super().do_GET()
        elif path in ("/livez", "/readyz"):
            probe = self.probes.get(path)
            good = probe is not None and probe()
            self._say(200 if good else 503, "ok" if good else "not now")
        else:
            self._say(404, "there are /metrics, /livez and /readyz")

    def _say(self, status: int, text: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    # Python's own default lets a second process take the port on some systems.
    allow_reuse_port = False

    def server_bind(self) -> None:
        # HTTPServer would look the host up in DNS here, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A scraper that hangs up is no news; Python's own default prints a traceback.
        kind = type(sys.exception()).__name__
        log(_LOGGER, logging.INFO, "a scrape broke off", error=kind)


class _Http6(_Http):
    address_family = socket.AF_INET6
