"""The items that a session is to rerank: retrieved by interest, remembered, sent only once.

Shape legend: D hidden width, n items of a list, k of them new to the device.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forward_ofa_device.partial import held_positions
from forward_ofa_device.rows import encode_rows
from services.controller.served import ServedVersion
from services.controller.settings import ControllerSettings
from services.errors import Fault, Reason
from services.ports import Encoding, SessionCandidates, SessionStore

MAX_ETAG = 128


@dataclass(frozen=True)
class CandidateOrder:
    """For whom candidates are, and what the device can do with them.

    held_etag: of the list that it holds, "": none. accept_partial: whether the answer may
    leave out what that list has.
    """

    session_id: str
    encoding: Encoding = "float16"
    held_etag: str = ""
    accept_partial: bool = False


@dataclass(frozen=True)
class CandidateList:
    """See Candidates. If not modified, ids and embeddings are empty; if partial, they are of the
    new items alone, and base_etag and held_positions are set."""

    etag: str
    not_modified: bool
    encoding: Encoding
    item_ids: list[str]
    embeddings: bytes
    base_etag: str = ""
    held_positions: bytes = b""

    @cached_property
    def bytes(self) -> int:
        """Ids, embeddings and positions."""
        ids = len("".join(self.item_ids).encode())
        return len(self.embeddings) + len(self.held_positions) + ids


class CandidateFinder:
    """Retrieval and the session's memory of it; owns the threads that search."""

    def __init__(self, sessions: SessionStore, settings: ControllerSettings) -> None:
        self._sessions, self._settings = sessions, settings
        self._pool = ThreadPoolExecutor(settings.retrieval_workers, "retrieval")

    async def find(
        self, served: ServedVersion, interest: np.ndarray, order: CandidateOrder
    ) -> CandidateList:
        """Finds candidates and remembers them for the session. interest: [D].

        Raises Fault NON_FINITE_INTEREST.
        """
        rows = await self._search(served, interest)
        found = SessionCandidates(served.version, rows.astype("<u4").tobytes())
        etag = found.etag
        if order.accept_partial and order.held_etag not in ("", _with_encoding(etag, order)):
            base = await self._sessions.swap(order.session_id, found)
        else:
            base = None
            self._sessions.put(order.session_id, found)
        return candidate_list(served, found, order, base)

    async def _search(self, served: ServedVersion, interest: np.ndarray) -> np.ndarray:
        index, count = served.index, self._settings.candidates
        if index.inline:
            # What the caller started beside this comes first: it has further to go.
            await asyncio.sleep(0)
            return index.search(interest, count)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, index.search, interest, count)

    async def current(self, served: ServedVersion, order: CandidateOrder) -> CandidateList:
        """What the session was last sent. Raises Fault UNKNOWN_SESSION."""
        known = await self._sessions.get(order.session_id)
        if known is None or not is_usable(known, served):
            raise Fault(Reason.UNKNOWN_SESSION)
        return candidate_list(served, known, order, None)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)


def check_etag(etag: str) -> None:
    """Raises Fault TOO_LARGE."""
    if len(etag) > MAX_ETAG:
        raise Fault(Reason.TOO_LARGE, field="held_candidates_etag", limit=f"{MAX_ETAG} characters")


def is_usable(known: SessionCandidates, served: ServedVersion) -> bool:
    """A store is another process: its rows may be of another version, or rubbish."""
    items, rows = len(served.item_ids), np.frombuffer(known.rows, "<u4")
    if known.version != served.version or not 0 < len(rows) <= items:
        return False
    return bool(rows.max() < items) and len(np.unique(rows)) == len(rows)


def candidate_list(
    served: ServedVersion,
    found: SessionCandidates,
    order: CandidateOrder,
    base: SessionCandidates | None,
) -> CandidateList:
    """What is sent of a list. base: what the session was sent before, if it is known; not
    believed: the list is whole unless base is what the device says it holds."""
    etag = _with_encoding(found.etag, order)
    if etag == order.held_etag:
        return CandidateList(etag, True, order.encoding, [], b"")
    rows = np.frombuffer(found.rows, "<u4")
    if base is not None and _with_encoding(base.etag, order) == order.held_etag:
        partial = _partial_list(served, etag, rows, order, base)
        if partial is not None:
            return partial
    ids, embeddings = _ids_and_embeddings(served, rows, order.encoding)
    return CandidateList(etag, False, order.encoding, ids, embeddings)


def _partial_list(
    served: ServedVersion,
    etag: str,
    rows: np.ndarray,
    order: CandidateOrder,
    base: SessionCandidates,
) -> CandidateList | None:
    """None if it would not be smaller than the whole list."""
    if not is_usable(base, served):
        return None
    positions, new = held_positions(np.frombuffer(base.rows, "<u4"), rows)
    row_bytes = len(encode_rows(served.index.items[:1], order.encoding))
    if np.count_nonzero(~new) * row_bytes <= len(positions):
        return None
    ids, embeddings = _ids_and_embeddings(served, rows[new], order.encoding)
    return CandidateList(etag, False, order.encoding, ids, embeddings, order.held_etag, positions)


def _ids_and_embeddings(
    served: ServedVersion, rows: np.ndarray, encoding: Encoding
) -> tuple[list[str], bytes]:
    ids = [served.item_ids[row] for row in rows.tolist()]
    return ids, encode_rows(served.index.items[rows.astype(np.int64)], encoding)


def _with_encoding(etag: str, order: CandidateOrder) -> str:
    """A list in another encoding is another list to the device."""
    return f"{etag}-{order.encoding}"
