"""From the structure controller's logits to a path (paper, Eq. 3, one logit a block)."""

from __future__ import annotations

import numpy as np

SKIP_LOGIT = -4.0
"""What a block's logit becomes when a budget cuts it: sigmoid(-4) = 0.018, a plain "skip".

E' starts from the logits, so it sees the structure that will really run; training
draws such cuts (`MethodConfig.cut_probability`), so the parameters fit it.
"""


def choose_path(logits: np.ndarray, max_blocks: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits [L] to (path [L] booleans, logits [L] as E' must see them).

    A block is kept iff its logit is >= 0; the best one is kept even if none is, since a
    network has at least one block. With `max_blocks` only the best so many are kept, and
    the logits of those that were cut become SKIP_LOGIT. Ties: the earlier block wins.
    """
    if max_blocks is not None and max_blocks < 1:
        raise ValueError("a network has at least one block")
    order = np.argsort(-logits, kind="stable")
    path = logits >= 0
    path[order[0]] = True
    if max_blocks is None:
        return path, logits
    cut = np.zeros_like(path)
    cut[order[max_blocks:]] = True
    return path & ~cut, np.where(cut & path, np.float32(SKIP_LOGIT), logits).astype(np.float32)


def initial_state(logits: np.ndarray, hidden: int) -> np.ndarray:
    """Logits [L] to the first state of E' [hidden]: the logits, then zeros."""
    state = np.zeros(hidden, dtype=np.float32)
    state[: len(logits)] = logits
    return state
