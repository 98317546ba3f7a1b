"""Clients in threads that ask without an end, and what became of each request."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from forward_ofa_device.cloud import UNREACHABLE
from forward_ofa_device.errors import CloudError
from tests.support.clients import ALONE, Client

PATIENCE = 90.0
"""Seconds after which a request has failed, however often it was tried. Not for clients of one
controller, who have to wait for it."""
_INCURABLE = ("INTERNAL", "CORRUPT_VERSION")
"""Reasons with a retry window that no fault of a process, a network or a disk may bring about."""


@dataclass(frozen=True)
class Refusal:
    """An attempt without an answer. window: the cloud said when to come again."""

    at: float
    reason: str
    window: bool


@dataclass
class Answered:
    """One request, from its first attempt to its end. Times on the clock of `time.monotonic`.

    failed: why there was no answer, though the client followed the SDK's rules. wrong: why the
    answer is not that of this request."""

    kind: str
    started: float
    ended: float = 0.0
    failed: str = ""
    wrong: str = ""
    refused: list[Refusal] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.ended - self.started


class Load:
    """Each client asks again and again, `pause` seconds after an answer, until `stop`, which closes
    them all."""

    def __init__(self, clients: Sequence[Client], pause: float = 0.02) -> None:
        self._pause = pause
        self._stopped = threading.Event()
        self.clients = clients
        self.answered: list[Answered] = []
        self._under_way: dict[int, Answered] = {}
        self._crashed: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number, client), daemon=True)
            for number, client in enumerate(clients)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Each client ends the request that it is at. Raises what one has met that is no answer."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self.check()

    def check(self) -> None:
        """Raises RuntimeError if a client has broken down: it no longer asks."""
        if self._crashed:
            raise RuntimeError("a client broke down") from self._crashed[0]

    def under_way_since(self, moment: float) -> bool:
        """Whether a request that began before that moment has not ended yet."""
        return any(one.started <= moment for one in list(self._under_way.values()))

    def ended_between(self, start: float, end: float) -> list[Answered]:
        """The requests that ended between two moments."""
        return [one for one in list(self.answered) if start <= one.ended < end]

    def _run(self, number: int, client: Client) -> None:
        try:
            while not self._stopped.is_set():
                one = self._under_way[number] = Answered(client.kind, time.monotonic())
                self._ask(client, one)
                one.ended = time.monotonic()
                self.answered.append(one)
                time.sleep(self._pause)
        except BaseException as error:
            self._crashed.append(error)
        finally:
            self._under_way.pop(number, None)
            client.close()

    def _ask(self, client: Client, one: Answered) -> None:
        client.begin()
        while True:
            try:
                one.wrong = client.attempt()
                return
            except CloudError as error:
                window = error.retry_ms is not None
                reason = f"{error.code} {error.reason}: {error}"
                one.refused.append(Refusal(time.monotonic(), reason, window))
                hopeless = not window and error.reason != UNREACHABLE
                late = time.monotonic() + client.wait() - one.started > PATIENCE
                late = late and client.kind != ALONE
                if hopeless or late or error.reason in _INCURABLE:
                    one.failed = reason
                    return
            time.sleep(client.wait())
