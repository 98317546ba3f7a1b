"""The funnel that an evaluation reports is what cloud and devices do with the exported version."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.config import MethodConfig, RunConfig, TrainingConfig
from forward_ofa.data import FilterConfig, SequenceDataset, generate_log, prepare
from forward_ofa.evaluation import Evaluation, evaluate
from forward_ofa.export import export_version
from forward_ofa.model import ForwardOFA
from forward_ofa.runs import Run
from forward_ofa_device.artefact import read_artefact, write_artefact
from forward_ofa_device.backbones.contract import BackboneConfig
from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.engine import NetworkEngine
from forward_ofa_device.extractor import InterestExtractor
from services.controller.served import ServedVersion
from services.mapper.domain import MappedVersion
from services.registry.contract import PublishedVersion
from services.registry.files import FileRegistry

COUNT, BLOCKS, READ = 30, 4, 12


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    return prepare(generate_log(users=80, items=120, seed=3), FilterConfig())


@pytest.fixture(scope="module", params=["sasrec", "nextitnet"])
def system(request: pytest.FixtureRequest, data: SequenceDataset) -> ForwardOFA:
    """Untrained, but with networks that differ: paths of many lengths, and without any logit
    that reaches 0 for some users."""
    torch.manual_seed(0)
    config = BackboneConfig(request.param, blocks=BLOCKS, hidden=16, heads=2)
    system = ForwardOFA(data.num_items, MethodConfig(config, READ, keep_bias=-0.4, spread=1.0))
    with torch.no_grad():
        system.items.weight.mul_(40)
        system.controller.head.weight.mul_(40)
        system.query.weight.mul_(4)
        system.fusion.fill_(0.5)
    return system.eval()


@pytest.fixture
def published(system: ForwardOFA, data: SequenceDataset, tmp_path: Path) -> PublishedVersion:
    training = TrainingConfig(epochs=1)
    config = RunConfig(system.config, training, training, warm_start=False)
    other = DeviceRec(data.num_items, system.backbone.config, 0.0)
    report = {"protocol": [], "systems": {"forward-ofa": {}}}
    run = Run(tmp_path, config, {}, system, other, report)
    registry = FileRegistry(tmp_path / "registry")
    staging = registry.staging()
    export_version(run, data, staging)
    return registry.open(registry.publish(staging))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_ranks_as_devices_do(
    split: str, system: ForwardOFA, data: SequenceDataset, published: PublishedVersion
) -> None:
    expected = evaluate(system, data, split, COUNT)
    assert len(set(expected.kept_blocks.tolist())) > 2, "the test's paths differ"
    ranks, kept = live(data, published, {"validation": 2, "test": 1}[split])
    assert kept == expected.kept_blocks.tolist()
    # Float32 sums in another order may swap two items that score nearly the same.
    assert np.mean(np.array(ranks) == expected.funnel.ranks) > 0.98
    check(expected)


def check(found: Evaluation) -> None:
    assert found.funnel.candidates == COUNT
    assert found.funnel.recall == np.mean(found.funnel.ranks > 0)
    assert 0 < found.funnel.recall < 1


def generate(mapped: MappedVersion, block: int, interest: np.ndarray) -> list[bytes]:
    networks = mapped.networks
    row = torch.from_numpy(networks.row(interest))[None]
    out = torch.empty(1, networks.layout.size)
    return mapped.encoder.encode(networks.multiply(block, row, out), "float32")


def live(
    data: SequenceDataset, published: PublishedVersion, left: int
) -> tuple[list[int], list[int]]:
    """Each user's funnel by the parts that run online: (rank of what came next, kept blocks)."""
    served, mapped = ServedVersion.load(published), MappedVersion.load(published)
    bundle = read_bundle(published.path("bundle/tensors.safetensors").read_bytes())
    extractor, engine = InterestExtractor(bundle), NetworkEngine(bundle)
    ids = json.loads(published.path("catalogue.json").read_text())["item_ids"]
    assert ids == data.item_ids
    table = served.index.items
    ranks, kept = [], []
    for user in range(data.num_users):
        history = data.history(user)[:-left] - 1
        target = int(data.history(user)[-left]) - 1
        interest = extractor.interest(table[history])
        payloads = [
            payload
            for block in np.flatnonzero(interest.path).tolist()
            for payload in generate(mapped, block, interest.vector)
        ]
        artefact = write_artefact(
            served.version, served.backbone.name, interest.path, "float32", served.layout, payloads
        )
        rows = served.index.search(interest.vector, COUNT)
        unseen = [row for row in rows.tolist() if row not in set(history.tolist())]
        scores = engine.scores(
            read_artefact(artefact, served.layout),
            table[history],
            table[unseen],
            engine.offset(interest.vector),
        )
        order = [unseen[n] for n in np.argsort(-scores, kind="stable")]
        ranks.append(order.index(target) + 1 if target in order else 0)
        kept.append(sum(interest.path))
    return ranks, kept
