"""The command, as a process of its own against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from forward_ofa_device.__main__ import main
from forward_ofa_device.population import read_lives
from tests.support.device_cloud import ITEMS, RunningCloud, Version, item

RUN = [sys.executable, "-m", "forward_ofa_device", "population"]


def write_lives(path: Path, devices: int, steps: int) -> Path:
    rng = np.random.default_rng(5)
    lines = []
    for number in range(devices):
        ids = [item(n) for n in rng.permutation(ITEMS)[: 6 + steps]]
        life = {"device": f"u/{number}", "history": ids[:6], "next": ids[6:]}
        lines.append(json.dumps(life))
    path.write_text("\n".join(lines) + "\n")
    return path


def arguments(cloud: RunningCloud, lives: Path, folder: Path, *more: str) -> list[str]:
    return [
        f"--controller={cloud.address}",
        f"--histories={lives}",
        f"--state={folder / 'state'}",
        f"--out={folder / 'rows.jsonl'}",
        "--json",
        *more,
    ]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_a_population_lives(cloud: RunningCloud, tmp_path: Path) -> None:
    lives = write_lives(tmp_path / "lives.jsonl", devices=6, steps=5)
    command = [*RUN, *arguments(cloud, lives, tmp_path, "--shift-threshold=0.02")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "devices 6/6" in done.stderr
    summary = json.loads(done.stdout)
    rows = rows_of(tmp_path)
    assert summary["devices"] == summary["devices_with_network"] == 6
    assert summary["steps"] == len(rows) == 30
    assert summary["requests"] == sum(r["requested"] for r in rows) > 6
    assert len(cloud.controller.log.networks) == summary["requests"]
    assert summary["reasons"].get("interest shift", 0) > 0 == summary["offline_steps"]
    assert sum(summary["kept_blocks"].values()) == summary["updates"]
    assert set(summary["latency_ms"]) == {"p50", "p95", "p99"}
    bundles = [request for request in cloud.controller.log.parts if request.part == 1]
    assert len(bundles) == 1, "the others took it from the first one's disk"
    version = cloud.controller.versions["v1"]
    for row in rows:
        path = tuple(c == "1" for c in row["path"])
        assert row["kept_blocks"] == sum(path)
        size = version.size(path, "float16") if row["outcome"] == "updated" else 0
        assert row["artefact_bytes"] == size
        assert row["rank"] is None or 1 <= row["rank"] <= row["candidates"]
    ranks = [row["rank"] for row in rows]
    assert summary["funnel"]["hit@10"] == pytest.approx(
        np.mean([bool(r and r <= 10) for r in ranks])
    )
    expected = np.mean([1 / np.log2(r + 1) if r and r <= 10 else 0 for r in ranks])
    assert summary["funnel"]["ndcg@10"] == pytest.approx(expected) and any(ranks)


def test_it_goes_on_when_the_server_is_killed(cloud: RunningCloud, tmp_path: Path) -> None:
    lives = write_lives(tmp_path / "lives.jsonl", devices=8, steps=12)
    killed = threading.Event()

    def kill_and_restart() -> None:
        while len(cloud.controller.log.networks) < 12:
            time.sleep(0.01)
        cloud.stop()
        killed.set()
        time.sleep(1.5)
        cloud.controller.serve_only(Version("v2"))
        cloud.start()

    killer = threading.Thread(target=kill_and_restart)
    killer.start()
    more = ("--shift-threshold=0.01", "--pause=0.2", "--step-seconds=300")
    done = subprocess.run(
        [*RUN, *arguments(cloud, lives, tmp_path, *more)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    killer.join()
    assert killed.is_set() and done.returncode == 0, done.stderr
    summary, rows = json.loads(done.stdout), rows_of(tmp_path)
    assert summary["steps"] == 96 and summary["offline_steps"] > 0
    assert summary["errors"]["UNREACHABLE"] > 0
    assert all(row["candidates"] > 0 for row in rows), "every step had a ranking"
    assert set(summary["versions"]) == {"v1", "v2"}, "and it recovered, with the new version"


def test_without_a_server_it_says_so(cloud: RunningCloud, tmp_path: Path) -> None:
    cloud.stop()
    lives = write_lives(tmp_path / "lives.jsonl", devices=2, steps=1)
    command = [*RUN, *arguments(cloud, lives, tmp_path, "--patience=0.3")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "UNREACHABLE" in done.stderr
    assert json.loads(done.stdout)["without_network"] == ["u/0", "u/1"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no device"),
        ("{", "line 1"),
        ('{"device": "a", "history": ["x"]}\n[]', "line 2"),
        ('{"device": "a", "history": [1]}', "text"),
        ('{"device": "", "history": []}', "text"),
        ('{"device": "a", "history": "xyz"}', "lists"),
        ('{"device": "a", "history": []}\n{"device": "a", "history": []}', "twice"),
    ],
)
def test_bad_histories_are_named(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "lives.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=why):
        read_lives(path)


def test_bad_arguments_exit_with_2(
    cloud: RunningCloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lives = write_lives(tmp_path / "lives.jsonl", devices=3, steps=1)
    good = arguments(cloud, lives, tmp_path)
    assert main(["population", *good, "--max-bytes=10"]) == 2
    assert "the smallest needs" in capsys.readouterr().err
    assert not (tmp_path / "rows.jsonl").exists()
    assert main(["population", *good]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["population", *good, "--workers=0"]) == 2
    assert "workers" in capsys.readouterr().err
    assert main(["population", *arguments(cloud, tmp_path / "none", tmp_path)]) == 2


_IMPORTS = """
import sys
before = set(sys.modules)
import forward_ofa_device
{body}
top = {{name.partition(".")[0] for name in set(sys.modules) - before}}
ours = {{"forward_ofa_api", "forward_ofa_device"}}
print(sorted(top - set(sys.stdlib_module_names) - ours - {{"__main__", "__mp_main__"}}))
"""


def third_parties(body: str) -> list[str]:
    code = _IMPORTS.format(body=body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1].replace("'", '"'))


def test_the_sdk_needs_numpy_grpc_and_protobuf_only(cloud: RunningCloud, tmp_path: Path) -> None:
    lives = write_lives(tmp_path / "lives.jsonl", devices=2, steps=2)
    command = ["population", *arguments(cloud, lives, tmp_path)]
    body = f"from forward_ofa_device.__main__ import main\nassert main({command!r}) == 0"
    # What grpcio imports of its own: its runtime, and its sister packages where installed.
    of_grpc = {"typing_extensions", "cython_runtime", "grpc_tools", "grpc_health"}
    of_grpc |= {"grpc_reflection", "grpc_status"}
    others = {name for name in third_parties(body) if not name.startswith("_cython")} - of_grpc
    assert others == {"numpy", "grpc", "google"}


def test_the_file_formats_need_numpy_only() -> None:
    body = "import forward_ofa_device.artefact, forward_ofa_device.bundle, forward_ofa_device.ops"
    assert third_parties(body) == ["numpy"]
    assert third_parties("") == []


def test_torch_in_the_process_is_exit_code_3(cloud: RunningCloud, tmp_path: Path) -> None:
    lives = write_lives(tmp_path / "lives.jsonl", devices=1, steps=1)
    command = ["population", *arguments(cloud, lives, tmp_path)]
    code = (
        "import sys, types; sys.modules['torch'] = types.ModuleType('torch')\n"
        f"from forward_ofa_device.__main__ import main\nsys.exit(main({command!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "torch" in done.stderr


def test_every_public_name_is_there() -> None:
    import forward_ofa_device

    assert all(getattr(forward_ofa_device, name) for name in forward_ofa_device.__all__)
    assert forward_ofa_device.Device.__name__ == "Device"
    with pytest.raises(AttributeError, match="Devise"):
        _ = forward_ofa_device.Devise


def test_rounds_go_on_after_an_outage(cloud: RunningCloud, tmp_path: Path) -> None:
    lives = write_lives(tmp_path / "lives.jsonl", devices=2, steps=1)
    cloud.stop()
    command = [*RUN, *arguments(cloud, lives, tmp_path, "--patience=0.3", "--rounds=3")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    first = json.loads(running.stdout.readline())
    cloud.start()
    rest, _ = running.communicate(timeout=60)
    last = json.loads(rest.splitlines()[-1])
    assert (first["devices_with_network"], last["devices_with_network"]) == (0, 2)
    assert running.returncode == 1, "one round was bad"
    assert len(rest.splitlines()) == 2 and len(rows_of(tmp_path)) == 2
    bundles = [request for request in cloud.controller.log.parts if request.part == 1]
    assert len(bundles) >= 1, "new devices each round"
    assert not any((tmp_path / "state").iterdir())


def test_rounds_without_end(cloud: RunningCloud, tmp_path: Path) -> None:
    lives = write_lives(tmp_path / "lives.jsonl", devices=1, steps=1)
    command = [*RUN, *arguments(cloud, lives, tmp_path, "--rounds=0")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    for _ in range(3):
        assert json.loads(running.stdout.readline())["devices_with_network"] == 1
    assert running.poll() is None
    running.terminate()
    running.communicate(timeout=20)
    bundles = [request for request in cloud.controller.log.parts if request.part == 1]
    assert len(bundles) >= 3, "new devices each round"
    with pytest.raises(SystemExit, match="2"):
        main(["population", *arguments(cloud, lives, tmp_path, "--rounds=-1")])
