"""`python -m services.runtime.probe [HOST:PORT]`: is the process there ready?

For the container's health check: standard library only, so that asking every few seconds costs
next to nothing. Kubernetes asks over gRPC instead.
"""

from __future__ import annotations

import argparse
import http.client
import math
import sys
from collections.abc import Sequence

from services.runtime.checks import SettingsError, split_address

DEFAULT = "127.0.0.1:9100"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: yes; 1: no, or nobody answers; 2: no such address."""
    parser = argparse.ArgumentParser(
        prog="python -m services.runtime.probe", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "address", nargs="?", default=DEFAULT,
        help=f"HOST:PORT that was given to --metrics ({DEFAULT})",
    )  # fmt: skip
    parser.add_argument("--live", action="store_true", help="ask whether it lives, not more")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds (3)")
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.timeout) and 0 < options.timeout < 3600):
        parser.error("--timeout is above 0 and below 3600")
    try:
        host, port = split_address(options.address, "address")
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = "/livez" if options.live else "/readyz"
    try:
        status, text = ask(host, port, path, options.timeout)
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"{options.address}{path}: {error}", file=sys.stderr)
        return 1
    print(f"{options.address}{path}: {text}")
    return 0 if status == http.HTTPStatus.OK else 1


def ask(host: str, port: int, path: str, timeout: float) -> tuple[int, str]:
    """Status and body of a GET. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(200).decode(errors="replace").strip()
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
