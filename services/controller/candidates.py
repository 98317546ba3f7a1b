"""The items that a session is to rerank: retrieved by interest, remembered, sent only once."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from forward_ofa_device.rows import encode_rows
from services.controller.served import ServedVersion
from services.controller.settings import ControllerSettings
from services.errors import Fault, Reason
from services.ports import Encoding, SessionCandidates, SessionStore

MAX_ETAG = 128


@dataclass(frozen=True)
class CandidateList:
    """See Candidates. If not modified, ids and embeddings are empty."""

    etag: str
    not_modified: bool
    encoding: Encoding
    item_ids: list[str]
    embeddings: bytes

    @property
    def bytes(self) -> int:
        """Ids and embeddings."""
        return len(self.embeddings) + sum(len(item.encode()) for item in self.item_ids)


class CandidateFinder:
    """Retrieval and the session's memory of it; owns the threads that search."""

    def __init__(self, sessions: SessionStore, settings: ControllerSettings) -> None:
        self._sessions, self._settings = sessions, settings
        self._pool = ThreadPoolExecutor(settings.retrieval_workers, "retrieval")

    async def find(
        self,
        served: ServedVersion,
        session_id: str,
        interest: np.ndarray,
        encoding: Encoding,
        held_etag: str,
    ) -> CandidateList:
        """Finds candidates and remembers them for the session. interest: [D].

        Raises Fault NON_FINITE_INTEREST.
        """
        rows = await asyncio.get_running_loop().run_in_executor(
            self._pool, served.index.search, interest, self._settings.candidates
        )
        raw = served.version.encode() + b"\0" + rows.astype("<u4").tobytes()
        found = SessionCandidates(
            served.version, rows.tolist(), hashlib.sha256(raw).hexdigest()[:32]
        )
        await self._sessions.put(session_id, found)
        return _candidate_list(served, found, encoding, held_etag)

    async def current(
        self, served: ServedVersion, session_id: str, encoding: Encoding, held_etag: str
    ) -> CandidateList:
        """What the session was last sent. Raises Fault UNKNOWN_SESSION."""
        known = await self._sessions.get(session_id)
        if known is None or not _usable(known, served):
            raise Fault(Reason.UNKNOWN_SESSION)
        return _candidate_list(served, known, encoding, held_etag)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)


def check_etag(etag: str) -> None:
    """Raises Fault TOO_LARGE."""
    if len(etag) > MAX_ETAG:
        raise Fault(Reason.TOO_LARGE, field="held_candidates_etag", limit=f"{MAX_ETAG} characters")


def _usable(known: SessionCandidates, served: ServedVersion) -> bool:
    """A store is another process: its rows may be of another version, or rubbish."""
    rows, items = known.indices, len(served.item_ids)
    if known.version != served.version or not 0 < len(rows) <= items:
        return False
    return max(rows) < items and len(set(rows)) == len(rows)


def _candidate_list(
    served: ServedVersion, found: SessionCandidates, encoding: Encoding, held_etag: str
) -> CandidateList:
    etag = f"{found.etag}-{encoding}"
    if etag == held_etag:
        return CandidateList(etag, True, encoding, [], b"")
    rows = np.asarray(found.indices, dtype=np.int64)
    ids = [served.item_ids[row] for row in found.indices]
    return CandidateList(
        etag, False, encoding, ids, encode_rows(served.index.items[rows], encoding)
    )
