"""Weights packed for the kernels, against what the gguf package and numpy make of the same blocks and floats."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

from rbee.engine import _kernels  # noqa: TID251 - what is under test

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]
from tests.engine.runners.native.packing_parts import (
    DENSE,
    HELD_BY,
    Format,
    as_source,
    floats_of,
    halves_of,
    pack,
    random_blocks,
    read,
)


@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize("kind", HELD_BY, ids=lambda kind: kind.name)
def test_blocks_are_held_without_loss(kind: Type, rows: int):
    """Every weight is the float that gguf makes of its block; rows that fill the last panel are zeros."""
    random = np.random.default_rng(rows)
    blocks = random_blocks(random, kind, rows, 768)
    wanted = dequantize(blocks, kind).reshape(rows, 768)
    fmt = Format(_kernels.held_by(kind))
    assert fmt is HELD_BY[kind]
    packed = pack(blocks, kind, rows, 768, fmt=fmt)
    layout = read(packed, fmt, 768)
    assert np.array_equal(layout[:rows], wanted)
    assert (layout[rows:] == 0).all()
    weights = _kernels.unpack(packed, fmt, rows, 768)
    assert weights.dtype == np.float32
    assert np.array_equal(weights, wanted)


@pytest.mark.parametrize("kind", DENSE, ids=lambda kind: kind.name)
def test_blocks_are_held_in_their_own_size(kind: Type):
    """K and legacy types take at most 1.04 times the bytes of their blocks, whatever number of blocks a row has."""
    block_cols, block_bytes = GGML_QUANT_SIZES[kind]
    for cols in (2048, 5632, 8192):
        packed = _kernels.packed_bytes(HELD_BY[kind], 4096, cols)
        assert packed <= 1.04 * 4096 * cols // block_cols * block_bytes


@pytest.mark.parametrize("half", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", [kind for kind in HELD_BY if halves_of(kind)], ids=lambda kind: kind.name)
def test_scales_that_are_not_finite_show(kind: Type, half: float):
    """A block whose scale is NaN or infinite has finite weights only where the file has them, and spoils no other."""
    blocks = random_blocks(np.random.default_rng(2), kind, 3, 512)
    offset = halves_of(kind)[0]
    blocks[1, offset : offset + 2] = np.array([half], np.float16).view(np.uint8)
    fmt = _kernels.held_by(kind)
    weights = _kernels.unpack(pack(blocks, kind, 3, 512, fmt=fmt), fmt, 3, 512)
    with np.errstate(invalid="ignore"):
        wanted = dequantize(blocks, kind).reshape(3, 512)
    finite = np.isfinite(wanted)
    assert not finite.all()
    assert np.array_equal(np.isfinite(weights), finite)
    assert np.array_equal(weights[finite], wanted[finite])


@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (37, 77)], ids=str)
@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_floats_stay_what_they_are(kind: Type, shape: tuple[int, int]):
    """Floats of any bits, NaN and infinity among them, are packed as they are, or exactly widened to F32."""
    rows, cols = shape
    size = 4 if kind == Type.F32 else 2
    source = np.random.default_rng(rows).integers(0, 256, (rows, cols * size), np.uint8)
    wanted = dequantize(source, kind).reshape(shape)
    own = Format[kind.name]
    assert _kernels.held_by(kind) == own
    packed = pack(source, kind, rows, cols, fmt=own)
    panels = packed.reshape(-1, cols, 16, size).transpose(0, 2, 1, 3).reshape(-1, cols * size)
    assert np.array_equal(panels[:rows], source)
    assert (panels[rows:] == 0).all()
    assert np.array_equal(_kernels.unpack(packed, own, rows, cols), wanted, equal_nan=True)
    widened = pack(source, kind, rows, cols, fmt=Format.F32)
    assert np.array_equal(_kernels.unpack(widened, Format.F32, rows, cols), wanted, equal_nan=True)


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_every_number_of_16_bits_is_widened(kind: Type):
    """All 65,536 of them have the value in F32 that they have in gguf."""
    source = np.arange(65536, dtype=np.uint16).view(np.uint8)
    weights = _kernels.unpack(pack(source, kind, 256, 256, fmt=Format.F32), Format.F32, 256, 256)
    assert np.array_equal(weights.reshape(-1), dequantize(source.reshape(1, -1), kind).reshape(-1), equal_nan=True)


@pytest.mark.parametrize(
    ("kind", "fmt"),
    [*HELD_BY.items(), (Type.F32, Format.F32), (Type.F16, Format.Q4), (Type.BF16, Format.Q8)],
    ids=lambda value: value.name,
)
def test_rows_in_another_order(kind: Type, fmt: Format):
    """The packed row i is the source's row row_order[i], whatever the order, and even if one comes twice."""
    random = np.random.default_rng(3)
    if kind in HELD_BY:
        source = random_blocks(random, kind, 45, 256).reshape(45, -1)
    else:
        source = random.normal(0, 1, (45, 256)).astype(np.float32)
        source = (source.view(np.uint32) >> 16).astype(np.uint16) if kind == Type.BF16 else source
        source = source.astype(np.float16) if kind == Type.F16 else source
    order = random.integers(0, 45, 45, np.uint32)
    ordered = pack(source, kind, 45, 256, fmt=fmt, row_order=order)
    assert np.array_equal(ordered, pack(source[order], kind, 45, 256, fmt=fmt))


def test_rows_can_be_packed_apart():
    """Ranges of panels, packed by several threads, make the matrix that one call makes; a range touches no other."""
    source = random_blocks(np.random.default_rng(4), Type.Q6_K, 100, 512)
    whole = pack(source, Type.Q6_K, 100, 512, fmt=Format.Q6_K)
    packed = np.full_like(whole, 0xFF)
    steps = [0, 16, 64, 64, 100]
    some = np.full_like(whole, 0xFF)

    def pack_rows(first: int, end: int | None, into: Bytes) -> None:
        _kernels.pack(
            source.reshape(-1), Type.Q6_K, 100, 512, format=Format.Q6_K, packed=into, first_row=first, end_row=end
        )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(pack_rows, steps[:-1], steps[1:], itertools.repeat(packed)))
    assert np.array_equal(packed, whole)
    pack_rows(16, 64, some)
    panels, wanted = some.reshape(7, -1), whole.reshape(7, -1)
    assert np.array_equal(panels[1:4], wanted[1:4])
    assert (panels[[0, 4, 5, 6]] == 0xFF).all()
    pack_rows(64, None, some)
    assert np.array_equal(panels[1:], wanted[1:])


def test_the_source_can_be_a_mapped_file(tmp_path: Path):
    """Memory that cannot be written to, at an odd address, is read where it is."""
    blocks = random_blocks(np.random.default_rng(5), Type.Q4_1, 20, 64)
    (tmp_path / "weights").write_bytes(b"-" + blocks.tobytes())
    mapped = np.memmap(tmp_path / "weights", np.uint8, "r", offset=1)
    assert np.array_equal(pack(mapped, Type.Q4_1, 20, 64, fmt=Format.Q4), pack(blocks, Type.Q4_1, 20, 64, fmt=3))
    assert _kernels.held_by(Type.Q4_1) == Format.Q4


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_floats_in_four_bits(kind: Type):
    """Each weight is the nearest step of its group to the float; steps and minimum are those of the definition."""
    source, floats = as_source(floats_of(np.random.default_rng(6), 37, 512), kind)
    groups = floats.reshape(37, -1, 32)
    least, greatest = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    scale = ((greatest - least) / np.float32(15)).astype(np.float16).astype(np.float32)
    minimum = least.astype(np.float16).astype(np.float32)
    quants = np.divide(groups - minimum, scale, out=np.zeros_like(groups), where=scale != 0)
    wanted = scale * quants.round().clip(0, 15) + minimum
    packed = pack(source, kind, 37, 512, fmt=Format.Q4)
    weights = _kernels.unpack(packed, Format.Q4, 37, 512)
    assert np.array_equal(weights.reshape(groups.shape), wanted)
    assert np.array_equal(read(packed, Format.Q4, 512)[:37], weights)
    # Half a step, and what rounding the minimum and 15 steps to binary16 can take from the ends.
    lost = np.abs(minimum - least) + 15 * np.abs(scale - (greatest - least) / 15)
    assert (np.abs(wanted - groups) <= 0.5001 * scale + lost + 1e-6 * np.abs(least)).all()


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_floats_in_eight_bits(kind: Type):
    """Each weight is the nearest step of its group to the float; steps are those of the definition."""
    source, floats = as_source(floats_of(np.random.default_rng(7), 37, 512), kind)
    groups = floats.reshape(37, -1, 32)
    greatest = np.abs(groups).max(-1, keepdims=True)
    scale = (greatest / np.float32(127)).astype(np.float16).astype(np.float32)
    quants = np.divide(groups, scale, out=np.zeros_like(groups), where=scale != 0)
    wanted = scale * quants.round().clip(-127, 127)
    packed = pack(source, kind, 37, 512, fmt=Format.Q8)
    weights = _kernels.unpack(packed, Format.Q8, 37, 512)
    assert np.array_equal(weights.reshape(groups.shape), wanted)
    assert np.array_equal(read(packed, Format.Q8, 512)[:37], weights)
    lost = 127 * np.abs(scale - greatest / 127)
    assert (np.abs(wanted - groups) <= 0.5001 * scale + lost).all()
