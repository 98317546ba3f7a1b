"""For all tests: one torch thread, so that they measure the code and not the machine's cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
