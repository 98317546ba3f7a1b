"""What `make paper` says of an epoch."""

from experiments.kdd25.console import Lines


def test_an_epoch_with_steps_and_one_that_only_tries_settings(capsys):
    lines = Lines("cell")
    lines.begin("DeviceRec", 4, 2)
    lines.step(7.5)
    lines.epoch({"epoch": 2, "loss": 7.25, "ndcg@10": 0.125, "seconds": 1.0, "best": True})
    lines.begin("Finetune", 0, 0)
    lines.epoch({"epoch": 1, "ndcg@10": 0.25, "rate": 0.1, "steps": 2, "seconds": 1.0})
    first, second, third, fourth = capsys.readouterr().out.splitlines()
    assert first.endswith("cell: DeviceRec, 4 steps, 2 done")
    assert "cell: DeviceRec, epoch 2, loss 7.2500, validation NDCG@10 0.1250, " in second
    assert second.endswith(" left")
    assert third.endswith("cell: Finetune, 0 steps")
    assert fourth.endswith("cell: Finetune, epoch 1, validation NDCG@10 0.2500")
