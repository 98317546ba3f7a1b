"""What the beat tells of jobs that stand still and of jobs that ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.ports import Job, JobParameters, JobProgress, JobState
from services.trainer.beat import _alive, _longest, _signs, _standing
from services.trainer.metrics import TrainerMetrics

RUNNING = Job("job-1", JobParameters("log.csv"), 1.0, JobState.RUNNING, attempt=1)


def at(job: Job, revision: int, step: int) -> Job:
    return replace(job, revision=revision, progress=JobProgress("forward-ofa", step, 100))


def test_a_job_that_lives_may_stand_still():
    alive, steps = {}, {}
    for second in range(10):
        # Its worker gives a sign of life each second; it does no step after the third.
        running = [at(RUNNING, revision=second, step=min(second, 3))]
        alive = _signs(running, alive, _alive, float(second))
        steps = _signs(running, steps, _standing, float(second))
    assert _longest(alive, 9.0) == 0.0
    assert _longest(steps, 9.0) == 6.0
    running = [replace(running[0], attempt=2)]
    assert _longest(_signs(running, steps, _standing, 9.5), 9.5) == 0.0, "a new attempt"
    assert _signs([], steps, _standing, 10.0) == {}


@pytest.mark.parametrize(("state", "ended"), [("done", 50.0), ("failed", 70.0), ("refused", 0.0)])
def test_when_the_last_job_ended(state, ended):
    metrics = TrainerMetrics(worker=False)
    done = [replace(RUNNING, state=JobState.DONE, ended=moment) for moment in (20.0, 50.0)]
    metrics.remembered([*done, replace(RUNNING, state=JobState.FAILED, ended=70.0)])
    name = "forward_ofa_trainer_last_ended_timestamp_seconds"
    assert metrics.registry.get_sample_value(name, {"state": state}) == ended
