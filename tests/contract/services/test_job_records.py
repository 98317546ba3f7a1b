"""What `services.trainer.records.Records` promises, of the keeper that there is: Redis."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from services.ports import Job, JobParameters, JobState
from services.trainer import jobs
from services.trainer.records import (
    RecordsUnavailable,
    RedisRecords,
    TooManyJobs,
    UnknownJob,
    connect,
)
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # As the trainer starts its own.
    folder = tmp_path_factory.mktemp("redis")
    redis = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    yield redis
    redis.kill()


@pytest.fixture
def records(server):
    client = connect(server.url, 2.0)
    client.flushdb()
    yield RedisRecords(client)
    client.close()


def job(name: str, **fields) -> Job:
    return Job(name, JobParameters("synthetic"), created=float(name[1:]), **fields)


def test_what_was_added_is_there(records):
    added = records.add(job("j1"), 10)
    assert records.get("j1") == added
    assert [found.id for found in records.live()] == ["j1"]
    with pytest.raises(UnknownJob):
        records.get("j2")
    with pytest.raises(UnknownJob):
        records.update("j2", lambda found: found)


def test_one_submission_is_one_job(records):
    records.add(job("j1", submission="mine-1234"), 10)
    assert records.add(job("j2", submission="mine-1234"), 10).id == "j1"
    assert len(records.page((), 10)) == 1


def test_a_schedule_never_overlaps_itself(records):
    records.add(job("j1", schedule="shop"), 10)
    assert records.add(job("j2", schedule="shop"), 10).id == "j1"
    assert records.add(job("j3", schedule="other"), 10).id == "j3"
    records.update("j1", lambda found: jobs.cancelled(found, 2.0))
    assert records.add(job("j4", schedule="shop"), 10).id == "j4"
    assert records.last_of("shop").id == "j4"
    assert records.last_of("none") is None


def test_only_so_many_jobs_live(records):
    records.add(job("j1"), 2)
    records.add(job("j2"), 2)
    with pytest.raises(TooManyJobs):
        records.add(job("j3"), 2)
    records.update("j1", lambda found: jobs.cancelled(found, 2.0))
    records.add(job("j3"), 2)


def test_pages_are_newest_first(records):
    for number in range(1, 8):
        records.add(job(f"j{number}"), 10)
    for number in (2, 4):
        records.update(f"j{number}", lambda found: jobs.cancelled(found, 2.0))
    assert [found.id for found in records.page((), 3)] == ["j7", "j6", "j5"]
    assert [found.id for found in records.page((), 3, "j5")] == ["j4", "j3", "j2"]
    assert [found.id for found in records.page((JobState.CANCELLED,), 9)] == ["j4", "j2"]


def test_pages_go_on_after_a_job_that_was_forgotten(records):
    made = [1e9, 1e9 + 1.2, 1e9 + 1.7, 1e9 + 2]
    ids = [jobs.new_id(moment) for moment in made]
    for job_id, moment in zip(ids, made, strict=True):
        records.add(Job(job_id, JobParameters("synthetic"), created=moment), 10)
        records.update(job_id, lambda found: jobs.cancelled(found, 2.0))
    assert [found.id for found in records.page((), 9, ids[2])] == [ids[1], ids[0]]
    records.remove(ids[2])
    assert [found.id for found in records.page((), 9, ids[2])] == [ids[1], ids[0]]
    records.remove(ids[0])
    assert [found.id for found in records.page((), 9, ids[0])] == []
    for rubbish in ("none", "20010909-014640-xxxxxxxx", "20019909-014640-00000000"):
        with pytest.raises(ValueError, match="no job's id"):
            records.page((), 9, rubbish)


def test_changes_of_many_at_once_are_all_made(records):
    records.add(job("j1"), 10)

    def beat() -> None:
        for _ in range(25):
            records.update("j1", jobs.alive)

    threads = [threading.Thread(target=beat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = records.get("j1")
    assert (found.beats, found.revision) == (100, 100)


def test_one_of_many_gets_a_queued_job(records):
    records.add(job("j1"), 10)
    taken = []

    def claim(name: str) -> None:
        try:
            records.update("j1", lambda found: jobs.claimed(found, name, 2.0))
            taken.append(name)
        except jobs.Conflict:
            pass

    threads = [threading.Thread(target=claim, args=(f"w{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert records.get("j1").worker == taken[0]


def test_a_change_that_fails_or_changes_nothing_writes_nothing(records):
    records.add(job("j1"), 10)
    with pytest.raises(jobs.Superseded):
        records.update("j1", lambda found: jobs.beaten(found, 5, None, []))
    assert records.update("j1", lambda found: replace(found)).revision == 0


def test_only_ended_jobs_are_forgotten(records):
    records.add(job("j1", submission="mine-1234"), 10)
    assert not records.remove("j1")
    assert records.get("j1").state is JobState.QUEUED
    records.update("j1", lambda found: jobs.cancelled(found, 2.0))
    assert records.remove("j1") and not records.remove("j1")
    assert records.page((), 10) == [] and records.live() == []
    assert records.add(job("j2", submission="mine-1234"), 10).id == "j2"


def test_a_killed_redis_has_lost_nothing(records, server, tmp_path: Path):
    records.add(job("j1", submission="mine-1234"), 10)
    records.update("j1", lambda found: jobs.claimed(found, "w", 2.0))
    before = records.get("j1")
    server.kill()
    with pytest.raises(RecordsUnavailable):
        records.get("j1")
    server.start()
    assert records.get("j1") == before
    assert [found.id for found in records.live()] == ["j1"]
