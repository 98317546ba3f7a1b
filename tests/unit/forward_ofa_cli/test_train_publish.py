"""train -> evaluate -> publish on a tiny log, as a user would type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from forward_ofa_cli.main import app
from services.registry.files import FileRegistry
from tests.support.logs import write_csv

TINY = ("--recipe", "quick", "--blocks", "3", "--hidden", "16", "--candidates", "20")


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    log = write_csv(folder / "log.csv", 40, 100)
    result = run(
        "train", "--data", log, "--run-dir", folder / "run", *TINY, "--seed", "7",
        "--learning-rate", "0.002", "--epochs", "2", "--min-item", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder, result


def test_training_shows_protocol_eta_epochs_and_figures(trained):
    shown = trained[1].stdout
    assert shown.index("kept ") < shown.index("split: leave one out")  # what was done to the log
    assert shown.index("split: leave one out") < shown.index("Training takes about")
    assert shown.index("Training takes about") < shown.index("DeviceRec epoch 1")
    assert "Forward-OFA epoch 2" in shown
    assert "NDCG@10, all items ranked" in shown


def test_overrides_reach_the_run(trained):
    config = json.loads((trained[0] / "run" / "config.json").read_text())
    assert config["method"]["backbone"]["blocks"] == 3
    assert config["method"]["backbone"]["hidden"] == 16
    assert config["candidates"] == 20
    for system in ("training", "device_rec"):
        assert (config[system]["seed"], config[system]["learning_rate"]) == (7, 0.002)
    assert (config["training"]["epochs"], config["device_rec"]["epochs"]) == (2, 1)
    card = json.loads((trained[0] / "run" / "data.json").read_text())
    assert (card["filter"]["min_user"], card["filter"]["min_item"]) == (5, 2)


def test_evaluation_repeats_the_test_figures(trained):
    result = run("evaluate", "--run-dir", trained[0] / "run", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads((trained[0] / "run" / "report.json").read_text())
    assert json.loads(result.stdout)["systems"] == report["systems"]
    other = run("evaluate", "--run-dir", trained[0] / "run", "--split", "validation", "--json")
    assert json.loads(other.stdout)["split"] == "validation"


def test_another_log_is_refused(trained, tmp_path: Path):
    other = write_csv(tmp_path / "log.csv", 41, 100)
    result = run("evaluate", "--run-dir", trained[0] / "run", "--data", other)
    assert result.exit_code == 4
    assert "is not the one" in result.stderr
    registry = tmp_path / "registry"
    command = ("publish", "--run-dir", trained[0] / "run", "--data", other, "--registry", registry)
    assert run(*command).exit_code == 4
    assert not registry.exists()


def test_publish_labels_and_leaves_nothing_half_written(trained, tmp_path: Path):
    registry = tmp_path / "registry"
    command = ("publish", "--run-dir", trained[0] / "run", "--registry", registry, "--json")
    result = run(*command)
    assert result.exit_code == 0, result.output
    version = json.loads(result.stdout)["version"]
    found = FileRegistry(registry)
    assert found.labels() == {"stable": version}
    found.open(version).verify()
    assert [path.name for path in (registry / "versions").iterdir()] == [version]
    shown = run("versions", "show", "stable", "--registry", registry).stdout
    assert "split: leave one out" in shown


def test_names_with_markup_and_escapes_are_shown_as_they_are(trained, tmp_path: Path):
    folder, registry = tmp_path / "run[/red]\x1b[31m", tmp_path / "there[/b]"
    again = run("train", "--data", trained[0] / "log.csv", "--run-dir", folder, *TINY)
    assert again.exit_code == 0, again.output
    published = run("publish", "--run-dir", folder, "--registry", registry)
    assert published.exit_code == 0, published.output
    version = published.stdout.split()[published.stdout.split().index("version") + 1].rstrip(",")
    shown = run("versions", "show", version, "--registry", registry)
    assert shown.exit_code == 0, shown.output
    told = again.output + published.output + shown.output
    assert "run[/red]\\x1b[31m" in again.stdout and f"--registry {registry}" in published.stdout
    assert "\x1b" not in told


def test_resume_takes_log_and_settings_from_the_run(trained, tmp_path: Path):
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    for name in ("config.json", "source.json"):
        (unfinished / name).write_text((trained[0] / "run" / name).read_text())
    result = run("train", "--run-dir", unfinished, "--resume", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads((trained[0] / "run" / "report.json").read_text())
    assert json.loads(result.stdout)["systems"] == report["systems"]


def test_a_complete_run_is_not_trained_again(trained):
    before = (trained[0] / "run" / "report.json").read_bytes()
    result = run("train", "--run-dir", trained[0] / "run", "--resume")
    assert result.exit_code == 4
    assert "is complete" in result.stderr
    assert (trained[0] / "run" / "report.json").read_bytes() == before
    assert run("train", "--resume").exit_code == 2


def test_a_damaged_run_is_not_published(trained, tmp_path: Path):
    damaged = tmp_path / "run"
    damaged.mkdir()
    for path in (trained[0] / "run").glob("*.json"):
        (damaged / path.name).write_text(path.read_text())
    for name in ("device-rec.safetensors", "forward-ofa.safetensors"):
        content = (trained[0] / "run" / name).read_bytes()
        (damaged / name).write_bytes(content[: len(content) // 2])
    result = run("publish", "--run-dir", damaged)
    assert result.exit_code == 4
    assert "is damaged" in result.stderr
