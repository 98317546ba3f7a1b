"""Hosts that are network namespaces, joined by a bridge, with links that can be cut or slowed.

Only for a process in a sandbox (`sandbox.py`): its network, its mounts and its process ids are its
own, so whatever is made here is gone when it ends, however it ends.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.hosts import Host

HERE = "10.77.0.1"
"""Of the sandbox itself, where the clients are."""
_HERE = Host("clients", HERE)
_REJECT = ("REJECT", "--reject-with", "tcp-reset")


class Network:
    """The namespaces' names lie in a /run of the sandbox's own."""

    def __init__(self) -> None:
        _HERE.run("mount", "-t", "tmpfs", "none", "/run")
        Path("/run/netns").mkdir()
        _HERE.run("ip", "link", "add", "bridge0", "type", "bridge")
        _HERE.run("ip", "address", "add", f"{HERE}/24", "dev", "bridge0")
        for device in ("lo", "bridge0"):
            _HERE.run("ip", "link", "set", device, "up")
        # Delayed packets come in by one device and go on by another.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        _any_way_in("all")
        self._links: list[subprocess.Popen[bytes]] = []
        self._hosts = 0

    def host(self, name: str) -> Host:
        """A new one, with an address of its own."""
        self._hosts += 1
        number = self._hosts
        # `ip netns exec` would mount a /sys, which a user namespace may not.
        enter = ("nsenter", f"--net=/run/netns/{name}")
        host = Host(name, f"10.77.0.{10 + number}", enter)
        _HERE.run("ip", "netns", "add", name)
        _HERE.run("ip", "link", "add", f"port{number}", "type", "veth", "peer", "eth0",
                  "netns", name)  # fmt: skip
        _HERE.run("ip", "link", "set", f"port{number}", "master", "bridge0", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "lo", "up")
        host.run("ip", "link", "set", "eth0", "up")
        return host

    def cut(self, host: Host, others: Sequence[str], *, reject: bool = False) -> None:
        """Nothing passes between a host and these addresses, silently; reject: what comes from
        them is answered with a reset."""
        for other in others:
            target = _REJECT if reject else ("DROP",)
            protocol = ("-p", "tcp") if reject else ()
            host.run("iptables", "-w", "-A", "INPUT", "-s", other, *protocol, "-j", *target)
            if not reject:
                host.run("iptables", "-w", "-A", "OUTPUT", "-d", other, "-j", "DROP")

    def lose(self, host: Host, share: float) -> None:
        """Loses this share of the packets that come to a host, and of those that leave it."""
        chance = ("-m", "statistic", "--mode", "random", "--probability", str(share))
        for chain in ("INPUT", "OUTPUT"):
            host.run("iptables", "-w", "-A", chain, *chance, "-j", "DROP")

    def slow(self, host: Host, others: Sequence[str], mbit: int, delay_ms: int) -> None:
        """What a host sends to these addresses goes through a link of this rate, and arrives so
        much later. What comes back is as quick as ever: the delay is that of a round trip."""
        number = len(self._links)
        inner, outer = f"slow{number}", f"out{number}"
        command = [sys.executable, "-m", "tests.faults.delay", inner, outer, str(delay_ms)]
        self._links.append(subprocess.Popen(command))
        _wait_for_device(outer)
        _any_way_in(outer)
        _HERE.run("ip", "link", "set", outer, "up")
        _HERE.run("ip", "link", "set", inner, "netns", host.name)
        host.run("ip", "link", "set", inner, "up")
        host.run("tc", "qdisc", "add", "dev", inner, "root", "tbf", "rate", f"{mbit}mbit",
                 "burst", "64kb", "latency", "400ms")  # fmt: skip
        for other in others:
            host.run("ip", "route", "add", f"{other}/32", "dev", inner, "src", host.address)

    def heal(self, *hosts: Host) -> None:
        """All links are as they were."""
        for host in hosts:
            host.run("iptables", "-w", "-F")
        for link in self._links:
            # Its devices go with it, and the routes with them.
            if link.poll() is None:
                link.kill()
                link.wait()


def _any_way_in(device: str) -> None:
    """Packets may come from an address whose answers go another way."""
    Path(f"/proc/sys/net/ipv4/conf/{device}/rp_filter").write_text("0")


def _wait_for_device(name: str) -> None:
    end = time.monotonic() + 10
    while not Path(f"/proc/sys/net/ipv4/conf/{name}").exists():
        if time.monotonic() > end:
            raise RuntimeError(f"no device {name}: is /dev/net/tun there?")
        time.sleep(0.02)
