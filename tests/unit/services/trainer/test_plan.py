"""What is a job, and what is refused before anything is queued."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from services.ports import JobParameters
from services.trainer import plan
from services.trainer.gate import parse_gate
from tests.support.logs import write_csv

GOOD = JobParameters("synthetic", recipe="quick")


def unserved(system: str, setting: str, value: str) -> dict[str, object]:
    """A job of a system that is not published, with one setting."""
    return {"system": system, "publish": False, "settings": {setting: value}}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"recipe": "none"}, "unknown recipe 'none'"),
        ({"backbone": "none"}, "none"),
        ({"system": "none"}, "none"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"system": "duet"}, "--no-publish"),
        ({"settings": {"device_rec.epoch": "1"}}, "'epoch' is none of epochs"),
        ({"settings": {"device_rec": "1"}}, "device_rec.epochs"),
        ({"settings": {"device_rec.epochs": "0"}}, "epochs must be at least 1"),
        ({"settings": {"device_rec.epochs": "1.5"}}, "'1.5' is no whole number"),
        ({"settings": {"device_rec.learning_rate": "nan"}}, "'nan' is no finite number"),
        ({"settings": {"warm_start": "yes"}}, "true or false"),
        ({"settings": {"method.backbone.blocks": "65"}}, "hidden"),
        ({"settings": {"method.backbone.norm": "post"}}, "norm"),
        ({"log": {"min_users": "3"}}, "min_user"),
        ({"log": {"min_user": "few"}}, "min_user"),
        ({"log": {"iterate": "often"}}, "true or false"),
        ({"log": {"ties": "drop"}}, "ties"),
        ({"log": {"split": "user"}}, "position or time"),
        ({"gate": "better"}, "use off, a share"),
        ({"gate": "mrr@10 1%"}, "ndcg@10"),
        ({"label": "Not One"}, "is no label"),
        ({"label": "stable", "percent": 5.0}, "canary's share"),
        ({"percent": 5.0}, "percent needs a label"),
        ({"label": "canary", "publish": False}, "needs a version"),
        ({"data": "nowhere.csv"}, "neither a file or folder"),
        ({"data": "/nowhere/log.csv"}, "neither a file or folder"),
        ({"data": ""}, "data is missing"),
        ({"data": "/dev/zero"}, "neither a regular file nor a folder"),
        ({"settings": {"training.seed": "-1"}}, "at most 4,294,967,295"),
        ({"settings": {"training.seed": "9" * 20}}, "seed must be"),
        ({"settings": {"training.seed": "9" * 400}}, "seed must be"),
        ({"settings": {"device_rec.seed": "-7"}}, "seed must be"),
        ({"settings": {"foundation.training.seed": "-7"}}, "seed must be"),
        ({"settings": {"training.epochs": "1000000000"}}, "at most 100,000"),
        ({"settings": {"training.batch_size": "9" * 20}}, "at most 1,000,000"),
        ({"settings": {"method.backbone.hidden": "1000000"}}, "at most 4,096"),
        ({"settings": {"method.backbone.history": "1000000"}}, "at most 10,000"),
        ({"settings": {"method.backbone.dilations": "1,1000000"}}, "from 1 to 10,000"),
        ({"settings": {"method.extractor_history": "1000000000"}}, "at most 10,000"),
        ({"settings": {"candidates": "0"}}, "candidates must be at least 1"),
        ({"settings": {"candidates": "-5"}}, "candidates must be at least 1"),
        ({"settings": {"candidates": "1000000000"}}, "at most 1,000,000"),
        ({"settings": {"system": "device-rec"}}, "--system"),
        ({"settings": {"options": "none"}}, "options.NAME"),
        ({"settings": {"compare": "false"}}, "always trains DeviceRec"),
        ({"gate": "\u0663%"}, "use off, a share"),
        ({"device": "cuda:\u0663"}, "unknown device"),
        (unserved("gater", "method.compact_weight", "0.5"), "Gater has no use for it"),
        (unserved("duet", "method.structure_until", "0.5"), "DUET has no use for it"),
        (unserved("device-rec", "training.epochs", "9"), "device_rec.epochs is read"),
        (unserved("finetune", "training.epochs", "9"), "Finetune has no use for it"),
        (unserved("finetune", "options.rates", "0.1,fast"), "'fast' is no finite number"),
        (unserved("finetune", "rates", "0.1,fast"), "'fast' is no finite number"),
        (unserved("gater", "rates", "0.1"), "gater has bottleneck"),
        (
            {"settings": {"epochs": "3"}},
            "name the stage, training.epochs or",
        ),
        ({"settings": {"foundation": "none", "foundation.length": "9"}}, "set as a whole too"),
        ({"settings": {"foundation.length": "9", "foundation": "none"}}, "set twice"),
        ({"settings": {"candidates.most": "9"}}, "candidates has no parts"),
        ({"settings": {"training.epochs": "9" * 5000}}, "is no whole number"),
        ({"settings": {"method.backbone.name": "nextitnet"}}, "--backbone"),
        ({"settings": {"best": "1"}}, "none of method, device_rec, training, warm_start"),
        ({"settings": {"options.best": "1"}}, "system forward-ofa has no options"),
        (unserved("gater", "warm_start", "true"), "Gater has no use for it"),
        (unserved("device-rec", "method.bases", "4"), "of method it reads backbone, dropout"),
    ],
)
def test_what_cannot_work_is_refused_with_a_hint(tmp_path, changes, text):
    with pytest.raises(plan.BadParameters) as raised:
        plan.check(replace(GOOD, **changes), 2**20, tmp_path)
    assert text in str(raised.value)


def test_a_log_of_which_nothing_is_left_is_refused(tmp_path: Path):
    log = write_csv(tmp_path / "log.csv", 20, 100)
    job = replace(GOOD, data=str(log), log={"min_user": "1000"})
    with pytest.raises(plan.BadParameters, match=r"1,?000"):
        plan.check(job, 2**20, tmp_path)
    plan.check(job, 0, tmp_path)  # too large to be read now: the job itself will say it
    with pytest.raises(plan.BadParameters, match="user"):
        plan.check(replace(GOOD, data=str(log), log={"user_column": "who"}), 2**20, tmp_path)


def test_a_pipe_is_refused_at_once(tmp_path: Path):
    pipe = tmp_path / "log.csv"
    os.mkfifo(pipe)
    with pytest.raises(plan.BadParameters, match="pipe"):
        plan.check(replace(GOOD, data=str(pipe)), 2**20, tmp_path)


def test_a_folder_is_looked_at_until_it_is_known_to_be_large(tmp_path: Path, monkeypatch):
    below = tmp_path / "log" / "day=1"
    below.mkdir(parents=True)
    for number in range(9):
        (below / f"{number}.csv").write_bytes(b"x" * 10)
    (below / "gone.csv").symlink_to("nowhere")
    (below / "back").symlink_to(tmp_path)
    assert not plan.is_larger(tmp_path, 90)
    assert plan.is_larger(tmp_path, 89)
    assert plan.is_larger(below / "0.csv", 9) and not plan.is_larger(below / "0.csv", 10)
    monkeypatch.setattr(plan, "_MOST_ENTRIES", 13)
    assert not plan.is_larger(tmp_path, 90)
    monkeypatch.setattr(plan, "_MOST_ENTRIES", 12)
    assert plan.is_larger(tmp_path, 90)
    seen = []
    look = os.scandir

    def scandir(path):
        seen.append(path)
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (tmp_path / "large.csv").write_bytes(b"x" * 100)
    assert plan.is_larger(tmp_path, 99)
    assert seen == [str(tmp_path)]


def test_settings_replace_the_recipes_values():
    settings = {
        "training.epochs": "7", "method.backbone.hidden": "16", "warm_start": "false",
        "method.backbone.dilations": "1,2", "foundation": "none", "device_rec.weight_decay": "1",
    }  # fmt: skip
    config = plan.configure(replace(GOOD, settings=settings), 0)
    assert config.training.epochs == 7
    assert config.method.backbone.hidden == 16
    assert config.method.backbone.dilations == (1, 2)
    assert (config.warm_start, config.foundation) == (False, None)
    assert config.device_rec.weight_decay == 1.0
    for name in ("options.rates", "rates"):
        config = plan.configure(replace(GOOD, **unserved("finetune", name, "0.01,0.1")), 0)
        assert config.options.rates == (0.01, 0.1)
    later = {"method.structure_from": "0.6", "method.structure_until": "0.9"}
    for settings in (later, dict(reversed(later.items()))):  # neither makes sense alone
        config = plan.configure(replace(GOOD, settings=settings), 0)
        assert (config.method.structure_from, config.method.structure_until) == (0.6, 0.9)


@pytest.mark.parametrize(
    ("text", "stable", "required"),
    [("-1%", 0.2, 0.198), ("+50%", 0.2, 0.3), ("0.01", 0.2, 0.21), ("hit@10 -0.1", 0.2, 0.1)],
)
def test_gates(text, stable, required):
    gate = parse_gate(text)
    assert gate.required(stable) == pytest.approx(required)
    assert gate.metric == ("hit@10" if "hit" in text else "ndcg@10")


def test_who_only_checks_and_who_only_runs_jobs_load_neither_torch_nor_grpc():
    code = (
        "import sys; import services.trainer.{}; "
        "sys.exit(', '.join(m for m in ('torch', 'grpc') if m in sys.modules) or 0)"
    )
    for module in ("worker", "assembling", "beat"):
        told = subprocess.run(
            [sys.executable, "-c", code.format(module)], capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr
