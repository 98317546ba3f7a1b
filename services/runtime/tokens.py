"""API tokens: a file of names with SHA-256 digests, never the tokens themselves.

Tokens are random, 256 bits: a plain digest of one cannot be reversed, unlike a password's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.runtime.files import write_atomically

PREFIX = "fot_"
"""Every token begins so: secret scanners can find one that got into a repository."""
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._@-]{0,63}) ([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HEADER = "# Devices' API tokens: NAME SHA-256. `forward-ofa token NAME` adds one.\n"


def digest_of(token: str) -> bytes:
    """SHA-256."""
    return hashlib.sha256(token.encode()).digest()


def parse_tokens(data: bytes) -> list[tuple[bytes, str]]:
    """(digest, name) a line; a name may have several. Raises ValueError with the line's number."""
    found = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        matched = _LINE.fullmatch(text)
        if matched is None:
            raise ValueError(f"line {number} is not: a name, a space, 64 hexadecimal digits")
        found.append((bytes.fromhex(matched[2]), matched[1]))
    return found


def add_token(path: Path, name: str) -> str:
    """A new token for `name`; only its digest is kept. The file appears if there is none.

    Raises ValueError for a bad name or file, OSError.
    """
    _check_name(name)
    token = PREFIX + secrets.token_urlsafe(32)
    with _locked(path):
        before = path.read_text() if path.exists() else _HEADER
        parse_tokens(before.encode())
        if not before.endswith("\n"):
            before += "\n"
        _replace(path, f"{before}{name} {digest_of(token).hex()}\n")
    return token


def revoke_tokens(path: Path, name: str) -> int:
    """Removes all tokens of `name`; how many there were. Raises ValueError, OSError."""
    _check_name(name)
    with _locked(path):
        lines = path.read_text().splitlines(keepends=True)
        parse_tokens("".join(lines).encode())
        kept = [line for line in lines if line.split()[:1] != [name]]
        if len(kept) < len(lines):
            _replace(path, "".join(kept))
    return len(lines) - len(kept)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a token: use 1 to 64 letters, digits, '.', '_', '@', '-'"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two commands at once must not lose one's line; the folder is what both have."""
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, text: str) -> None:
    """For the owner alone, or for whoever could read the file before."""
    write_atomically(path, text, path.stat().st_mode & 0o777 if path.exists() else 0o600)
