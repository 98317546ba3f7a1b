"""Writes MLServer's settings for a batch size and starts it in this process."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--other-ports", required=True, help="HTTP, metrics")
    arguments = parser.parse_args()
    http, metrics = (int(port) for port in arguments.other_ports.split(","))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": arguments.port,
        "metrics_port": metrics,
        "grpc_max_message_length": 64 << 20,
        # No second process: the product is short, the way to it would be longer.
        "parallel_workers": 0,
        "root_path": "",
    }
    model: dict[str, object] = {"name": "mapper", "implementation": "runtime.MapperRuntime"}
    if arguments.batch > 1:
        model |= {"max_batch_size": arguments.batch, "max_batch_time": 0.001}
    (arguments.folder / "settings.json").write_text(json.dumps(settings))
    (arguments.folder / "model-settings.json").write_text(json.dumps(model))
    os.environ["BENCH_WEIGHTS"] = arguments.weights
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    sys.path.insert(0, str(Path(__file__).parent))
    # Not its script, which does not outlive a move of the environment.
    start = "from mlserver.cli import main; main()"
    os.execv(sys.executable, [sys.executable, "-c", start, "start", str(arguments.folder)])


main()
