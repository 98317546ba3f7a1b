"""Small interaction logs on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from forward_ofa.data import SequenceDataset, generate_log


def training_targets(data: SequenceDataset) -> tuple[np.ndarray, np.ndarray]:
    """(users, positions) of all training targets."""
    counts = data.target_counts()
    users = np.repeat(np.arange(data.num_users), counts)
    return users, np.concatenate([np.arange(1, count + 1) for count in counts])


def write_csv(path: Path, users: int = 120, items: int = 200, header: str = "") -> Path:
    """A synthetic log as CSV: user_id,item_id,timestamp."""
    log = generate_log(users=users, items=items)
    rows = zip(log.users, log.items, log.timestamps, strict=True)
    lines = [f"{log.user_ids[user]},{log.item_ids[item]},{time}" for user, item, time in rows]
    path.write_text("\n".join([header or "user_id,item_id,timestamp", *lines]) + "\n")
    return path
