"""The process itself: the signals that stop it, the machine's memory and cores."""

from __future__ import annotations

import asyncio
import ctypes
import signal

from threadpoolctl import threadpool_limits

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 64 * 1024 * 1024, 4 * 1024 * 1024


def stop_on_signal() -> asyncio.Event:
    """Set by SIGTERM or SIGINT; a second one ends the process at once."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopped


def keep_freed_memory() -> None:
    """Let freed buffers of a few MB be used again rather than given back to the system.

    A process that makes and frees hundreds of KB a request else gets fresh pages for each, and
    zeroing those costs a good part of the product. glibc only; nothing happens elsewhere.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def use_one_blas_thread() -> None:
    """Products run in as many threads as we start: numpy's own would take the same cores again."""
    threadpool_limits(limits=1, user_api="blas")
