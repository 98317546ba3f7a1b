"""The log and the configuration that the command's options name; importable by its processes."""

from __future__ import annotations

import argparse
from dataclasses import replace

from rich.console import Console

from benchmarks.training.steps import Case, makers, peak_memory
from forward_ofa.config import RunConfig
from forward_ofa.data import FilterConfig, SequenceDataset, generate_log, prepare
from forward_ofa.recipes import recipe


def load(options: argparse.Namespace) -> SequenceDataset:
    """The log: `--data`, or a synthetic one."""
    if options.data is not None:
        from forward_ofa_cli.source import Source

        return Source(data=options.data).load(Console(stderr=True))
    return prepare(
        generate_log(users=700, items=3200, seed=1), FilterConfig(min_user=3, min_item=1)
    )


def configuration(options: argparse.Namespace) -> RunConfig:
    """The paper's recipe with the options' sizes."""
    config = recipe("paper", options.backbone, 1_000_000)
    training = replace(
        config.training, batch_size=options.batch_size, targets_per_network=options.targets
    )
    method = replace(config.method, keep_bias=options.keep_bias)
    return replace(config, training=training, method=method)


def memory_of(options: argparse.Namespace, name: str) -> int:
    """Peak memory of one system's steps; for a process of its own."""
    make = makers(options.bases)[name]
    return peak_memory(Case(name, make(load(options), configuration(options))), options.device)
