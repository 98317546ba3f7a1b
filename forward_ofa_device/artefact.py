"""The sub-model artefact and the layout of a block: the definition, and its codec.

A block's parameters are one flat vector of P values, in the order of
`Backbone.block_parameters()`. Three encodings (`Encoding` in types.proto):

float32, float16: the flat vector, little-endian.
int8: first a binary16 part, C column scales of the matrices, then the V
vector entries; then the M matrix entries as int8. Value = int8 * scale of its
output column.

The artefact is a safetensors file with the tensor `block.{l}` for each kept
block l (int8: `block.{l}.half` and `block.{l}.int8`), so any language with a
safetensors reader can open it. The payload of a block is exactly its bytes in
the file: whoever encodes it first is the last one to touch it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from forward_ofa_device.backbones.contract import ParameterSpec
from forward_ofa_device.errors import CorruptFile
from forward_ofa_device.tensors import read_tensors, write_header

FORMAT = "forward-ofa-network/1"
Encoding = Literal["float32", "float16", "int8"]
ENCODINGS: tuple[Encoding, ...] = ("float32", "float16", "int8")
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class BlockLayout:
    """Where each parameter lies in the flat vector of a block."""

    specs: tuple[ParameterSpec, ...]

    @classmethod
    def of(cls, specs: Sequence[ParameterSpec]) -> BlockLayout:
        return cls(tuple(specs))

    @cached_property
    def size(self) -> int:
        """P: values of a block."""
        return sum(spec.size for spec in self.specs)

    @cached_property
    def matrix_size(self) -> int:
        """M: matrix entries."""
        return sum(spec.size for spec in self.specs if spec.kind == "matrix")

    @cached_property
    def columns(self) -> int:
        """C: output columns of all matrices."""
        return sum(spec.shape[-1] for spec in self.specs if spec.kind == "matrix")

    def encoded_bytes(self, encoding: Encoding) -> int:
        """Bytes of one block on the wire."""
        if encoding == "int8":
            return self.matrix_size + 2 * (self.columns + self.size - self.matrix_size)
        return self.size * (4 if encoding == "float32" else 2)

    def split(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Flat [.., P] to named parameters [.., *shape]; views."""
        parts = {}
        start = 0
        for spec in self.specs:
            part = flat[..., start : start + spec.size]
            parts[spec.name] = part.reshape(*flat.shape[:-1], *spec.shape)
            start += spec.size
        return parts


def encode_block(flat: np.ndarray, layout: BlockLayout, encoding: Encoding) -> bytes:
    """float32 [P] to the payload of one block. Values beyond binary16 are clipped to it."""
    if encoding == "float32":
        return np.ascontiguousarray(flat, dtype="<f4").tobytes()
    if encoding == "float16":
        return flat.clip(-_HALF_MAX, _HALF_MAX).astype("<f2").tobytes()
    scales, matrices, vectors = [], [], []
    for spec, value in zip(layout.specs, layout.split(flat).values(), strict=True):
        if spec.kind != "matrix":
            vectors.append(value.ravel())
            continue
        scale = column_scales(value)
        scales.append(scale)
        matrices.append(quantise(value, scale).tobytes())
    half = np.concatenate([*scales, *vectors]).clip(-_HALF_MAX, _HALF_MAX).astype("<f2")
    return half.tobytes() + b"".join(matrices)


def column_scales(matrix: np.ndarray) -> np.ndarray:
    """One scale an output column: float32 values that binary16 holds exactly, rounded up."""
    scale = (np.abs(matrix).max(axis=-2) / 127).clip(0, _HALF_MAX).astype(np.float16)
    rounded = scale.astype(np.float32)
    short = rounded * 127 < np.abs(matrix).max(axis=-2)
    above = np.nextafter(scale, np.float16(_HALF_MAX))  # the largest one stays
    scales: np.ndarray = np.where(short, above, scale)
    return scales.astype(np.float32)


def quantise(matrix: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int8 [.., I, O] such that int8 * scale is nearest to `matrix`."""
    safe = np.where(scale > 0, scale, np.float32(1))
    codes: np.ndarray = np.rint(matrix / safe).clip(-127, 127).astype(np.int8)
    return codes


def decode_block(
    payload: bytes | memoryview, layout: BlockLayout, encoding: Encoding
) -> dict[str, np.ndarray]:
    """The payload of one block to named float32 parameters.

    Raises CorruptFile if the size is not the layout's.
    """
    if len(payload) != layout.encoded_bytes(encoding):
        raise CorruptFile(
            f"a block has {len(payload)} bytes, {layout.encoded_bytes(encoding)} expected"
        )
    if encoding != "int8":
        dtype = "<f4" if encoding == "float32" else "<f2"
        return layout.split(np.frombuffer(payload, dtype).astype(np.float32))
    half_count = layout.columns + layout.size - layout.matrix_size
    half = np.frombuffer(payload, "<f2", half_count).astype(np.float32)
    codes = np.frombuffer(payload, np.int8, offset=2 * half_count)
    scale_at, vector_at, code_at = 0, layout.columns, 0
    parameters = {}
    for spec in layout.specs:
        if spec.kind == "matrix":
            scale = half[scale_at : scale_at + spec.shape[-1]]
            matrix = codes[code_at : code_at + spec.size].reshape(spec.shape)
            parameters[spec.name] = matrix * scale
            scale_at += spec.shape[-1]
            code_at += spec.size
        else:
            parameters[spec.name] = half[vector_at : vector_at + spec.size].reshape(spec.shape)
            vector_at += spec.size
    return parameters


@dataclass(frozen=True)
class Network:
    """A sub-model as the device runs it.

    path: one boolean a block. blocks: kept block -> its named float32 parameters.
    """

    version: str
    backbone: str
    path: tuple[bool, ...]
    encoding: Encoding
    blocks: Mapping[int, Mapping[str, np.ndarray]]


@lru_cache(maxsize=1024)
def artefact_header(
    version: str, backbone: str, path: tuple[bool, ...], encoding: Encoding, layout: BlockLayout
) -> bytes:
    """All bytes of an artefact before the first payload: the same for equal arguments."""
    metadata = {
        "format": FORMAT,
        "version": version,
        "backbone": backbone,
        "path": path_text(path),
        "encoding": encoding,
    }
    return write_header(_entries(path, encoding, layout), metadata)


def _entries(
    path: tuple[bool, ...], encoding: Encoding, layout: BlockLayout
) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """The tensors of an artefact, in order: name -> (dtype name, shape, bytes)."""
    entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
    half_count = layout.columns + layout.size - layout.matrix_size
    for block in (index for index, kept in enumerate(path) if kept):
        if encoding == "int8":
            entries[f"block.{block}.half"] = ("F16", (half_count,), 2 * half_count)
            entries[f"block.{block}.int8"] = ("I8", (layout.matrix_size,), layout.matrix_size)
        else:
            dtype = "F32" if encoding == "float32" else "F16"
            entries[f"block.{block}"] = (dtype, (layout.size,), layout.encoded_bytes(encoding))
    return entries


def write_artefact(
    version: str,
    backbone: str,
    path: tuple[bool, ...],
    encoding: Encoding,
    layout: BlockLayout,
    payloads: Sequence[bytes],
) -> bytes:
    """An artefact from the encoded blocks, ascending, one for each kept block."""
    return artefact_header(version, backbone, path, encoding, layout) + b"".join(payloads)


def artefact_bytes(
    version: str, backbone: str, path: tuple[bool, ...], encoding: Encoding, layout: BlockLayout
) -> int:
    """The size of an artefact, without making it."""
    header = artefact_header(version, backbone, path, encoding, layout)
    return len(header) + sum(path) * layout.encoded_bytes(encoding)


def read_artefact(data: bytes | memoryview, layout: BlockLayout) -> Network:
    """An artefact to a network. Raises CorruptFile if anything about it is wrong."""
    tensors, metadata = read_tensors(data)
    if metadata.get("format") != FORMAT:
        raise CorruptFile(f"this is not a {FORMAT} file")
    encoding = metadata.get("encoding", "")
    text = metadata.get("path", "")
    if encoding not in ENCODINGS or not text or set(text) - {"0", "1"}:
        raise CorruptFile("the metadata name no known encoding or path")
    path = tuple(c == "1" for c in text)
    parts = ("half", "int8") if encoding == "int8" else ()
    # Counted first: a path may be said to be longer than anything should be built for.
    if sum(path) * max(1, len(parts)) != len(tensors):
        raise CorruptFile("the blocks are not those that the path keeps")
    expected = _entries(path, encoding, layout)
    if set(tensors) != set(expected):
        raise CorruptFile("the blocks are not those that the path keeps")
    for name, (_, shape, size) in expected.items():
        # No two dtypes have the same size.
        if (tensors[name].shape, tensors[name].nbytes) != (shape, size):
            raise CorruptFile(
                f"{name} is not what {encoding} has for a block: {size} bytes expected"
            )
    blocks = {}
    for block in (index for index, kept in enumerate(path) if kept):
        names = [f"block.{block}.{p}" for p in parts] or [f"block.{block}"]
        payload = b"".join(tensors[name].tobytes() for name in names)
        blocks[block] = decode_block(payload, layout, encoding)
        if not all(np.isfinite(value).all() for value in blocks[block].values()):
            raise CorruptFile(f"block {block} has values that are not finite")
    return Network(
        metadata.get("version", ""),
        metadata.get("backbone", ""),
        path,
        encoding,
        blocks,
    )


def path_text(path: Sequence[bool]) -> str:
    """For example "101101": block 0 first."""
    return "".join("1" if kept else "0" for kept in path)


def pack_path(path: Sequence[bool]) -> bytes:
    """Booleans to the wire's bits: block l is bit l mod 8 of byte l div 8."""
    return np.packbits(np.asarray(path, dtype=bool), bitorder="little").tobytes()


def unpack_path(bits: bytes, blocks: int) -> tuple[bool, ...]:
    """The wire's bits to one boolean a block.

    Raises ValueError for a wrong length, bits beyond the last block, or no kept block.
    """
    if len(bits) != (blocks + 7) // 8:
        raise ValueError(f"the path has {len(bits)} bytes, {(blocks + 7) // 8} expected")
    flags = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").astype(bool)
    if flags[blocks:].any():
        raise ValueError(f"the path has bits beyond the {blocks} blocks")
    if not flags.any():
        raise ValueError("the path keeps no block")
    return tuple(bool(f) for f in flags[:blocks])
