"""Small interaction logs on disk."""

from __future__ import annotations

from pathlib import Path

from forward_ofa.data import generate_log


def write_csv(path: Path, users: int = 120, items: int = 200, header: str = "") -> Path:
    """A synthetic log as CSV: user_id,item_id,timestamp."""
    log = generate_log(users=users, items=items)
    rows = zip(log.users, log.items, log.timestamps, strict=True)
    lines = [f"{log.user_ids[user]},{log.item_ids[item]},{time}" for user, item, time in rows]
    path.write_text("\n".join([header or "user_id,item_id,timestamp", *lines]) + "\n")
    return path
