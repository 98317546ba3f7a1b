"""The trainer's gRPC service and its beat on a real Redis, without workers: what is queued, what
is refused, and what happens when messages, workers or Redis are gone."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from forward_ofa_api.trainer.v1 import trainer_pb2 as api
from forward_ofa_api.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from services.errors import MOST_TEXT, Fault, Reason
from services.ports import Job, JobParameters, JobState
from services.registry.files import FileRegistry
from services.runtime.access import AccessSettings
from services.runtime.settings import ServerSettings, SettingsError
from services.runtime.tokens import add_token
from services.settings import ServeSettings, parse_targets
from services.trainer import jobs
from services.trainer.assembling import connected
from services.trainer.beat import Beat, Reaper
from services.trainer.broker import EmbeddedRedis, check_redis
from services.trainer.celery_app import QUEUE
from services.trainer.growth import Growth, Measure
from services.trainer.metrics import TrainerMetrics
from services.trainer.records import connect
from services.trainer.scheduler import Scheduler
from services.trainer.settings import BeatSettings, TrainerSettings
from services.wiring import start
from tests.support.redis_server import RedisServer
from tests.support.serving import fault_of

JOB = JobParameters("synthetic", recipe="quick")


@pytest.fixture
def redis(tmp_path):
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(tmp_path, redis):
    return TrainerSettings(
        redis.url, tmp_path / "home", tmp_path / "registry", timeout_seconds=0.5, max_jobs=3
    )


@pytest.fixture
def parts(settings):
    return connected(settings, FileRegistry(settings.registry))


@pytest.fixture
async def service(settings):
    async def begin(**server) -> tuple:
        running = await start(
            ServeSettings(
                registry=settings.registry, targets=("trainer",), training=settings,
                server=ServerSettings(listen="127.0.0.1:0", drain_seconds=0.5, **server),
            )
        )  # fmt: skip
        channel = grpc.aio.insecure_channel(running.address)
        started.append((running, channel))
        return running, TrainerServiceStub(channel)

    started: list = []
    yield begin
    for running, channel in started:
        await channel.close()
        await running.stop()


def request(submission: str = "", **parameters) -> api.SubmitJobRequest:
    fields = {"data": "synthetic", "recipe": "quick", **parameters}
    return api.SubmitJobRequest(parameters=api.JobParameters(**fields), submission_id=submission)


async def fault_from(call) -> Fault:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return fault_of(raised.value)


async def refused(call) -> Reason:
    return (await fault_from(call)).reason


async def test_calls_without_a_worker(service, parts):
    _, stub = await service()
    assert await refused(stub.SubmitJob(request(settings={"seed": "1"}))) is Reason.BAD_JOB
    job = (await stub.SubmitJob(request())).job
    assert job.state == api.JOB_STATE_QUEUED and job.parameters.gate == "-1%"
    assert parts.announcer.waiting() == {job.id}
    assert (await stub.GetJob(api.GetJobRequest(job_id=job.id))).job == job
    first, again = [await stub.SubmitJob(request(submission="mine-1234")) for _ in range(2)]
    assert first == again
    other = request(submission="mine-1234", settings={"training.epochs": "2"})
    fault = await fault_from(stub.SubmitJob(other))
    assert fault.reason is Reason.BAD_JOB and first.job.id in fault.text
    await stub.SubmitJob(request())
    assert await refused(stub.SubmitJob(request())) is Reason.TOO_MANY_JOBS
    states = [api.JOB_STATE_QUEUED]
    assert len((await stub.ListJobs(api.ListJobsRequest(states=states))).jobs) == 3
    watching = stub.WatchJob(api.WatchJobRequest(job_id=job.id))
    assert (await watching.read()).job.state == api.JOB_STATE_QUEUED
    await stub.CancelJob(api.CancelJobRequest(job_id=job.id))
    assert (await watching.read()).job.state == api.JOB_STATE_CANCELLED
    assert await watching.read() is grpc.aio.EOF
    resumed = (await stub.ResumeJob(api.ResumeJobRequest(job_id=job.id, gate="off"))).job
    assert (resumed.state, resumed.parameters.gate) == (api.JOB_STATE_QUEUED, "off")
    await stub.CancelJob(api.CancelJobRequest(job_id=first.job.id))
    await stub.ResumeJob(api.ResumeJobRequest(job_id=first.job.id, gate="off"))
    again = await stub.SubmitJob(request(submission="mine-1234"))
    assert again.job.id == first.job.id
    assert await refused(stub.RetryJob(api.RetryJobRequest(job_id=job.id))) is Reason.JOB_STATE
    assert await refused(stub.GetJob(api.GetJobRequest(job_id="none"))) is Reason.UNKNOWN_JOB
    bad = api.ResumeJobRequest(job_id=job.id, gate="x")
    assert await refused(stub.ResumeJob(bad)) is Reason.BAD_JOB
    for version in ("none", "../../etc"):
        promote = api.PromoteVersionRequest(version=version, label="stable")
        fault = await fault_from(stub.PromoteVersion(promote))
        assert fault.reason is Reason.REGISTRY_REFUSED
        assert "the registry has no version" in fault.text
    listing = stub.ListJobs(api.ListJobsRequest(states=[99]))
    assert (await fault_from(listing)).text == "there is no job state 99"
    for rubbish in ("none", "\x00", "20269999-999999-00000000"):
        listing = stub.ListJobs(api.ListJobsRequest(before_job_id=rubbish))
        assert await refused(listing) is Reason.BAD_PAGE
    roll_back = api.RollBackLabelRequest(label="stable")
    assert await refused(stub.RollBackLabel(roll_back)) is Reason.REGISTRY_REFUSED


async def test_an_error_arrives_however_much_it_would_quote(service):
    _, stub = await service()
    job = (await stub.SubmitJob(request())).job
    long = "x" * 30_000
    wide = "\u6f22" * 4_000
    calls = {
        Reason.BAD_JOB: [
            stub.SubmitJob(request(data="/nowhere/" + wide)),
            stub.SubmitJob(request(data="/nowhere/" + "x/" * 2_000)),
            stub.SubmitJob(request(recipe=wide)),
            stub.SubmitJob(request(label=wide)),
            stub.ResumeJob(api.ResumeJobRequest(job_id=job.id, gate=long)),
        ],
        Reason.REGISTRY_REFUSED: [
            stub.PromoteVersion(api.PromoteVersionRequest(version="v", label=long)),
            stub.RollBackLabel(api.RollBackLabelRequest(label=long)),
        ],
    }
    for reason, made in calls.items():
        for call in made:
            fault = await fault_from(call)
            assert fault.reason is reason
            assert len(fault.text.encode()) <= MOST_TEXT
    fault = await fault_from(stub.SubmitJob(request(data="/nowhere/log.csv")))
    assert "`forward-ofa data` lists them" in fault.text and len(fault.text) < 300


async def test_a_submission_id_is_of_one_job_as_it_was_submitted(service, parts):
    _, stub = await service()
    first = (await stub.SubmitJob(request("mine-1234", gate="-1%"))).job
    assert await refused(stub.SubmitJob(request("mine-1234", gate="+5%"))) is Reason.BAD_JOB
    await stub.CancelJob(api.CancelJobRequest(job_id=first.id))
    await stub.ResumeJob(api.ResumeJobRequest(job_id=first.id, gate="off"))
    assert (await stub.SubmitJob(request("mine-1234"))).job.id == first.id
    assert await refused(stub.SubmitJob(request("mine-1234", gate="off"))) is Reason.BAD_JOB
    # A record of before the gate was kept apart.
    parts.records.update(first.id, lambda job: replace(job, submitted_gate=None))
    assert (await stub.SubmitJob(request("mine-1234", gate="+5%"))).job.id == first.id


async def test_a_retry_has_a_submission_id_of_its_own(service):
    _, stub = await service()
    first = (await stub.SubmitJob(request("mine-1234"))).job
    other = (await stub.SubmitJob(request("mine-5678"))).job
    await stub.CancelJob(api.CancelJobRequest(job_id=first.id))
    await stub.CancelJob(api.CancelJobRequest(job_id=other.id))

    def retry(job: str, submission: str):
        return stub.RetryJob(api.RetryJobRequest(job_id=job, submission_id=submission))

    for bad in ("x", "mine 1234", "x" * 65, "mine-1234", "mine-5678"):
        assert await refused(retry(first.id, bad)) is Reason.BAD_JOB
    again, same = [(await retry(first.id, "again-1234")).job for _ in range(2)]
    assert again.id == same.id != first.id and again.retry_of == first.id
    assert await refused(retry(other.id, "again-1234")) is Reason.BAD_JOB
    assert await refused(stub.SubmitJob(request("again-1234"))) is Reason.BAD_JOB


async def test_what_is_stored_of_a_job_is_bounded(service):
    _, stub = await service()
    blanks = " " * 5_000
    for bad in (
        request(settings={"training.epochs": f"{blanks}2"}),
        request(settings={f"training.epochs{blanks}": "2"}),
        request(log={blanks: "2"}),
        request(gate=f"+1%{blanks}"),
    ):
        assert await refused(stub.SubmitJob(bad)) is Reason.TOO_LARGE
    for bad in (request(gate=f"+{'1' * 100}%"), request(gate=" "),
                request(settings={"training.epochs": "2", "training.epochs ": "3"})):  # fmt: skip
        assert await refused(stub.SubmitJob(bad)) is Reason.BAD_JOB
    sent = request(settings={" training.epochs ": " 2 "}, gate=" off ")
    job = (await stub.SubmitJob(sent)).job
    assert dict(job.parameters.settings) == {"training.epochs": "2"}
    assert job.parameters.gate == "off"
    await stub.CancelJob(api.CancelJobRequest(job_id=job.id))
    for bad in (" ", f"+1%{blanks}"):
        call = stub.ResumeJob(api.ResumeJobRequest(job_id=job.id, gate=bad))
        assert await refused(call) is Reason.BAD_JOB
    call = stub.ResumeJob(api.ResumeJobRequest(job_id=job.id, gate=" +1% "))
    assert (await call).job.parameters.gate == "+1%"


async def test_an_ordinary_client_can_read_each_page(service, parts):
    _, stub = await service()
    wide = {f"{n}": "x" * 4_096 for n in range(120)}
    for n in range(18):
        job = Job(jobs.new_id(1e9 + n), JobParameters("synthetic", log=wide), created=1e9 + n)
        parts.records.add(job, 100)
    pages, before = [], ""
    while not pages or pages[-1]:
        answer = await stub.ListJobs(api.ListJobsRequest(before_job_id=before))
        pages.append([job.id for job in answer.jobs])
        before = pages[-1][-1] if pages[-1] else ""
    told = [job_id for page in pages for job_id in page]
    assert told == sorted(told, reverse=True) and len(set(told)) == len(told) == 18
    assert len(pages) == 4


async def test_logs_that_would_hang_stop_nobody(service, tmp_path):
    _, stub = await service()
    pipe = tmp_path / "log.csv"
    os.mkfifo(pipe)
    calls = [refused(stub.SubmitJob(request(data=str(pipe)), timeout=60)) for _ in range(40)]
    listing = stub.ListJobs(api.ListJobsRequest(), timeout=60)
    told = set(await asyncio.gather(*calls))
    assert Reason.BAD_JOB in told and told <= {Reason.BAD_JOB, Reason.UNCHECKED_JOB}
    assert len((await listing).jobs) == 0


async def test_while_redis_is_away_callers_are_told_and_nothing_is_queued(service, redis):
    running, stub = await service()
    await asyncio.wait_for(running.wait_ready(), 10)
    redis.stop()
    assert await refused(stub.SubmitJob(request(), timeout=20)) is Reason.QUEUE_UNAVAILABLE
    redis.start()
    assert len((await stub.ListJobs(api.ListJobsRequest())).jobs) == 0
    await stub.SubmitJob(request())
    redis.stop()
    redis.start()
    assert len((await stub.ListJobs(api.ListJobsRequest())).jobs) == 1


async def test_only_who_has_a_token_may_train(service, tmp_path):
    token = add_token(tmp_path / "tokens", "ci")
    _, stub = await service(access=AccessSettings(tokens=tmp_path / "tokens"))
    assert await refused(stub.SubmitJob(request())) is Reason.NO_TOKEN
    wrong = (("authorization", f"Bearer {token}x"),)
    assert await refused(stub.SubmitJob(request(), metadata=wrong)) is Reason.BAD_TOKEN
    right = (("authorization", f"Bearer {token}"),)
    assert (await stub.SubmitJob(request(), metadata=right)).job.id


class Watched:
    """A reaper whose clock the test turns."""

    def __init__(self, parts):
        self.parts, self.now = parts, 1000.0
        self.settings = BeatSettings(lease_seconds=10.0, resend_seconds=5.0)
        self.metrics = TrainerMetrics(worker=False)
        self.reaper = Reaper(self.settings, parts.records, parts.announcer, self.metrics)

    def after(self, seconds: float):
        self.now += seconds
        self.reaper.look(self.now)


async def test_a_lost_message_is_sent_again_once(parts, settings):
    client = connect(settings.broker, 1.0)
    job = await parts.trainer.submit(JOB)
    watched = Watched(parts)
    watched.after(0.0)
    client.delete(QUEUE)
    watched.after(4.0)
    watched.after(4.0)
    assert parts.announcer.waiting() == set()
    watched.after(2.0)
    assert parts.announcer.waiting() == {job.id}
    watched.after(60.0)
    assert client.llen(QUEUE) == 1
    client.close()


async def test_a_silent_worker_loses_its_job_and_a_living_one_does_not(parts):
    job = await parts.trainer.submit(JOB)
    records, watched = parts.records, Watched(parts)
    records.update(job.id, lambda old: jobs.claimed(old, "w", 1.0))
    for _ in range(10):
        watched.after(9.0)
        records.update(job.id, jobs.alive)
    watched.after(1.0)
    watched.reaper.forget()  # Redis was away: nobody could say that he lives
    watched.after(9.0)
    watched.after(9.0)
    assert records.get(job.id).state is JobState.RUNNING
    watched.after(2.0)
    lost = records.get(job.id)
    assert (lost.state, lost.crashes) == (JobState.QUEUED, 1)
    assert "no sign of life from w" in lost.events[-1].text
    with pytest.raises(jobs.Superseded):
        records.update(job.id, lambda old: jobs.beaten(old, 1, None, []))
    assert watched.metrics.registry.get_sample_value("forward_ofa_trainer_jobs_lost_total") == 1


async def test_old_jobs_and_their_folders_are_forgotten(parts, settings):
    ids = []
    for _ in range(4):
        job = await parts.trainer.submit(JOB)
        settings.folder(job.id).mkdir(parents=True)
        ids.append(job.id)
        if len(ids) < 4:
            parts.records.update(job.id, lambda old: jobs.cancelled(old, 1.0))
        time.sleep(0.01)
    beat_settings = BeatSettings(keep_jobs=2)
    metrics = TrainerMetrics(worker=False)
    reaper = Reaper(beat_settings, parts.records, parts.announcer, metrics)
    Beat(beat_settings, settings, parts.records, reaper, None, metrics).clean()
    left = [job.id for job in parts.records.page((), 10)]
    assert left == [ids[3], ids[2], ids[1]]
    assert [settings.folder(job_id).exists() for job_id in ids] == [False, True, True, True]


def scheduler_of(parts, settings, folder, least=10) -> Scheduler:
    """Of a schedule "shop" that is looked at every second."""
    path = folder / "schedules.toml"
    path.write_text(
        f'[[schedule]]\nname = "shop"\nlook_seconds = 1\nmin_new_rows = {least}\n'
        'settle_seconds = 0\n[schedule.job]\ndata = "log"\nrecipe = "quick"\n'
    )
    metrics = TrainerMetrics(worker=False)
    return Scheduler(path, settings, parts.records, parts.trainer, metrics)


def looks(scheduler: Scheduler, since: float, count: int = 3) -> float:
    """Whole looks, each with its thread; the time after them."""
    for _ in range(count):
        scheduler.look(since)
        for thread in threading.enumerate():
            if thread.name == "look-shop":
                thread.join(10)
        scheduler.look(since)
        since += 2
    return since


def ended(parts) -> int:
    """How many jobs there have been, of which none lives from here on."""
    found = parts.records.page((), 10)
    for job in found:
        if job.state.live:
            parts.records.update(job.id, lambda old: jobs.cancelled(old, 1.0))
    return len(found)


def day(folder, name: str, users: range) -> None:
    lines = [f"u{user},i{item},{100 + item}" for user in users for item in range(9)]
    (folder / f"{name}.csv").write_text("user,item,time\n" + "\n".join(lines) + "\n")


async def test_a_schedule_counts_what_comes_also_of_a_window_that_moves(parts, settings, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    day(log, "1", range(30))
    scheduler = scheduler_of(parts, settings, tmp_path, least=200)
    now = looks(scheduler, 0.0)
    assert ended(parts) == 1
    text = (log / "1.csv").read_text().splitlines(keepends=True)
    (log / "1.csv").write_text("".join(text[:-3]))  # somebody asked to be forgotten
    now = looks(scheduler, now)
    assert ended(parts) == 1
    day(log, "2", range(30, 60))
    (log / "1.csv").unlink()
    now = looks(scheduler, now)
    assert ended(parts) == 2
    # Another beat knows how far the log had grown from the last job.
    another = scheduler_of(parts, settings, tmp_path, least=200)
    now = looks(another, now)
    assert ended(parts) == 2
    day(log, "3", range(60, 90))
    looks(another, now)
    assert ended(parts) == 3


async def test_two_beats_submit_once_what_both_have_seen_come(parts, settings, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    day(log, "1", range(30))
    both = [scheduler_of(parts, settings, tmp_path, least=200) for _ in range(2)]
    now = 0.0
    for count, name in ((1, "2"), (2, "3"), (3, "")):
        for each in (*both, *both):
            now = looks(each, now)
            assert ended(parts) == count
        if name:
            day(log, name, range(30 * int(name), 30 * int(name) + 30))


async def test_a_log_that_hangs_holds_up_nothing_but_its_own_schedule(
    parts, settings, tmp_path, monkeypatch, caplog
):
    hung, read = threading.Event(), Growth.measure

    def measure(self: Growth, path: Path) -> Measure:
        if path.name == "log":
            hung.wait(60)
        return read(self, path)

    monkeypatch.setattr(Growth, "measure", measure)
    scheduler = scheduler_of(parts, settings, tmp_path)
    for name in ("log", "other"):
        (tmp_path / name).mkdir()
        day(tmp_path / name, "1", range(30))
    for now in range(300):
        scheduler.look(float(now))
    assert caplog.text.count("a schedule's look takes long") == 1
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "look-shop")
    assert thread.daemon
    # The operator names another log: it is looked at while the first one still hangs.
    path = tmp_path / "schedules.toml"
    path.write_text(path.read_text().replace('"log"', '"other"'))
    scheduler.look(301.0)
    (second,) = (t for t in threading.enumerate() if t.name == "look-shop" and t is not thread)
    second.join(10)
    hung.set()
    thread.join(10)
    scheduler.look(302.0)
    assert [job.parameters.data for job in parts.records.page((), 10)] == [str(tmp_path / "other")]
    ended(parts)
    looks(scheduler, 303.0)
    assert ended(parts) == 1


async def test_the_last_job_of_a_schedule_is_not_forgotten(parts, settings, tmp_path):
    (tmp_path / "log").mkdir()
    day(tmp_path / "log", "1", range(30))
    scheduler = scheduler_of(parts, settings, tmp_path)
    looks(scheduler, 0.0)
    assert ended(parts) == 1
    for count in (2, 3):
        await parts.trainer.submit(JOB)
        assert ended(parts) == count
    beat_settings, metrics = BeatSettings(keep_jobs=1), TrainerMetrics(worker=False)
    reaper = Reaper(beat_settings, parts.records, parts.announcer, metrics)
    Beat(beat_settings, settings, parts.records, reaper, scheduler, metrics).clean()
    assert [job.schedule for job in parts.records.page((), 10)] == ["", "shop"]


async def test_a_schedules_file_that_is_gone_is_told_of_once(parts, settings, tmp_path, caplog):
    scheduler = scheduler_of(parts, settings, tmp_path)
    (tmp_path / "schedules.toml").unlink()
    for now in range(5):
        scheduler.look(float(now))
    assert caplog.text.count("schedules not taken over") == 1


def test_a_redis_that_forgets_is_refused(tmp_path):
    cache = RedisServer(tmp_path, "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    cache.start()
    with pytest.raises(SettingsError, match="noeviction"):
        check_redis(cache.url, 1.0)
    cache.kill()
    check_redis(cache.url, 0.2)  # away: not judged


def test_a_killed_embedded_redis_is_started_again_and_one_left_alone_is_taken_over(redis):
    client = connect(redis.url, 1.0)
    client.set("a", "b")
    redis._process.kill()
    redis._process.wait()
    assert not redis.running()
    redis.start()
    assert client.get("a") == b"b"
    other = EmbeddedRedis(redis._folder)
    other.start()
    assert other.running() and other._process is None
    other.stop()
    assert not other.running()
    # Its connections and sockets are closed a moment before the process has ended.
    assert redis._process.wait(20) == 0
    assert not redis.running()
    client.close()


@pytest.mark.parametrize("text", ["trainer,mapper", "all,trainer"])
def test_the_trainer_stands_alone(text):
    with pytest.raises(SettingsError, match="trainer alone"):
        parse_targets(text)


@pytest.mark.parametrize(
    "url", ["http://x", "redis+sentinel://a:1/main/0", "redis+cluster://a:1", "memory://"]
)
def test_a_broker_is_one_redis(tmp_path, url):
    with pytest.raises(SettingsError, match="redis://HOST"):
        TrainerSettings(url, tmp_path, tmp_path)
