"""What may happen to a job, and what may not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ports import Job, JobFailure, JobParameters, JobProgress, JobState, Verdict
from services.trainer import jobs

NEW = Job("j1", JobParameters("synthetic"), created=1.0, queued=1.0)
EPOCH = {"stage": "DeviceRec", "epoch": 1, "loss": 0.5, "seconds": 1.0, "best": True}


def running(attempt: int = 1) -> Job:
    job = NEW
    for number in range(attempt):
        job = jobs.claimed(job, "w", 2.0)
        if number + 1 < attempt:
            job = jobs.requeued(job, job.attempt, "gone", 3.0, crashed=False, most=3)
    return job


def test_a_message_that_comes_twice_starts_one_attempt():
    with pytest.raises(jobs.Conflict):
        jobs.claimed(running(), "other", 3.0)


@pytest.mark.parametrize(
    "act",
    [
        lambda job: jobs.beaten(job, 1, None, []),
        lambda job: jobs.afresh(job, 1, "another log", 4.0),
        lambda job: jobs.committed(job, 1),
        lambda job: jobs.ended(job, 1, JobState.DONE, 4.0),
        lambda job: jobs.requeued(job, 1, "gone", 4.0, crashed=True, most=3),
    ],
)
def test_an_attempt_that_lost_its_job_can_write_nothing(act):
    with pytest.raises(jobs.Superseded):
        act(running(attempt=2))
    with pytest.raises(jobs.Superseded):
        act(jobs.ended(running(), 1, JobState.DONE, 3.0))


def test_crashes_without_a_new_epoch_end_the_job():
    job = NEW
    for attempt in (1, 2, 3):
        job = jobs.claimed(job, "w", 2.0)
        job = jobs.requeued(job, attempt, "killed by signal 9", 3.0, crashed=True, most=3)
    assert job.state is JobState.FAILED
    assert job.failure is not None and job.failure.reason == "CRASHED"
    assert "killed by signal 9" in job.failure.text


def test_crashes_with_a_new_epoch_between_them_do_not():
    job = NEW
    for attempt in range(1, 8):
        job = jobs.claimed(job, "w", 2.0)
        job = jobs.beaten(job, attempt, None, [{**EPOCH, "epoch": attempt}])
        job = jobs.requeued(job, attempt, "gone", 3.0, crashed=True, most=2)
        assert job.state is JobState.QUEUED


def test_an_epoch_that_is_told_again_counts_once():
    job = jobs.beaten(running(), 1, None, [EPOCH])
    again = jobs.beaten(job, 1, None, [EPOCH, {**EPOCH, "epoch": 2}])
    assert [record["epoch"] for record in again.epochs] == [1, 2]


def test_epochs_of_a_run_that_was_thrown_away_are_forgotten():
    job = jobs.beaten(running(), 1, None, [EPOCH, {**EPOCH, "epoch": 2}])
    job = replace(job, crashes=1)
    anew = jobs.afresh(job, 1, "the log is another one", 4.0)
    assert anew.epochs == () and anew.events[-1].text == "the log is another one"
    told = jobs.beaten(anew, 1, None, [{**EPOCH, "loss": 0.25}])
    assert [record["loss"] for record in told.epochs] == [0.25] and told.crashes == 0


def test_cancelling_by_state():
    assert jobs.cancelled(NEW, 2.0).state is JobState.CANCELLED
    wanted = jobs.cancelled(running(), 2.0)
    assert (wanted.state, wanted.cancelling) == (JobState.RUNNING, True)
    with pytest.raises(jobs.Conflict):
        jobs.committed(wanted, 1)
    gone = jobs.requeued(wanted, 1, "gone", 3.0, crashed=True, most=3)
    assert gone.state is JobState.CANCELLED
    with pytest.raises(jobs.Conflict, match="being published"):
        jobs.cancelled(jobs.committed(running(), 1), 3.0)
    with pytest.raises(jobs.Conflict, match="ended already"):
        jobs.cancelled(gone, 4.0)


def test_what_can_be_resumed():
    refused = jobs.ended(running(), 1, JobState.REFUSED, 3.0)
    again = jobs.resumed(refused, "off", 4.0)
    assert (again.state, again.parameters.gate, again.ended) == (JobState.QUEUED, "off", 0.0)
    assert jobs.claimed(again, "w", 5.0).attempt == 2
    for other in (NEW, running(), jobs.ended(running(), 1, JobState.DONE, 3.0)):
        with pytest.raises(jobs.Conflict, match="jobs retry"):
            jobs.resumed(other, "", 4.0)


@given(
    state=st.sampled_from(JobState),
    loss=st.none() | st.floats(allow_nan=False),
    text=st.text(),
    epochs=st.lists(st.just(EPOCH), max_size=3),
    with_verdict=st.booleans(),
)
def test_a_record_survives_json(state, loss, text, epochs, with_verdict):
    job = replace(
        jobs.noted(NEW, 5.0, text),
        state=state,
        progress=JobProgress("DeviceRec", 1, 2, loss),
        epochs=tuple(epochs),
        verdict=Verdict(True, "ndcg@10", 0.1, 0.2) if with_verdict else None,
        failure=JobFailure("DATA", text),
        metrics={"a/b": 0.5},
    )
    assert jobs.from_json(jobs.to_json(job)) == job


def test_history_is_bounded():
    job = NEW
    for number in range(200):
        job = jobs.noted(job, float(number), "something")
    assert len(job.events) == 50
    assert len(jobs.to_json(job)) < 10_000


def test_a_record_of_before_the_gate_was_kept_apart_is_read():
    raw = json.loads(jobs.to_json(Job("j1", JobParameters("synthetic"), 1.0, submitted_gate="-1%")))
    assert jobs.from_json(json.dumps(raw)).submitted_gate == "-1%"
    del raw["submitted_gate"]
    assert jobs.from_json(json.dumps(raw)).submitted_gate is None
