"""What a device makes of a partial list is the whole list, whatever the two lists are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.bundle import BundleManifest
from forward_ofa_device.errors import CorruptFile
from forward_ofa_device.partial import held_positions, position_type, read_positions
from forward_ofa_device.wire import Candidates, _read_candidates
from services.controller.candidates import CandidateOrder, candidate_list
from services.controller.served import ServedVersion
from services.controller.servicer import _candidates_message
from services.ports import SessionCandidates
from services.registry.files import FileRegistry
from tests.support.versions import CONFIG, ITEMS, publish

ENCODINGS = ("float32", "float16", "int8")
lists = st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=ITEMS, unique=True)
RELEASE = SimpleNamespace(
    bundle=SimpleNamespace(manifest=BundleManifest("v1", CONFIG, 20, (), ITEMS))
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    registry = FileRegistry(tmp_path_factory.mktemp("registry"))
    publish(registry, "v1")
    return ServedVersion.load(registry.open("v1"))


def session(rows, version="v1"):
    return SessionCandidates(version, np.array(rows, "<u4").tobytes())


def received(served, rows, encoding="float16", *, held=None, base=None, partial=True):
    """(message, what the device makes of it)."""
    order = CandidateOrder("session-1", encoding, held.etag if held else "", partial)
    message = _candidates_message(candidate_list(served, session(rows), order, base))
    wire = types.Candidates.FromString(message.SerializeToString())
    return wire, _read_candidates(wire, RELEASE, held)


def assert_same(one, other):
    assert (one.etag, one.item_ids) == (other.etag, other.item_ids)
    np.testing.assert_array_equal(one.embeddings, other.embeddings)


@given(lists, lists, st.sampled_from(ENCODINGS))
@settings(max_examples=300, deadline=None)
def test_partial_and_held_make_the_whole(served, first, second, encoding):
    _, held = received(served, first, encoding)
    whole_message, whole = received(served, second, encoding)
    message, found = received(served, second, encoding, held=held, base=session(first))
    assert_same(found, whole)
    assert message.ByteSize() <= whole_message.ByteSize() + len(held.etag) + 8
    if message.base_etag:
        new = [served.item_ids[row] for row in second if row not in first]
        assert list(message.item_ids) == new


@given(st.lists(lists, min_size=2, max_size=6), st.sampled_from(ENCODINGS))
@settings(max_examples=100, deadline=None)
def test_a_long_session_does_not_drift(served, session_lists, encoding):
    held = base = None
    for rows in session_lists:
        _, held = received(served, rows, encoding, held=held, base=base)
        base = session(rows)
        assert_same(held, received(served, rows, encoding)[1])


def test_a_whole_list_where_the_base_is_not_what_is_held(served):
    first, second = list(range(40)), list(range(5, 45))
    _, held = received(served, first)
    for base in (
        None,
        session(second[::-1]),
        session(first, version="v0"),
        session([]),
        session([*first, ITEMS]),
    ):
        message, _ = received(served, second, held=held, base=base)
        assert not message.base_etag and len(message.item_ids) == 40
    message, _ = received(served, second, "int8", held=held, base=session(first))
    assert not message.base_etag, "what is held is in another encoding"
    message, _ = received(served, second, held=held, base=session(first))
    assert message.base_etag == held.etag and len(message.item_ids) == 5


def test_clients_that_did_not_ask_get_whole_lists(served):
    """CandidateFinder looks for no base then; this is what they get."""
    _, held = received(served, range(40))
    message, _ = received(served, range(5, 45), held=held, base=None, partial=False)
    assert not message.base_etag and not message.held_positions


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.ClearField("base_etag"),
        lambda m: setattr(m, "base_etag", "another"),
        lambda m: setattr(m, "held_positions", m.held_positions[:-1]),
        lambda m: setattr(m, "held_positions", m.held_positions[:-2]),
        lambda m: setattr(m, "held_positions", m.held_positions + b"\xff\xff"),
        lambda m: setattr(m, "held_positions", b"\x28\x00" + m.held_positions[2:]),
        lambda m: setattr(m, "held_positions", m.held_positions[2:4] + m.held_positions[2:]),
        lambda m: setattr(m, "embeddings", m.embeddings[:-2]),
        lambda m: m.item_ids.append("one-more"),
        lambda m: m.item_ids.__setitem__(0, "item-7"),
    ],
)
def test_a_damaged_partial_list_is_refused(served, damage):
    _, held = received(served, range(40))
    message, _ = received(served, range(5, 45), held=held, base=session(range(40)))
    assert message.base_etag
    damage(message)
    with pytest.raises(CorruptFile):
        _read_candidates(message, RELEASE, held)


def test_a_partial_list_without_anything_held_is_refused(served):
    _, held = received(served, range(40))
    message, _ = received(served, range(5, 45), held=held, base=session(range(40)))
    with pytest.raises(CorruptFile, match="not held"):
        _read_candidates(message, RELEASE, None)
    nameless = Candidates("", held.item_ids, held.embeddings)
    message.base_etag = ""
    with pytest.raises(CorruptFile, match="not held"):
        _read_candidates(message, RELEASE, nameless)


@given(st.binary(max_size=40), st.integers(0, 12), st.integers(0, 12))
def test_any_positions_are_read_or_refused(payload, held, new):
    try:
        positions = read_positions(payload, held, new)
    except CorruptFile:
        return
    known = positions[positions >= 0]
    assert np.count_nonzero(positions < 0) == new
    assert len(set(known.tolist())) == len(known) and (known < held).all()


@pytest.mark.parametrize("held", [0, 1, 65_534, 65_535, 65_536, 70_000])
def test_positions_are_as_narrow_as_they_can_be(held):
    base = np.random.default_rng(0).permutation(100_000)[:held].astype("<u4")
    rows = np.arange(0, 100_000, 7, dtype="<u4")
    payload, new = held_positions(base, rows)
    width = 2 if held <= 65_535 else 4
    assert position_type(held).itemsize == width and len(payload) == width * len(rows)
    positions = read_positions(payload, held, np.count_nonzero(new))
    np.testing.assert_array_equal(positions < 0, new)
    np.testing.assert_array_equal(base[positions[~new]], rows[~new])
