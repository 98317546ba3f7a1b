"""The approximate index finds nearly what the exact one does, in the exact order, or says no."""

from __future__ import annotations

import json

import numpy as np
import pytest

from services.controller import ivf
from services.controller.indexing import IndexSettings, add_index
from services.controller.retrieval import ItemIndex
from services.controller.served import ServedVersion
from services.errors import Fault, Reason
from services.registry.contract import (
    RETRIEVAL_INDEX,
    PublishedVersion,
    RegistryError,
    RetrievalPlan,
    VersionManifest,
)
from services.registry.files import FileRegistry
from tests.support.versions import publish, write_staging

N, D = 20_000, 16
APPROXIMATE = IndexSettings("approximate", recall=0.97, count=50)


def clustered(count=N, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(80, D))
    return (centres[rng.integers(0, 80, count)] + rng.normal(size=(count, D))).astype(np.float32)


@pytest.fixture(scope="module")
def items():
    return clustered()


@pytest.fixture(scope="module")
def index(items):
    return ivf.build(items)


def exact_of(items):
    return ItemIndex(np.eye(D, dtype=np.float32), np.zeros(D, np.float32), items)


def test_tuned_to_a_recall_and_no_further(items, index):
    tuning, holdout = clustered(100, 1), clustered(100, 2)
    plan, reached = ivf.tune(index, items, tuning, 50, 0.97)
    assert plan.kind == "ivf-sq8" and plan.lists == index.nlist == 141
    assert reached >= 0.97 and plan.probes < plan.lists / 2
    index.nprobe = plan.probes
    searched = ivf.ApproximateIndex(exact_of(items), index, plan.oversample)
    exact = exact_of(items)
    shares = [np.isin(searched.search(q, 50), exact.search(q, 50)).mean() for q in holdout]
    assert np.mean(shares) > 0.95, "on queries that it was not tuned on"
    if plan.probes > 1:
        index.nprobe = plan.probes // 2
        short, fewer = ivf.tune(index, items, tuning, 50, 0.01)
        assert (short.probes, fewer < reached) == (1, True)


def test_order_and_scores_are_exact(items, index):
    index.nprobe = 40
    searched = ivf.ApproximateIndex(exact_of(items), index, 2)
    for query in clustered(50, 3):
        rows = searched.search(query, 30)
        scores = items[rows] @ query
        assert len(set(rows.tolist())) == 30
        assert (np.diff(scores) <= 0).all()


def test_equal_scores_go_by_row():
    items = np.repeat(clustered(400), 10, axis=0)
    index = ivf.build(items)
    index.nprobe = index.nlist
    searched = ivf.ApproximateIndex(exact_of(items), index, 4)
    for query in clustered(20, 3):
        assert searched.search(query, 30).tolist() == exact_of(items).search(query, 30).tolist()


@pytest.mark.parametrize("count", [1, 150, N - 1, N, N + 5])
def test_as_many_as_are_wanted(items, index, count):
    """Where the lists that are searched have too few, all items are."""
    index.nprobe = 1
    searched = ivf.ApproximateIndex(exact_of(items), index, 2)
    rows = searched.search(items[0], count)
    assert len(set(rows.tolist())) == min(count, N)


@pytest.mark.parametrize("value", [3e38, np.inf, np.nan])
def test_overflow_is_the_callers(items, index, value):
    searched = ivf.ApproximateIndex(exact_of(items), index, 2)
    with pytest.raises(Fault) as caught:
        searched.search(np.full(D, value, np.float32), 10)
    assert caught.value.reason is Reason.NON_FINITE_INTEREST


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return FileRegistry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def tiny(registry):
    return publish(registry, "v1", items=5000, index=APPROXIMATE)


def test_a_published_index_is_served(registry, tiny):
    manifest = registry.open("v1").manifest
    assert manifest.retrieval.is_approximate and RETRIEVAL_INDEX in manifest.files
    assert manifest.metrics["index_recall@50"] >= 0.97
    assert manifest.metrics["index_recall_queries"] == 64
    assert manifest.metrics["ndcg@10"] == 0.1, "what was there is kept"
    served = ServedVersion.load(registry.open("v1"))
    assert isinstance(served.index, ivf.ApproximateIndex) and not served.index.inline
    shares = []
    for seed in range(100, 150):
        found = [tiny.item_ids[row] for row in served.index.search(tiny.interest(seed), 50)]
        shares.append(len(set(found) & set(tiny.best(tiny.interest(seed), 50))) / 50)
    assert np.mean(shares) > 0.94


def test_auto_goes_by_size(registry):
    for exact_up_to, kind in ((60, "exact"), (59, "ivf-sq8")):
        version = f"auto-{exact_up_to}"
        publish(registry, version, index=IndexSettings("auto", exact_up_to, count=10))
        opened = registry.open(version)
        assert opened.manifest.retrieval.kind == kind
        assert opened.has(RETRIEVAL_INDEX) == (kind != "exact")
        ServedVersion.load(opened)


def test_manifests_of_before_are_exact(registry):
    publish(registry, "old")
    raw = json.loads((registry.root / "versions/old/manifest.json").read_text())
    assert "retrieval" not in raw
    assert registry.open("old").manifest.retrieval == RetrievalPlan()


def test_without_queries_there_is_no_recall(registry):
    staging = registry.staging()
    write_staging(staging, "none")
    with pytest.raises(RegistryError, match="recall"):
        add_index(staging, np.zeros((0, 8), np.float32), APPROXIMATE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lists": 7, "probes": 2},
        {"probes": 0},
        {"probes": 10_000},
        {"oversample": 0},
        {"kind": "hnsw"},
        {"kind": None},
        {"lists": "many"},
    ],
)
def test_a_plan_that_is_not_the_index(registry, tiny, wrong):
    root = registry.root / "versions/v1"
    raw = json.loads((root / "manifest.json").read_text())
    raw["retrieval"] |= wrong
    if wrong != {"lists": 7, "probes": 2}:
        with pytest.raises(ValueError):
            VersionManifest.from_json(json.dumps(raw))
        return
    manifest = VersionManifest.from_json(json.dumps(raw))
    with pytest.raises(Fault) as caught:
        ServedVersion.load(PublishedVersion(root, manifest))
    assert caught.value.reason is Reason.CORRUPT_VERSION


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_a_damaged_index_is_refused(registry, tiny, damage):
    version = f"damaged-{damage}"
    publish(registry, version, items=2000, label=None, index=APPROXIMATE)
    path = registry.root / "versions" / version / RETRIEVAL_INDEX
    path.chmod(0o644)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flip":
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    else:
        path.write_bytes((registry.root / "versions/v1" / RETRIEVAL_INDEX).read_bytes())
    with pytest.raises(Fault) as caught:
        ServedVersion.load(registry.open(version))
    assert caught.value.reason is Reason.CORRUPT_VERSION


@pytest.mark.parametrize("size", [0, 3, 100])
def test_an_index_that_faiss_cannot_read(registry, tiny, size):
    """With the right digest: published so."""
    opened = registry.open("v1")
    path = opened.path(RETRIEVAL_INDEX)
    path.chmod(0o644)
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:size])
        exact = exact_of(np.zeros((5000, 8), np.float32))
        with pytest.raises(Fault) as caught:
            ivf.load_approximate(opened, exact)
        assert caught.value.reason is Reason.CORRUPT_VERSION
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "wrong", [("hnsw",), ("auto", -1), ("auto", 1, 0.0), ("auto", 1, 1.1), ("auto", 1, 0.9, 0)]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        IndexSettings(*wrong)
