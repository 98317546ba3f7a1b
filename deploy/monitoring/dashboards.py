"""`python -m deploy.monitoring.dashboards [--check]`: writes grafana/dashboards/*.json, or fails if
they are not what boards.py says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.monitoring.boards import BOARDS
from deploy.monitoring.panels import to_json

FOLDER = Path(__file__).parent / "grafana" / "dashboards"


def main() -> int:
    """Exit code 1: a file is not fresh."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for board in BOARDS:
        path, text = FOLDER / f"{board.uid}.json", to_json(board)
        if check:
            if not path.exists() or path.read_text() != text:
                stale.append(path.name)
        else:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale:
        print(f"not fresh: {', '.join(stale)}. Run `make dashboards`.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
