"""Exit codes and texts of what users get wrong; `forward-ofa --help` promises them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from forward_ofa_cli.errors import MEANING
from tests.support.logs import write_csv

COMMANDS = (
    "demo", "train", "evaluate", "publish", "versions", "serve", "device", "cost", "jobs",
    "trainer",
)  # fmt: skip


def test_help_lists_commands_and_exit_codes(cli):
    shown = cli("--help").stdout
    assert all(command in shown for command in COMMANDS)
    assert all(f"{code:d}  {text}" in shown for code, text in MEANING.items())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_example(cli, command):
    result = cli(command, "list", "--help") if command == "versions" else cli(command, "--help")
    assert result.exit_code == 0
    assert f"forward-ofa {command}" in result.stdout


def test_an_unknown_option_is_wrong_usage(cli):
    assert cli("train", "--no-such-option").exit_code == 2


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        (("train", "--data", "nowhere.csv"), 3, "neither a file or folder on disk nor"),
        (("train", "--recipe", "none"), 2, "unknown recipe"),
        (("train", "--backbone", "none"), 2, "none"),
        (("train", "--learning-rate", "-1"), 2, "learning_rate"),
        (("train", "--learning-rate", "nan"), 2, "learning_rate: nan is no finite number"),
        (("train", "--temperature", "inf"), 2, "temperature: inf is no finite number"),
        (("train", "--system", "sttd", "--set", "soft_temperature=nan"), 2, "soft_temperature"),
        (
            ("train", "--system", "finetune", "--set", "rates=0.1,inf"),
            2,
            "no finite number",
        ),
        (("train", "--system", "sttd", "--set", "rank=2000000"), 2, "rank must be at most"),
        (("train", "--seed", "-1"), 2, "seed must be at least 0 and at most 4,294,967,295"),
        (("train", "--candidates", "0"), 2, "candidates must be at least 1"),
        (("train", "--data", "/dev/zero"), 3, "neither a regular file nor a folder"),
        (("train", "--hidden", "30", "--blocks", "31"), 2, "hidden"),
        (("demo", "--data", "nowhere.csv"), 3, "nowhere.csv"),
        (("demo", "--data", "synthetic", "--reuse"), 4, "holds no complete run"),
        (("evaluate", "--run-dir", "none"), 4, "forward-ofa train --run-dir none"),
        (("evaluate", "--run-dir", "none", "--split", "train"), 2, "validation or test"),
        (("publish", "--run-dir", "none"), 4, "holds no complete run"),
        (("versions", "list", "--registry", "none"), 4, "there is no registry in none"),
        (("serve",), 4, "make demo"),
        (("serve", "--registry", "none"), 2, "there is no registry at none"),
        (("serve", "--registry", ".", "--target", "mappr"), 2, "mappr"),
        (("serve", "--registry", ".", "--listen", "0.0.0.0:1"), 2, "--tls-cert"),
        (("serve", "--registry", ".", "--target", "trainer"), 2, "--broker"),
        (("serve", "--registry", ".", "--target", "trainer,mapper"), 2, "trainer alone"),
        (("trainer", "worker", "--broker", "http://x"), 2, "redis://HOST"),
        (("trainer", "up", "--tokens", "none"), 2, "no file none"),
        (("jobs", "--server", "127.0.0.1:1", "list"), 5, "cannot be reached"),
        (("jobs", "--server", "10.0.0.1:1", "list"), 2, "--root-certificates"),
    ],
)
def test_one_line_says_what_to_do(cli, command, code, text):
    result = cli(*command)
    assert result.exit_code == code, result.stderr
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_a_log_without_the_columns_names_the_option(cli, tmp_path: Path):
    log = write_csv(tmp_path / "log.csv", 5, 100, header="who,what,timestamp")
    result = cli("train", "--data", log)
    assert result.exit_code == 3
    assert "--user-column" in result.stderr and "--item-column" in result.stderr


def test_a_run_that_is_there_is_not_overwritten(cli, tmp_path: Path):
    log = write_csv(tmp_path / "log.csv", 20, 100)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    result = cli("train", "--data", log, "--run-dir", folder)
    assert result.exit_code == 4
    assert "--resume" in result.stderr
    assert (folder / "config.json").read_text() == "{}"
    assert not (folder / "source.json").exists()


def test_a_damaged_configuration_is_not_resumed(cli, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "source.json").write_text("{}")
    result = cli("train", "--run-dir", tmp_path / "run", "--resume")
    assert result.exit_code == 4
    assert "config.json is damaged" in result.stderr


def test_debug_shows_where_it_failed():
    command = [sys.executable, "-m", "forward_ofa_cli", "--debug", "train", "--data", "nowhere.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "DataError" in done.stderr


def test_devices_without_a_cloud(tmp_path: Path):
    (tmp_path / "lives.jsonl").write_text('{"device": "d", "history": ["a"], "next": []}\n')
    command = [sys.executable, "-m", "forward_ofa_cli", "device", "population"]
    command += ["--controller", "127.0.0.1:1", "--histories", "lives.jsonl", "--state", "state"]
    command += ["--out", "out.jsonl", "--patience", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 5
    assert "the controller at 127.0.0.1:1 cannot be reached" in done.stderr


def test_one_device_without_a_cloud(tmp_path: Path):
    command = [sys.executable, "-m", "forward_ofa_cli", "device", "one", "--history", "a,b"]
    command += ["--controller", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 5
    assert "the controller at 127.0.0.1:1 cannot be reached" in done.stderr


def test_one_device_without_a_folder_says_only_that(tmp_path: Path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "forward_ofa_cli", "device", "one", "--history", "a,b"]
    command += ["--controller", "127.0.0.1:1", "--state", "file"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "state directory" in done.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "lives.jsonl: No such file"), (b"\x93\xb4", "lives.jsonl, line 1: give"),
     (b"[" * 100_000, "lives.jsonl, line 1: give")],
)  # fmt: skip
def test_histories_that_cannot_be_read(tmp_path: Path, content: bytes | None, says: str):
    if content is not None:
        (tmp_path / "lives.jsonl").write_bytes(content)
    command = [sys.executable, "-m", "forward_ofa_cli", "device", "population"]
    command += ["--controller", "127.0.0.1:1", "--histories", "lives.jsonl", "--state", "state"]
    command += ["--out", "out.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {says}") and len(done.stderr.splitlines()) == 1


def test_a_run_dir_that_cannot_be_made(cli, tmp_path: Path):
    log = write_csv(tmp_path / "log.csv", 20, 100)
    (tmp_path / "file").write_text("")
    result = cli("train", "--data", log, "--min-user", "3", "--run-dir", tmp_path / "file" / "run")
    assert result.exit_code == 1
    assert "check the path" in result.stderr and str(tmp_path / "file" / "run") in result.stderr
