"""kill -9 of worker, training process or Redis at 20 random moments: the same figures, one
version, nothing half done."""

from __future__ import annotations

import random
import time

import pytest

from forward_ofa_api.trainer.v1 import trainer_pb2 as api
from services.registry.files import FileRegistry
from tests.support.trainer import TrainerUnderTest, trainer

KILLS, KILLS_OF_A_JOB = 20, 4
PARTS = ("worker", "training", "redis")
SETTINGS = {"training.epochs": "8", "device_rec.epochs": "4"}


def figures(job: api.Job) -> tuple[dict[str, float], list[tuple[str, int, float, float]]]:
    """What must be the same in each run: all but times."""
    epochs = [(e.stage, e.epoch, e.loss, e.ndcg) for e in job.epochs]
    return dict(job.metrics), epochs


def kill_at_random(running: TrainerUnderTest, job_id: str, seed: int, usual: float) -> list[str]:
    """Kills KILLS_OF_A_JOB times while the job lives, each soon after the one before."""
    rng = random.Random(seed)
    killed = []
    for _ in range(KILLS_OF_A_JOB):
        time.sleep(rng.uniform(0.0, usual / 2))
        part = rng.choice(PARTS)
        if running.job(job_id).ended_ms:
            break
        running.wait(lambda part=part: running.kill(part) or running.job(job_id).ended_ms, 60)
        killed.append(part)
    return killed


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills(tmp_path):
    with trainer(tmp_path) as running:
        calm_id = running.submit(settings=SETTINGS)
        calm = running.ended(calm_id)
        assert calm.state == api.JOB_STATE_DONE, calm
        usual = (calm.ended_ms - calm.started_ms) / 1000
        registry, published, count = FileRegistry(running.registry), [calm_id], 0
        for seed in range(KILLS):
            if count >= KILLS:
                break
            job_id = running.submit(settings=SETTINGS)
            killed = kill_at_random(running, job_id, seed, usual)
            job = running.ended(job_id, 240)
            if job.failure.reason == "CRASHED":
                # Killed again and again before an epoch was over: what people do then.
                running.stub.ResumeJob(api.ResumeJobRequest(job_id=job_id))
                job = running.ended(job_id, 240)
            print(f"seed {seed}: killed {killed}, {job.attempt} attempts", flush=True)
            assert (job.state, job.version) == (api.JOB_STATE_DONE, job_id), job
            assert figures(job) == figures(calm)
            count += len(killed)
            published.append(job_id)
        assert count >= KILLS
        # No partial version, none twice, none lost; and nothing of one is left behind.
        assert sorted(v.version for v in registry.versions()) == sorted(published)
        assert registry.damaged() == {}
        for version in published:
            registry.open(version).verify()
        jobs = running.stub.ListJobs(api.ListJobsRequest()).jobs
        assert sorted(job.id for job in jobs) == sorted(published)
