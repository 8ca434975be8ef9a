"""Weights packed for the kernels, against what the gguf package and numpy make of the same blocks and floats.

The layouts are read here a second time, after native/kernels/rbee_kernels/weights.h.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

from rbee.engine import _kernels  # noqa: TID251 - what is under test

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]


class Format(IntEnum):
    """WeightFormat of weights.h."""

    F32 = 0
    F16 = 1
    BF16 = 2
    Q4 = 3
    Q4_WIDE = 4
    Q8 = 5
    Q8_MIN = 6
    Q8_FINE = 7


class Layout(NamedTuple):
    """A group of 32 columns in a quantized format."""

    bytes_of_16_rows: int
    four_bits: bool
    factors: DTypeLike
    minimums: bool


LAYOUTS = {
    Format.Q4: Layout(320, four_bits=True, factors=np.float16, minimums=True),
    Format.Q4_WIDE: Layout(384, four_bits=True, factors=np.float32, minimums=True),
    Format.Q8: Layout(544, four_bits=False, factors=np.float16, minimums=False),
    Format.Q8_MIN: Layout(640, four_bits=False, factors=np.float32, minimums=True),
    Format.Q8_FINE: Layout(640, four_bits=False, factors=np.float32, minimums=False),
}
HELD_BY = {
    Type.Q4_0: Format.Q4,
    Type.Q4_1: Format.Q4,
    Type.Q4_K: Format.Q4_WIDE,
    Type.Q8_0: Format.Q8,
    Type.Q5_K: Format.Q8_MIN,
    Type.Q6_K: Format.Q8_FINE,
}
# Where the binary16 numbers of a block are.
HALVES = {Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q4_K: (0, 2), Type.Q8_0: (0,), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}
LARGEST_SCALE = {Type.Q4_0: 8188}
# Zeros, the smallest and the greatest subnormal numbers, the smallest normal one, and others on either side of it.
AWKWARD_HALVES = np.array([0, -0.0, 2**-24, -(2**-24), 2**-14 - 2**-24, 2**-14, 1 / 3, -1, 8188, -8188], np.float16)
AWKWARD_BYTES = (0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0)


def random_blocks(random: np.random.Generator, kind: Type, rows: int, cols: int) -> Bytes:
    """Blocks [rows * blocks, bytes of one]: random bytes, or the same throughout; scales random or awkward."""
    block_cols, block_bytes = GGML_QUANT_SIZES[kind]
    count = rows * cols // block_cols
    blocks = random.integers(0, 256, (count, block_bytes), np.uint8)
    uniform = random.random(count) < 0.4
    blocks[uniform] = random.choice(np.array(AWKWARD_BYTES, np.uint8), (count, 1))[uniform]
    limit = np.float16(LARGEST_SCALE.get(kind, 65504)).view(np.uint16)
    for offset in HALVES[kind]:
        bits = random.integers(0, int(limit) + 1, count, np.uint16)
        bits |= random.choice(np.array([0, 0x8000], np.uint16), count)
        awkward = np.append(AWKWARD_HALVES, limit.view(np.float16)).view(np.uint16)
        bits = np.where(random.random(count) < 0.5, random.choice(awkward, count), bits)
        blocks[:, offset : offset + 2] = bits[:, None].view(np.uint8)
    return blocks


def pack(source: NDArray[Any], kind: int, rows: int, cols: int, *, fmt: int, **options) -> Bytes:
    """The packed matrix, in memory that was not zero before."""
    packed = np.full(_kernels.packed_bytes(fmt, rows, cols), 0xFF, np.uint8)
    _kernels.pack(source.reshape(-1).view(np.uint8), kind, rows, cols, format=fmt, packed=packed, **options)
    return packed


def read(packed: Bytes, fmt: Format, cols: int) -> Floats:
    """All rows of all panels [16 * panels, cols], after weights.h."""
    group_bytes, four_bits, factors, minimums = LAYOUTS[fmt]
    quant_bytes = 256 if four_bits else 512
    groups = packed.reshape(-1, cols // 32, group_bytes)
    quants = groups[..., :quant_bytes].reshape(*groups.shape[:2], -1, 16, 4).transpose(0, 3, 1, 2, 4)
    quants = quants.reshape(*quants.shape[:3], -1)  # [panel, row, group, column]
    quants = np.concatenate([quants & 15, quants >> 4], -1) if four_bits else quants.view(np.int8)
    numbers = groups[..., quant_bytes:].copy().view(factors).astype(np.float32).reshape(*groups.shape[:2], -1, 16)
    numbers = numbers.transpose(2, 0, 3, 1)[..., None]  # [which, panel, row, group, 1]
    if minimums:
        weights = numbers[0] * quants + numbers[1]
    else:
        weights = np.concatenate([numbers[0] * quants[..., :16], numbers[-1] * quants[..., 16:]], -1)
    return weights.reshape(-1, cols)


@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize("kind", HELD_BY, ids=lambda kind: kind.name)
def test_blocks_are_held_without_loss(kind: Type, rows: int):
    """Every weight is the float that gguf makes of its block; rows that fill the last panel are zeros."""
    random = np.random.default_rng(rows)
    blocks = random_blocks(random, kind, rows, 768)
    wanted = dequantize(blocks, kind).reshape(rows, 768)
    held_by = Format(_kernels.held_by(blocks.reshape(-1), kind))
    assert held_by is HELD_BY[kind]
    for fmt in {held_by, Format.Q4_WIDE} if held_by is Format.Q4 else {held_by}:
        packed = pack(blocks, kind, rows, 768, fmt=fmt)
        layout = read(packed, fmt, 768)
        assert np.array_equal(layout[:rows], wanted)
        assert (layout[rows:] == 0).all()
        weights = _kernels.unpack(packed, fmt, rows, 768)
        assert weights.dtype == np.float32
        assert np.array_equal(weights, wanted)


@pytest.mark.parametrize("scale", [8192, -8192, 65504])
def test_blocks_with_huge_scales_are_held_in_floats(scale: float):
    """One block of Q4_0 whose minimum would be infinite in binary16: Q4Wide holds it, and Q4 is refused."""
    blocks = random_blocks(np.random.default_rng(1), Type.Q4_0, 20, 64)
    assert _kernels.held_by(blocks.reshape(-1), Type.Q4_0) == Format.Q4
    blocks[-1, :2] = np.array([scale], np.float16).view(np.uint8)
    assert _kernels.held_by(blocks.reshape(-1), Type.Q4_0) == Format.Q4_WIDE
    weights = _kernels.unpack(pack(blocks, Type.Q4_0, 20, 64, fmt=Format.Q4_WIDE), Format.Q4_WIDE, 20, 64)
    assert np.array_equal(weights, dequantize(blocks, Type.Q4_0).reshape(20, 64))
    with pytest.raises(ValueError, match="too large for Q4; Q4Wide holds them"):
        pack(blocks, Type.Q4_0, 20, 64, fmt=Format.Q4)


@pytest.mark.parametrize("half", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", HELD_BY, ids=lambda kind: kind.name)
def test_scales_that_are_not_finite_show(kind: Type, half: float):
    """A block whose scale is NaN or infinite has finite weights only where the file has them, and spoils no other."""
    blocks = random_blocks(np.random.default_rng(2), kind, 3, 512)
    offset = HALVES[kind][0]
    blocks[1, offset : offset + 2] = np.array([half], np.float16).view(np.uint8)
    fmt = _kernels.held_by(blocks.reshape(-1), kind)
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
    assert _kernels.held_by(source.reshape(-1), kind) == own
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
    whole = pack(source, Type.Q6_K, 100, 512, fmt=Format.Q8_FINE)
    packed = np.full_like(whole, 0xFF)
    steps = [0, 16, 64, 64, 100]
    some = np.full_like(whole, 0xFF)

    def pack_rows(first: int, end: int | None, into: Bytes) -> None:
        _kernels.pack(
            source.reshape(-1), Type.Q6_K, 100, 512, format=Format.Q8_FINE, packed=into, first_row=first, end_row=end
        )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda rows: pack_rows(*rows, packed), itertools.pairwise(steps)))
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
    assert _kernels.held_by(mapped, Type.Q4_1) == Format.Q4


def floats_of(random: np.random.Generator, rows: int, cols: int) -> Floats:
    """Groups of normal numbers of very different sizes and means, constant ones, zeros, and some with an outlier."""
    shape = (rows, cols // 32, 1)
    floats = random.normal(0, 1, (rows, cols // 32, 32)) + random.choice([0, 0, 3, -100], shape)
    floats *= 10.0 ** random.uniform(-9, 1, shape)
    floats[..., 7:8] *= random.choice([1, 1, 1, 50], shape)
    floats[0, 0], floats[0, 1], floats[-1, -1] = 0, -0.7, 1e4
    return floats.reshape(rows, cols).astype(np.float32)


def as_source(floats: Floats, kind: Type) -> tuple[NDArray[Any], Floats]:
    """The floats in this type, and what they are then."""
    if kind == Type.F32:
        return floats, floats
    if kind == Type.F16:
        return floats.astype(np.float16), floats.astype(np.float16).astype(np.float32)
    bits = floats.view(np.uint32) >> 16
    return bits.astype(np.uint16), (bits << 16).view(np.float32)


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


@pytest.mark.parametrize(
    ("fmt", "value"),
    [(fmt, value) for fmt in (Format.Q4, Format.Q8) for value in (np.nan, np.inf, -np.inf, 3e38, -3e38)]
    # The scale or the minimum rounds up to infinity, only just.
    + [(Format.Q8, 65520 * 127), (Format.Q4, -65520), (Format.Q4, 65520 * 15)],
)
def test_groups_that_cannot_be_quantized_are_nan(fmt: Format, value: float):
    """Where a float is not finite, or too large for binary16, all its group is NaN, and no other is."""
    floats = np.random.default_rng(8).uniform(0, 1, (20, 96)).astype(np.float32)
    floats[3, 32] = 0
    clean = pack(floats, Type.F32, 20, 96, fmt=fmt)
    spoilt = floats.copy()
    spoilt[3, 45] = value
    spoilt[4, 40] = 65519 if fmt is Format.Q4 else 65519 * 127  # the largest that is not
    weights = _kernels.unpack(pack(spoilt, Type.F32, 20, 96, fmt=fmt), fmt, 20, 96)
    assert np.isnan(weights[3, 32:64]).all()
    assert np.isfinite(weights[4]).all()
    weights[3:5, 32:64] = _kernels.unpack(clean, fmt, 20, 96)[3:5, 32:64]
    assert np.array_equal(weights, _kernels.unpack(clean, fmt, 20, 96))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"source": np.zeros(20 * 40 - 1, np.uint8)}, "20 x 64 weights as Q4_1 have 800 bytes, not 799."),
        ({"source": np.zeros(20 * 40 + 20, np.uint8)}, "have 800 bytes, not 820."),
        ({"packed": np.zeros(2 * 640 - 1, np.uint8)}, "20 x 64 weights packed as Q4 have 1280 bytes, not 1279."),
        ({"packed": np.zeros(4 * 640, np.uint8)}, "have 1280 bytes, not 2560."),
        ({"rows": 21}, "have 840 bytes, not 800."),
        ({"rows": 2**61}, "is too large; it can have 268435456 rows and columns."),
        ({"rows": 0, "cols": 2**28 + 32}, "is too large"),
        ({"cols": 65}, "Q4 has groups of 32 columns, which 65 columns are not; leave them floats."),
        (
            {"source_type": Type.Q4_K, "cols": 96, "format": Format.Q4_WIDE, "packed": np.zeros(2304, np.uint8)},
            "Rows of Q4_K are blocks of 256 columns, which 96 columns are not.",
        ),
        ({"source_type": Type.Q5_1}, "ggml type 7 cannot be packed; F32, F16, BF16, Q4_0, "),
        ({"source_type": 4_000_000_000}, "ggml type 4000000000 cannot be packed"),
        ({"format": 8}, "There is no weight format 8."),
        ({"source_type": Type.Q4_K}, "Q4_K would lose something as Q4; Q4Wide holds it."),
        ({"row_order": np.zeros(19, np.uint32)}, "row_order must have an entry per row."),
        ({"row_order": np.full(20, 20, np.uint32)}, "row_order names row 20 of 20."),
        ({"first_row": 8}, "Rows 8 to 20 of 20 are not panels of 16, of which only the last can be smaller."),
        ({"end_row": 19}, "Rows 0 to 19 of 20 are not"),
        ({"end_row": 32}, "Rows 0 to 32 of 20 are not"),
        ({"first_row": 16, "end_row": 0}, "Rows 16 to 0 of 20 are not"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], sentence: str):
    """Sizes, types, rows and formats that do not go together are a ValueError that names them."""
    arguments: dict[str, Any] = {
        "source": np.zeros(20 * 40, np.uint8),
        "source_type": Type.Q4_1,
        "rows": 20,
        "cols": 64,
        "format": Format.Q4,
        "packed": np.zeros(2 * 640, np.uint8),
    }
    _kernels.pack(**arguments)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the sentence is compared
        _kernels.pack(**(arguments | changed))
    assert sentence in str(error.value)


LOSSLESS = {
    *HELD_BY.items(),
    (Type.Q4_0, Format.Q4_WIDE),
    (Type.Q4_1, Format.Q4_WIDE),
    *((kind, fmt) for kind in (Type.F32, Type.F16, Type.BF16) for fmt in (Format.F32, Format.Q4, Format.Q8)),
    (Type.F16, Format.F16),
    (Type.BF16, Format.BF16),
}


@pytest.mark.parametrize("fmt", Format, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("kind", [*HELD_BY, Type.F32, Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_pairs_that_would_lose_something_are_refused(kind: Type, fmt: Format):
    """A format is packed if it holds the type or floats are to be quantized, and refused otherwise."""
    block_cols, block_bytes = GGML_QUANT_SIZES[kind]
    source = np.zeros(16 * 256 // block_cols * block_bytes, np.uint8)
    if (kind, fmt) in LOSSLESS:
        packed = pack(source, kind, 16, 256, fmt=fmt)
        assert (_kernels.unpack(packed, fmt, 16, 256) == 0).all()
    else:
        with pytest.raises(ValueError, match=f"^{kind.name} would lose something as "):
            pack(source, kind, 16, 256, fmt=fmt)


def test_other_calls_refuse_what_does_not_fit():
    """`held_by`, `packed_bytes` and `unpack` have their own sentences; empty matrices are none of it."""
    with pytest.raises(ValueError, match=r"^19 bytes are not whole blocks of Q4_0, which have 18 each\.$"):
        _kernels.held_by(np.zeros(19, np.uint8), Type.Q4_0)
    with pytest.raises(ValueError, match=r"^ggml type 7 cannot be packed"):
        _kernels.held_by(np.zeros(24, np.uint8), Type.Q5_1)
    with pytest.raises(ValueError, match=r"^There is no weight format 9"):
        _kernels.packed_bytes(9, 16, 32)
    with pytest.raises(ValueError, match=r"^Q8 has groups of 32 columns, which 33 columns are not"):
        _kernels.packed_bytes(Format.Q8, 16, 33)
    with pytest.raises(ValueError, match=r"^16 x 32 weights packed as Q8 have 544 bytes, not 543\.$"):
        _kernels.unpack(np.zeros(543, np.uint8), Format.Q8, 16, 32)
    empty = np.zeros(0, np.uint8)
    _kernels.pack(empty, Type.Q8_0, 0, 32, format=Format.Q8, packed=empty)
    _kernels.pack(empty, Type.F32, 3, 0, format=Format.F32, packed=empty)
    assert _kernels.unpack(empty, Format.Q8, 0, 32).shape == (0, 32)


@pytest.mark.parametrize(
    "changed",
    [
        {"source": np.zeros(640, np.int8)},
        {"source": np.zeros((16, 40), np.uint8)},
        {"source": np.zeros(1280, np.uint8)[::2]},
        {"row_order": np.zeros(16, np.int64)},
        {"packed": np.zeros(320, np.float32)},
        {"packed": np.frombuffer(bytes(640), np.uint8)},
        {"rows": -1},
    ],
    ids=str,
)
def test_arrays_of_another_kind_are_refused(changed: dict[str, Any]):
    """Arrays of other types, strided ones, and a `packed` that cannot be written to are a TypeError."""
    arguments: dict[str, Any] = {
        "source": np.zeros(640, np.uint8),
        "source_type": Type.Q4_1,
        "rows": 16,
        "cols": 64,
        "format": Format.Q4,
        "packed": np.zeros(640, np.uint8),
    }
    _kernels.pack(**arguments)
    with pytest.raises(TypeError):
        _kernels.pack(**(arguments | changed))
