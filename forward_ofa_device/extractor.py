"""The structure controller and the interest extractor in numpy (paper, Eq. 3 and 9).

    logits = H(E(x))                E a GRU, H a linear layer, one logit a block
    path   = the blocks to keep
    h      = E'(x), started from the logits

x are the raw embeddings of the items, oldest first, as many as the device has up
to `manifest.extractor_history`: no padding, so a short history is read as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from forward_ofa_device.bundle import DeviceBundle
from forward_ofa_device.structure import choose_path, initial_state


@dataclass(frozen=True)
class Interest:
    """What a device asks a network for.

    path: one boolean a block. vector: h, float32 [D]; personal, it can be inverted.
    """

    path: tuple[bool, ...]
    vector: np.ndarray


class InterestExtractor:
    """E, H and E' of one version."""

    def __init__(self, bundle: DeviceBundle) -> None:
        self._bundle = bundle
        self.history = bundle.manifest.extractor_history
        self._hidden = bundle.manifest.backbone.hidden

    def logits(self, items: np.ndarray) -> np.ndarray:
        """Items [n, D], the most recent last, to the structure's logits [L]."""
        state = gru(self._bundle.controller_gru, self._recent(items), self._zeros())
        head = self._bundle.controller_head
        logits: np.ndarray = head["weight"] @ state + head["bias"]
        return logits

    def interest(self, items: np.ndarray, max_blocks: int | None = None) -> Interest:
        """Items [n, D] to the path, cut to `max_blocks`, and to h computed for that path.

        Without any item (a fresh device) E and E' keep their first states: the path is
        that of H's bias, and h says nothing but the structure.
        """
        path, seen = choose_path(self.logits(items), max_blocks)
        start = initial_state(seen, self._hidden)
        vector = gru(self._bundle.extractor_gru, self._recent(items), start)
        return Interest(tuple(bool(kept) for kept in path), vector)

    def _recent(self, items: np.ndarray) -> np.ndarray:
        return items[max(0, len(items) - self.history) :]

    def _zeros(self) -> np.ndarray:
        return np.zeros(self._hidden, np.float32)


def gru(
    parameters: Mapping[str, np.ndarray], sequence: np.ndarray, state: np.ndarray
) -> np.ndarray:
    """The last state [D] of a GRU over `sequence` [n, D], started from `state` [D].

    torch.nn.GRU's equations: gates in the order reset, update, new, and the reset gate
    applied after the recurrent product of the new gate (ONNX: linear_before_reset = 1).
    """
    inputs = sequence @ parameters["weight_ih"].T + parameters["bias_ih"]
    recurrent, bias = np.ascontiguousarray(parameters["weight_hh"].T), parameters["bias_hh"]
    d = len(state)
    for row in inputs:
        hidden = state @ recurrent + bias
        gates = _sigmoid(row[: 2 * d] + hidden[: 2 * d])
        new = np.tanh(row[2 * d :] + gates[:d] * hidden[2 * d :])
        update = gates[d:]
        state = new + update * (state - new)
    return state


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # Written with tanh, since exp(-x) overflows for a very negative x.
    return np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * x))
