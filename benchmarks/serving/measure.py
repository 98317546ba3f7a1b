"""A run: everything is started once and then measured in turns, since machines are noisy."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.serving import procs
from benchmarks.serving.load import Job
from benchmarks.serving.loader import Loader, LoadError
from benchmarks.serving.servers import ONE_THREAD, Servers
from benchmarks.serving.settings import Settings
from benchmarks.serving.systems import (
    BARE,
    BARE_BATCHING,
    BATCH,
    TITLES,
    Ask,
    Starter,
    System,
)
from benchmarks.serving.venvs import ROOT, Unavailable
from benchmarks.serving.version import BenchVersion, open_version
from benchmarks.serving.workload import Workload, all_blocks, real_devices
from forward_ofa.data import DataError
from services.errors import Fault

Say = Callable[[str], None]
_CALIBRATION_SECONDS = 0.6
_LOAD = 0.8
_THAW_SECONDS = 0.2
_METRICS = ("rps", "server_cpu_ms", "client_cpu_ms", "server_cores", "client_cores", "other_cores")
_LATENCIES = ("p50", "p90", "p95", "p99", "mean", "max")


@dataclass
class Cell:
    """One line of the table. group: floor, same (bytes), ours (what only ours does).

    jobs: clients -> job, made once; systems: clients -> who answers it.
    """

    name: str
    group: str
    encoding: str
    jobs: dict[int, Job] = field(default_factory=dict)
    systems: dict[int, System] = field(default_factory=dict)
    rounds: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def median(self, clients: int) -> dict[str, float]:
        """Medians over rounds, and rps_spread: (largest - smallest) / median."""
        rounds = self.rounds.get(clients, [])
        if not rounds:
            return {}
        found = {name: statistics.median(each[name] for each in rounds) for name in _METRICS}
        for name in _LATENCIES:
            values = [each["latency_ms"][name] for each in rounds if each["latency_ms"]]
            found[name] = statistics.median(values) if values else float("nan")
        rates = [each["rps"] for each in rounds]
        found["rps_spread"] = (max(rates) - min(rates)) / found["rps"] if found["rps"] else 0.0
        found["errors"] = float(sum(each["errors"] + each["refused"] for each in rounds))
        return found


class Run:
    """Measures what the settings say."""

    def __init__(
        self, settings: Settings, version: BenchVersion, servers: Servers, loader: Loader, say: Say
    ) -> None:
        self.settings, self.version = settings, version
        self.servers, self.loader, self.say = servers, loader, say
        self.starter = Starter(servers, version, settings.ours)
        self.cells: list[Cell] = []
        self.skipped: dict[str, str] = {}
        self.product: dict[str, Any] = {}
        self.at_load: list[dict[str, Any]] = []
        self.memory: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.workload = all_blocks(version)

    def run(self) -> None:
        """Everything, in order."""
        self._start()
        self.servers.only(())
        self.product = self._measure_product()
        for number in range(self.settings.rounds):
            self.say(f"round {number + 1} of {self.settings.rounds}")
            for cell in self.cells:
                for clients, job in cell.jobs.items():
                    self._measure(cell, clients, replace(job, seed=number))
        for cell in self.cells:
            for clients, system in cell.systems.items():
                self.memory[f"{cell.name}, {clients}"] = procs.usage(system.pids).as_dict()
        self._load()

    def cell(self, name: str) -> Cell | None:
        """By name; None if it was skipped."""
        return next((cell for cell in self.cells if cell.name == name), None)

    # Start.

    def _start(self) -> None:
        size = self.version.layout.size * 4 * self.version.config.blocks
        self._add("echo", "floor", lambda: self.starter.echo(size), Ask())
        ours = self._add("ours, one process", "same", self.starter.one_process, Ask(held=True))
        split = self._add("ours, split in 3", "same", self.starter.three_processes, Ask(held=True))
        for peer in self.settings.peers:
            self._add_peer(peer)
        if ours is not None:
            for name, ask in (
                ("ours, float32 + candidates", Ask()),
                ("ours, float16", Ask("float16", held=True)),
                ("ours, int8", Ask("int8", held=True)),
            ):
                self._add_cell(name, "ours", ours, ask, self.workload)
        if split is not None:
            ask = Ask("float16", held=True)
            self._add_cell("ours, split, float16", "ours", split, ask, self.workload)
        self._add_real()

    def _add(self, name: str, group: str, start: Callable[[], System], ask: Ask) -> System | None:
        self.say(f"starting {name}")
        try:
            system = start()
        except (Unavailable, OSError) as error:
            self.skipped[name] = str(error)
            return None
        try:
            self._add_cell(name, group, system, ask, self.workload)
        except (Unavailable, LoadError) as error:
            self.skipped[name] = str(error)
            self.servers.stop(system.pids)
            return None
        return system

    def _add_cell(
        self, name: str, group: str, system: System, ask: Ask, workload: Workload
    ) -> None:
        cell = Cell(name, group, ask.encoding)
        self._alone(system)
        job = replace(
            system.job(workload, ask, self.loader),
            seconds=self.settings.seconds,
            warmup=self.settings.warmup,
        )
        self._until_it_answers(name, job)
        for clients in self.settings.clients:
            cell.jobs[clients] = replace(job, clients=clients)
            cell.systems[clients] = system
        self.cells.append(cell)

    def _until_it_answers(self, name: str, job: Job, seconds: float = 40.0) -> None:
        """Some listen long before they can answer."""
        end, why = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            try:
                result = self.loader.run(replace(job, seconds=0.2, warmup=0.1))
                if result["ok"] and not result["errors"]:
                    return
                why = str(result["error_texts"])
            except LoadError as error:
                why = str(error)
            time.sleep(0.3)
        raise Unavailable(f"{name} does not answer rightly: {why[:300]}")

    def _add_peer(self, peer: str) -> None:
        """With and without its batching; for each number of clients the better one stays.

        The bare one has no batching but the one that we wrote for it: that is a line of its own.
        """
        if peer == BARE:
            self._add(TITLES[peer], "same", lambda: self.starter.peer(peer, 1), Ask())
            self._add(BARE_BATCHING, "same", lambda: self.starter.peer(peer, BATCH), Ask())
            return
        title = TITLES[peer]
        variants: list[System] = []
        for batch in (1, BATCH) if self.settings.trials else (BATCH,):
            self.say(f"starting {title}" + (", batching" if batch > 1 else ""))
            try:
                system = self.starter.peer(peer, batch)
                self._until_it_answers(title, system.job(self.workload, Ask(), self.loader))
                variants.append(system)
            except (Unavailable, LoadError, OSError) as error:
                self.skipped[title if batch == 1 else f"{title}, batching"] = str(error)
        if not variants:
            return
        cell = Cell(title, "same", "float32")
        for clients in self.settings.clients:
            system = variants[0]
            if len(variants) > 1:
                system = max(variants, key=lambda each: self._quick_rate(each, clients))
            job = system.job(self.workload, Ask(), self.loader)
            cell.systems[clients] = system
            cell.jobs[clients] = replace(
                job,
                clients=clients,
                seconds=self.settings.seconds,
                warmup=self.settings.warmup,
            )
        used = {system.pids for system in cell.systems.values()}
        for system in variants:
            if system.pids not in used:
                self.servers.stop(system.pids)
        self.cells.append(cell)

    def _quick_rate(self, system: System, clients: int) -> float:
        self._alone(system)
        job = system.job(self.workload, Ask(), self.loader)
        seconds = _CALIBRATION_SECONDS + clients * 0.02
        try:
            result = self.loader.run(replace(job, clients=clients, seconds=seconds))
        except LoadError:
            return 0.0
        return float(result["rps"]) if not result["errors"] else 0.0

    def _add_real(self) -> None:
        name, settings = "ours, float16, real paths", self.settings
        if settings.registry is None or settings.data is None:
            self.skipped[name] = "give --registry (a trained version) and --data (its log)"
            return
        self.say(f"starting {name}")
        try:
            weights = self.servers.folder.parent / "real-weights.npy"
            version = open_version(settings.registry.resolve(), weights)
            workload = real_devices(version, settings.data)
            system = self.starter.one_process("ours real", version)
            ask = Ask("float16", held=True)
            self._add_cell(name, "ours", system, ask, workload)
        except (Unavailable, LoadError, OSError, ValueError, Fault, DataError) as error:
            self.skipped[name] = str(error)
            return
        same = version.config.blocks == self.version.config.blocks
        same = same and version.layout.size == self.version.layout.size
        self.notes.append(
            f"real paths keep {workload.mean_kept:.2f} of {version.config.blocks} blocks on "
            f"average over {len(workload.paths)} histories"
            + ("" if same else "; the trained blocks have another size than the job's")
        )

    # Measure.

    def _alone(self, system: System) -> None:
        self.servers.only(system.pids)
        time.sleep(_THAW_SECONDS)

    def _measure(self, cell: Cell, clients: int, job: Job) -> None:
        self._alone(cell.systems[clients])
        try:
            result = self.loader.run(job)
        except LoadError as error:
            self.notes.append(f"{cell.name}, {clients} clients: {error}")
            return
        result["batch"] = cell.systems[clients].batch
        cell.rounds.setdefault(clients, []).append(result)
        if result["errors"]:
            self.notes.append(f"{cell.name}, {clients} clients: {result['error_texts']}")

    def _measure_product(self) -> dict[str, Any]:
        self.say("the matrix product alone")
        cores, _ = self.settings.cores()
        command = [sys.executable, "-m", "benchmarks.serving.product"]
        command += [str(self.version.weights), str(min(0.4, self.settings.seconds / 4))]
        command += [",".join(map(str, cores))] if cores else []
        done = subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True, env=_environment()
        )
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def _load(self) -> None:
        """80 % of the capacity that was measured, at random moments."""
        most, names = max(self.settings.clients), ["ours, one process", "ours, float16"]
        names += ["ours, float16, real paths"]
        names += [cell.name for cell in (self.best_peer(most),) if cell is not None]
        for name in names:
            cell = self.cell(name)
            capacity = cell.median(most).get("rps", 0.0) if cell else 0.0
            if cell is None or not capacity:
                continue
            self.say(f"{_LOAD:.0%} load, {name}: {_LOAD * capacity:.0f} requests/s")
            self._alone(cell.systems[most])
            phases = [(self.settings.load_seconds, _LOAD * capacity)]
            try:
                result = self.loader.run(replace(cell.jobs[most], op="open", phases=phases))
            except LoadError as error:
                self.notes.append(f"{name} at {_LOAD:.0%} load: {error}")
                continue
            del result["slices"]
            self.at_load.append({"name": name, "capacity": capacity, **result})

    def peers(self) -> list[Cell]:
        """Those that could be started."""
        return [cell for cell in self.cells if cell.name in TITLES.values()]

    def best_peer(self, clients: int) -> Cell | None:
        """The peer with the most requests a second; None if there is none."""
        peers = [cell for cell in self.peers() if cell.median(clients)]
        return max(peers, key=lambda cell: cell.median(clients)["rps"], default=None)

    def results(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "product_ms": self.product,
            "cells": [
                {
                    "name": cell.name,
                    "group": cell.group,
                    "encoding": cell.encoding,
                    "clients": clients,
                    "batch": cell.systems[clients].batch,
                    "median": cell.median(clients),
                    "memory": self.memory.get(f"{cell.name}, {clients}", {}),
                    "rounds": rounds,
                }
                for cell in self.cells
                for clients, rounds in cell.rounds.items()
            ],
            "at_80_percent": self.at_load,
            "skipped": self.skipped,
            "notes": self.notes,
        }


def _environment() -> dict[str, str]:
    return {**os.environ, **ONE_THREAD}
