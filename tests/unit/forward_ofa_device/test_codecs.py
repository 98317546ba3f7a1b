"""tensors, artefact, bundle, rows: what goes in comes out, and garbage is a CorruptFile."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forward_ofa_device.artefact import (
    ENCODINGS,
    BlockLayout,
    artefact_bytes,
    decode_block,
    encode_block,
    pack_path,
    read_artefact,
    unpack_path,
    write_artefact,
)
from forward_ofa_device.backbones.contract import BackboneConfig, ParameterSpec
from forward_ofa_device.bundle import BundleManifest, read_bundle, read_shard, write_shard
from forward_ofa_device.errors import CorruptFile
from forward_ofa_device.rows import decode_rows, encode_rows
from forward_ofa_device.structure import SKIP_LOGIT, choose_path
from forward_ofa_device.tensors import read_tensors, write_tensors
from tests.support.device_cloud import Version

LAYOUT = BlockLayout.of(
    [
        ParameterSpec("a.weight", (4, 3), "matrix"),
        ParameterSpec("a.bias", (3,), "zeros"),
        ParameterSpec("b.weight", (2, 5), "matrix"),
        ParameterSpec("b.gain", (5,), "ones"),
    ]
)
floats = st.floats(-1000, 1000, width=32)
flats = hnp.arrays(np.float32, LAYOUT.size, elements=floats)
tensor_sets = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name != "__metadata__"),
    st.one_of(
        hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        for dtype in (np.float32, np.float16, np.int8)
    ),
    max_size=4,
)
VERSION = Version("v1")
FILES = {
    "tensors": (
        read_tensors,
        write_tensors({"x": np.ones((2, 3), np.float32), "y": np.ones(4, np.int8)}, {"a": "b"}),
    ),
    "artefact": (
        lambda data: read_artefact(data, VERSION.layout),
        VERSION.artefact((True, False, True, False), np.ones(16, np.float32), "int8"),
    ),
    "bundle": (read_bundle, VERSION.bundle),
    "shard": (read_shard, VERSION.shards[0]),
}


@given(tensor_sets, st.dictionaries(st.text(), st.text(), max_size=3))
def test_tensors_come_back(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    read, read_metadata = read_tensors(write_tensors(tensors, metadata))
    assert read_metadata == metadata and set(read) == set(tensors)
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype and read[name].shape == value.shape
        assert read[name].tobytes() == value.tobytes()


def test_another_safetensors_reader_opens_our_files() -> None:
    from safetensors.numpy import load

    data = VERSION.artefact((True, False, True, False), np.ones(16, np.float32), "float16")
    assert set(load(data)) == {"block.0", "block.2"}
    assert load(data)["block.0"].tobytes() == read_tensors(data)[0]["block.0"].tobytes()


@pytest.mark.parametrize("kind", FILES)
def test_every_truncation_is_noticed(kind: str) -> None:
    read, data = FILES[kind]
    read(data)
    for length in {*range(0, min(len(data), 900), 7), *range(0, len(data), 997), len(data) - 1}:
        with pytest.raises(CorruptFile):
            read(data[:length])
    with pytest.raises(CorruptFile):
        read(data + b"\0")


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_garbage_only_ever_raises_corrupt_file(kind: str, data: st.DataObject) -> None:
    read, good = FILES[kind]
    header = int.from_bytes(good[:8], "little")
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        # Half of the damage to the header, where the structure is.
        end = data.draw(st.sampled_from([8 + header, len(good)]))
        damaged[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptFile):
        read(bytes(damaged))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(entry=json_values, shape=json_values, offsets=json_values)
@settings(deadline=None)
def test_any_json_as_a_header_is_refused(entry: object, shape: object, offsets: object) -> None:
    for value in (entry, {"dtype": "F32", "shape": shape, "data_offsets": offsets}):
        header = json.dumps({"x": value}).encode()
        data = len(header).to_bytes(8, "little") + header + bytes(12)
        try:
            tensors, _ = read_tensors(data)
        except CorruptFile:
            continue
        assert tensors["x"].nbytes == 12


@given(
    field=st.sampled_from(
        [
            "format",
            "version",
            "backbone",
            "extractor_history",
            "shard_starts",
            "num_items",
            "fusion",
        ]
    ),
    inner=st.sampled_from(["", "name", "blocks", "hidden", "history", "heads", "dilations"]),
    value=json_values,
)
@settings(max_examples=300, deadline=None)
def test_any_json_in_a_manifest_is_read_or_refused(field: str, inner: str, value: object) -> None:
    raw = json.loads(BundleManifest("v", BackboneConfig(), 8, ("a",), 9).to_json())
    if field == "backbone" and inner:
        raw["backbone"][inner] = value
    else:
        raw[field] = value
    try:
        manifest = BundleManifest.from_json(json.dumps(raw))
    except CorruptFile:
        return
    BundleManifest.from_json(manifest.to_json())


def test_a_manifest_comes_back_and_finds_shards() -> None:
    config = BackboneConfig(name="nextitnet", blocks=12, dilations=(1, 2))
    manifest = BundleManifest("v", config, 50, ("b", "m"), 4000, fusion=0.75)
    assert BundleManifest.from_json(manifest.to_json()) == manifest
    before = {**json.loads(manifest.to_json())}
    del before["fusion"]  # as versions without it were written
    assert BundleManifest.from_json(json.dumps(before)).fusion == 0.0
    for wrong in (-1, 1e9, float("nan"), "much", "0.5", True, [0.5]):
        with pytest.raises(CorruptFile):
            BundleManifest.from_json(json.dumps({**before, "fusion": wrong}))
    assert [manifest.shard_of(i) for i in ("a", "b", "c", "m", "z")] == [0, 1, 1, 2, 2]


@given(flats)
def test_a_block_in_float32_is_exact(flat: np.ndarray) -> None:
    decoded = decode_block(encode_block(flat, LAYOUT, "float32"), LAYOUT, "float32")
    assert np.concatenate([v.ravel() for v in decoded.values()]).tobytes() == flat.tobytes()


@given(flats)
def test_a_block_in_float16_and_int8_is_within_the_encoding(flat: np.ndarray) -> None:
    exact = LAYOUT.split(flat)
    half = decode_block(encode_block(flat, LAYOUT, "float16"), LAYOUT, "float16")
    payload = encode_block(flat, LAYOUT, "int8")
    assert len(payload) == LAYOUT.encoded_bytes("int8") == 22 + 2 * (8 + 8)
    small = decode_block(payload, LAYOUT, "int8")
    for spec in LAYOUT.specs:
        value = exact[spec.name]
        half_error = np.abs(half[spec.name] - value)
        assert (half_error <= np.abs(value) * 2.0**-11 + 2.0**-25).all()
        if spec.kind == "matrix":
            # Half a step of the column's scale, which binary16 rounds up a little.
            step = np.abs(value).max(axis=0) / 127 * (1 + 2.0**-10) + 2.0**-24
            assert (np.abs(small[spec.name] - value) <= 0.5 * step * 1.001).all()
        else:
            assert small[spec.name].tobytes() == half[spec.name].tobytes()


@given(
    path=st.lists(st.booleans(), min_size=1, max_size=20).filter(any).map(tuple),
    encoding=st.sampled_from(ENCODINGS),
    data=st.data(),
)
@settings(max_examples=50)
def test_an_artefact_comes_back(path: tuple[bool, ...], encoding: str, data: st.DataObject) -> None:
    flat = data.draw(flats)
    payloads = [encode_block(flat + n, LAYOUT, encoding) for n in range(sum(path))]
    artefact = write_artefact("v1", "sasrec", path, encoding, LAYOUT, payloads)
    assert len(artefact) == artefact_bytes("v1", "sasrec", path, encoding, LAYOUT)
    network = read_artefact(artefact, LAYOUT)
    assert (network.version, network.backbone, network.encoding) == ("v1", "sasrec", encoding)
    assert network.path == path and set(network.blocks) == {n for n, k in enumerate(path) if k}
    for payload, block in zip(payloads, network.blocks.values(), strict=True):
        expected = decode_block(payload, LAYOUT, encoding)
        assert all((block[name] == expected[name]).all() for name in expected)


def test_values_that_are_not_finite_are_refused() -> None:
    flat = np.full(LAYOUT.size, np.nan, np.float32)
    data = write_artefact(
        "v1", "sasrec", (True,), "float32", LAYOUT, [encode_block(flat, LAYOUT, "float32")]
    )
    with pytest.raises(CorruptFile, match="finite"):
        read_artefact(data, LAYOUT)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_a_block_of_another_shape_or_type_is_refused(encoding: str, change: str) -> None:
    """Also where the bytes are as many as they should be."""
    payload = encode_block(np.ones(LAYOUT.size, np.float32), LAYOUT, encoding)
    good = write_artefact("v1", "sasrec", (True,), encoding, LAYOUT, [payload])
    tensors, metadata = read_tensors(good)
    name = next(iter(tensors))
    value = tensors[name]
    tensors[name] = value[None] if change == "shape" else value.view(np.int8)
    with pytest.raises(CorruptFile, match=name):
        read_artefact(write_tensors(tensors, metadata), LAYOUT)


@pytest.mark.parametrize("text", ["1" * 100_000, "0000", "11"])
def test_a_path_that_is_not_that_of_the_blocks_is_refused(text: str) -> None:
    payload = encode_block(np.ones(LAYOUT.size, np.float32), LAYOUT, "float16")
    good = write_artefact("v1", "sasrec", (True,), "float16", LAYOUT, [payload])
    tensors, metadata = read_tensors(good)
    with pytest.raises(CorruptFile, match="the path keeps"):
        read_artefact(write_tensors(tensors, {**metadata, "path": text}), LAYOUT)


@pytest.mark.filterwarnings("error")
def test_values_beyond_int8_are_clipped_not_lost() -> None:
    decoded = decode_rows(encode_rows(np.full((2, 8), 1e30, np.float32), "int8"), "int8", 2, 8)
    assert (decoded == 65504 * 127).all()
    flat = np.full(LAYOUT.size, -1e30, np.float32)
    block = decode_block(encode_block(flat, LAYOUT, "int8"), LAYOUT, "int8")
    for spec in LAYOUT.specs:
        largest = 65504 * 127 if spec.kind == "matrix" else 65504
        assert (block[spec.name] == -largest).all(), spec.name


@given(st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_path_bits_come_back(path: list[bool]) -> None:
    bits = pack_path(path)
    assert unpack_path(bits, len(path)) == tuple(path)
    for index, kept in enumerate(path):
        assert bool(bits[index // 8] >> index % 8 & 1) == kept


@pytest.mark.parametrize(
    ("bits", "why"), [(b"", "bytes"), (b"\1\0", "bytes"), (b"\x41", "beyond"), (b"\0", "no block")]
)
def test_bad_path_bits(bits: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        unpack_path(bits, 6)


rows = hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(8)), elements=floats)


@given(rows, st.sampled_from(ENCODINGS))
def test_embeddings_come_back(value: np.ndarray, encoding: str) -> None:
    decoded = decode_rows(encode_rows(value, encoding), encoding, len(value), 8)
    largest = np.abs(value).max(axis=1, keepdims=True)
    tolerance = {
        "float32": 0 * largest,
        "float16": np.abs(value) * 2.0**-11 + 2.0**-25,
        "int8": 0.5 * (largest / 127 * (1 + 2.0**-10) + 2.0**-24) * 1.001,
    }[encoding]
    assert decoded.dtype == np.float32 and (np.abs(decoded - value) <= tolerance).all()


@given(st.binary(max_size=64), st.integers(0, 4), st.sampled_from(ENCODINGS))
def test_embeddings_of_a_wrong_size_are_refused(data: bytes, count: int, encoding: str) -> None:
    size = {"float32": 32, "float16": 16, "int8": 10}[encoding] * count
    if len(data) != size:
        with pytest.raises(CorruptFile):
            decode_rows(data, encoding, count, 8)


def test_a_shard_comes_back_in_float16() -> None:
    value = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    version, ids, read = read_shard(write_shard("v1", ["a", "ß", "c"], value))
    assert (version, ids) == ("v1", ["a", "ß", "c"])
    assert (read == value.astype(np.float16)).all()


@given(hnp.arrays(np.float32, 7, elements=st.floats(-9, 9, width=32)), st.integers(1, 7))
def test_a_path_keeps_the_best_and_at_least_one(logits: np.ndarray, most: int) -> None:
    path, same = choose_path(logits)
    assert path.any() and (same == logits).all()
    assert (path == (logits >= 0)).all() or (path.sum() == 1 and path[logits.argmax()])
    cut, seen = choose_path(logits, most)
    assert 1 <= cut.sum() <= most and (path | ~cut).all()
    assert (seen[cut] == logits[cut]).all() and (seen[path & ~cut] == np.float32(SKIP_LOGIT)).all()
    if (path & ~cut).any():
        assert logits[cut].min() >= logits[path & ~cut].max()
