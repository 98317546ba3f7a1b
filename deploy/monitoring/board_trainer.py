"""The trainer's board: jobs, their progress, the gate, and what was published."""

from __future__ import annotations

from deploy.monitoring.panels import Board, Panel, Row

_T = "forward_ofa_trainer_"
# Of the jobs on record, as the beat sees them: workers come and go.
_ENDED = f'{_T}last_ended_timestamp_seconds{{state="%s", $where}}'
_VERDICT = (
    f"(max({_ENDED % 'done'}) >= bool max({_ENDED % 'refused'}))"
    f' and max({_T}last_ended_timestamp_seconds{{state=~"done|refused", $where}}) > 0'
)
TRAINER = Board(
    "trainer", "Forward-OFA: trainer", "Jobs, their progress, the gate, and what was published.",
    (
        Row("Now", (
            Panel("Jobs queued", "Waiting for a worker.",
                  ((f'max({_T}jobs{{state="queued", $where}})', "queued"),), kind="stat",
                  alert="ForwardOfaTrainerQueueAge", width=4),
            Panel("Jobs running", "On all workers.",
                  ((f'max({_T}jobs{{state="running", $where}})', "running"),), kind="stat",
                  width=4),
            Panel("Oldest queued job waits", "0: none waits.",
                  ((f"max({_T}queue_age_seconds{{$where}})", "waits"),), "s", "stat",
                  ((None, "green"), (600, "orange"), (3600, "red")),
                  "ForwardOfaTrainerQueueAge", 4),
            Panel("Last success", "Since the newest job that ended well.",
                  ((f'time() - (max({_T}last_ended_timestamp_seconds{{state="done", $where}}) > 0)',
                    "ago"),), "s", "stat", alert="ForwardOfaTrainerJobFailed", width=4),
            Panel("Last verdict", "Of the newest job that ended and did not fail; 1: done, "
                  "0: refused by the gate. Nothing: there was none.", ((_VERDICT, "done"),),
                  kind="stat",
                  levels=((None, "red"), (1, "green")), alert="ForwardOfaTrainerGateRefuses",
                  width=4),
            Panel("Redis answers", "The queue's, asked by the beat.",
                  ((f"min({_T}redis_reachable{{$where}})", "reachable"),), kind="stat",
                  levels=((None, "red"), (1, "green")), alert="ForwardOfaTrainerRedisAway",
                  width=4),
        )),
        Row("Jobs", (
            Panel("Jobs on record", "By state.",
                  ((f"max by (state) ({_T}jobs{{$where}})", "{{state}}"),),
                  alert="ForwardOfaTrainerJobFailed"),
            Panel("Queue, signs of life, progress",
                  "queued: the oldest waiting job; silent: since a running job's last sign of "
                  "life; standing: since one went a step further.",
                  ((f"max({_T}queue_age_seconds{{$where}})", "queued"),
                   (f"max({_T}oldest_heartbeat_seconds{{$where}})", "silent"),
                   (f"max({_T}oldest_progress_seconds{{$where}})", "standing")), "s",
                  alert="ForwardOfaTrainerJobStuck"),
            Panel("Optimiser steps a second", "Of the job that each worker heard last.",
                  ((f"{_T}steps_per_second{{$where}}", "{{instance}}"),), "ops",
                  alert="ForwardOfaTrainerJobStuck"),
            Panel("Jobs that ended in a day", "By state and reason of failure (docs/trainer.md).",
                  ((f"sum by (state, reason) (increase({_T}jobs_ended_total{{$where}}[1d]))",
                    "{{state}} {{reason}}"),), alert="ForwardOfaTrainerJobFailed"),
            Panel("How long jobs take", "From first start to end, by state, since it began.",
                  ((f"sum by (state) ({_T}job_seconds_sum{{$where}}) / "
                    f"(sum by (state) ({_T}job_seconds_count{{$where}}) > 0)",
                    "{{state}}, mean"),), "s"),
            Panel("Rescued in a day", "Jobs whose worker went silent, and messages that were gone.",
                  ((f"sum(increase({_T}jobs_lost_total{{$where}}[1d]))", "lost"),
                   (f"sum(increase({_T}jobs_announced_again_total{{$where}}[1d]))",
                    "announced again")),
                  alert="ForwardOfaTrainerJobSilent"),
        )),
        Row("The gate and what it let through", (
            Panel("The gate's metric", "On the validation split, at each worker's last gate.",
                  ((f"{_T}gate_metric{{$where}}", "{{instance}} {{of}}"),), width=12,
                  alert="ForwardOfaTrainerGateRefuses"),
            Panel("Versions published in a day", "By all workers.",
                  ((f"sum(increase({_T}versions_published_total{{$where}}[1d]))", "versions"),),
                  width=12),
        )),
        Row("Processes", (
            Panel("CPU", "Cores in use; training processes are the workers' children and counted "
                  "by the machine, not here.",
                  (("sum by (job, instance) (rate(process_cpu_seconds_total{$where}$rate))",
                    "{{job}} {{instance}}"),), width=12),
            Panel("Memory", "Resident.",
                  (("sum by (job, instance) (process_resident_memory_bytes{$where})",
                    "{{job}} {{instance}}"),), "bytes", width=12),
        )),
    ),
    jobs="trainer-api|trainer-worker|trainer-beat",
)  # fmt: skip
