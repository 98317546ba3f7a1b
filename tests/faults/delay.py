"""A link that delays: `python -m tests.faults.delay IN OUT MILLISECONDS` makes two TUN devices.
Each packet that is sent into IN comes out of OUT so much later. They vanish with this process.

For kernels without netem.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_LARGEST = 65_536
_HELD = 20_000
"""Packets under way at most; more are lost, as on any link."""


def open_tun(name: str) -> int:
    """A file descriptor: a read or write is a packet."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def carry(source: int, sink: int, seconds: float) -> None:
    """For ever."""
    under_way: deque[tuple[float, bytes]] = deque(maxlen=_HELD)
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select([source, sink], [], [], wait)
        if source in ready:
            under_way.append((time.monotonic() + seconds, os.read(source, _LARGEST)))
        if sink in ready:
            os.read(sink, _LARGEST)  # the kernel's own chatter: nothing is routed this way
        while under_way and under_way[0][0] <= time.monotonic():
            os.write(sink, under_way.popleft()[1])


if __name__ == "__main__":
    carry(open_tun(sys.argv[1]), open_tun(sys.argv[2]), float(sys.argv[3]) / 1e3)
