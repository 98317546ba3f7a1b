"""A process with network, mounts and process ids of its own: nothing that it makes outlives it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType

TOOLS = ("unshare", "nsenter", "setpriv", "ip", "tc", "iptables", "mount")
_PROBE = (
    "ip link set lo up && ip link add v0 type veth && ip link add b0 type bridge"
    " && mount -t tmpfs none /run && mkdir /run/netns && ip netns add probe"
    " && nsenter --net=/run/netns/probe ip link set lo up"
    " && iptables -w -A INPUT -m statistic --mode random --probability 0.5 -j DROP"
    " && tc qdisc add dev v0 root tbf rate 1mbit burst 64kb latency 9ms"
    " && echo 1 > /proc/sys/net/ipv4/ip_forward"
)


def isolation() -> tuple[list[str], str]:
    """What to put before a command to have it in a sandbox, and "", or nothing and what is
    missing. Tries it."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return [], f"no {', '.join(missing)}"
    # Who is not root may be it in a user namespace, where the system allows those.
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    enter = ["setpriv", "--pdeathsig", "KILL", "unshare", *user, "--net", "--mount", "--pid"]
    enter += ["--fork", "--kill-child", "--mount-proc"]
    tried = subprocess.run([*enter, "sh", "-c", _PROBE], capture_output=True, text=True)
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
        return [], f"no network namespaces ({said})"
    return enter, ""


class _Told(Exception):
    """To end."""


def run_inside(module: str, arguments: Sequence[str]) -> int:
    """Runs `python -m MODULE --inside FOLDER --missing WHY ARGUMENTS`, in a sandbox if one can
    be had. Its exit status; 128 and the signal's number if a signal ended this process, after
    everything that was started has gone, and the folder too.
    """
    enter, missing = isolation()

    def end(number: int, frame: FrameType | None) -> None:
        raise _Told(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    folder, child = "", None
    try:
        folder = tempfile.mkdtemp(prefix="forward-ofa-faults-")
        command = [*enter, sys.executable, "-m", module, "--inside", folder, "--missing", missing]
        child = subprocess.Popen([*command, *arguments], start_new_session=True)
        return child.wait()
    except _Told as told:
        return 128 + int(told.args[0])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if child is not None:
            # The first process of a sandbox takes all others with it; without a sandbox they
            # are of the same group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)
