"""The cloud's SASRec: causal, blind to padding, and trained and compared by its command."""

from __future__ import annotations

import json
import sys

import torch
from typer.testing import CliRunner

from experiments import cloud
from forward_ofa_cli.main import app
from tests.support.logs import write_csv


@torch.no_grad()
def test_a_state_knows_nothing_of_what_comes_after_it_nor_of_padding() -> None:
    torch.manual_seed(0)
    system = cloud.CloudSasRec(items=20).eval()
    history = torch.tensor([[3, 7, 1, 9, 0, 0], [5, 2, 4, 6, 8, 11]])
    lengths = torch.tensor([4, 6])
    scores = system.scores(history, lengths)
    assert torch.allclose(scores[:1], system.scores(history[:1, :4], lengths[:1]), atol=1e-5)
    states = system.states(history, lengths)
    other = history.clone()
    other[:, 3:] = 12
    assert torch.allclose(states[:, :3], system.states(other, lengths)[:, :3], atol=1e-5)
    assert not torch.allclose(states[:, 3], system.states(other, lengths)[:, 3], atol=1e-3)


def test_the_command_compares_with_a_run(tmp_path, capsys, monkeypatch) -> None:
    run, log = tmp_path / "run", write_csv(tmp_path / "log.csv", users=40, items=100)
    trained = ["train", "--data", str(log), "--recipe", "quick", "--run-dir", str(run)]
    told = CliRunner().invoke(app, [*trained, "--system", "device-rec"])
    assert told.exit_code == 0, told.output
    asked = ["cloud", "--run-dir", str(run), "--checkpoint", str(tmp_path / "c"), "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", asked)
    capsys.readouterr()
    assert cloud.main() == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "SASRec, T = 200, 2 blocks",
        "GRU, T = 200",
        "DeviceRec",
    ]
    # DeviceRec's own figures, as the run's report has them.
    report = json.loads((run / "report.json").read_text())["systems"]["device-rec"]
    cells = [cell.strip() for cell in rows[-1].split("|")]
    assert cells[3] == f"{report['ndcg@10']:.4f}" and cells[6] == f"{report['unseen_ndcg@10']:.4f}"
    for words, said in (
        (["--run-dir", str(tmp_path), "--checkpoint", str(tmp_path / "d")], "no complete run"),
        (["--run-dir", str(run), "--checkpoint", str(tmp_path / "c")], "another --checkpoint"),
        (["--run-dir", str(run), "--checkpoint", str(tmp_path)], "directory"),
        (["--run-dir", str(run), "--checkpoint", str(tmp_path / "d"), "--seed", "-1"], "seed"),
    ):
        monkeypatch.setattr(sys, "argv", ["cloud", *words])
        assert cloud.main() == 1 and said in capsys.readouterr().err
