"""The layouts of packed weights, read a second time after native/kernels/rbee_kernels/weights.h; and blocks to pack."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from rbee.engine import _kernels  # noqa: TID251 - what is under test

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]


class Format(IntEnum):
    """WeightFormat of weights.h."""

    F32 = 0
    F16 = 1
    BF16 = 2
    Q4 = 3
    Q8 = 4
    Q4_0 = 5
    Q5_0 = 6
    Q5_1 = 7
    Q2_K = 8
    Q3_K = 9
    Q4_K = 10
    Q5_K = 11
    Q6_K = 12
    IQ4_NL = 13
    IQ4_XS = 14
    MXFP4 = 15
    Q8_FLOAT = 16
    Q8_FINE = 17


class Layout(NamedTuple):
    """A quantized format.

    Attributes:
        planes: bits of a quant in each of them, the high ones first.
        offset: subtracted from a quant; 128: it is a signed byte.
        scale: "half", "float", "power" (of two), or what a binary16 number is multiplied by: "byte", "signed byte",
            "low", "high" (the halves of one byte).
        minimum: the same, or "".
        halves: how many scales and minimums there are for 32 columns.
        numbers: what each quant stands for, if it is not itself less the offset.
    """

    planes: tuple[int, ...]
    offset: int
    scale: str
    minimum: str = ""
    halves: int = 1
    numbers: tuple[int, ...] = ()


IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
LAYOUTS = {
    Format.Q4: Layout((4,), 0, "half", "half"),
    Format.Q8: Layout((8,), 128, "half"),
    Format.Q4_0: Layout((4,), 8, "half"),
    Format.Q5_0: Layout((1, 4), 16, "half"),
    Format.Q5_1: Layout((1, 4), 0, "half", "half"),
    Format.Q2_K: Layout((2,), 0, "low", "high", halves=2),
    Format.Q3_K: Layout((1, 2), 4, "signed byte", halves=2),
    Format.Q4_K: Layout((4,), 0, "byte", "byte"),
    Format.Q5_K: Layout((1, 4), 0, "byte", "byte"),
    Format.Q6_K: Layout((2, 4), 32, "signed byte", halves=2),
    Format.IQ4_NL: Layout((4,), 0, "half", numbers=IQ4),
    Format.IQ4_XS: Layout((4,), 0, "signed byte", numbers=IQ4),
    Format.MXFP4: Layout((4,), 0, "power", numbers=FP4),
    Format.Q8_FLOAT: Layout((8,), 128, "float"),
    Format.Q8_FINE: Layout((8,), 128, "float", halves=2),
}


# The types whose blocks gguf dequantizes. All are held without loss.
HELD_BY = {
    Type.TQ1_0: Format.Q4_0,
    Type.TQ2_0: Format.Q4_0,
    Type.Q4_0: Format.Q4_0,
    Type.Q4_1: Format.Q4,
    Type.Q5_0: Format.Q5_0,
    Type.Q5_1: Format.Q5_1,
    Type.Q8_0: Format.Q8,
    Type.Q2_K: Format.Q2_K,
    Type.Q3_K: Format.Q3_K,
    Type.Q4_K: Format.Q4_K,
    Type.Q5_K: Format.Q5_K,
    Type.Q6_K: Format.Q6_K,
    Type.IQ1_S: Format.Q8_FLOAT,
    Type.IQ1_M: Format.Q8_FINE,
    Type.IQ2_XXS: Format.Q8_FLOAT,
    Type.IQ2_XS: Format.Q8_FINE,
    Type.IQ2_S: Format.Q8_FINE,
    Type.IQ3_XXS: Format.Q8_FLOAT,
    Type.IQ3_S: Format.Q8_FLOAT,
    Type.IQ4_NL: Format.IQ4_NL,
    Type.IQ4_XS: Format.IQ4_XS,
    Type.MXFP4: Format.MXFP4,
    Type.NVFP4: Format.Q8_FINE,
}


# Those of them whose formats are as dense as they are: all but the types whose bits are indices into codebooks.
DENSE = [kind for kind in HELD_BY if kind.name in {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"} or kind.name.endswith("_K")]


# Where the binary16 numbers of a block are, if not in its first two bytes alone.
_HALVES = {
    Type.TQ1_0: (52,),
    Type.TQ2_0: (64,),
    Type.Q4_1: (0, 2),
    Type.Q5_1: (0, 2),
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.IQ1_M: (),
    Type.MXFP4: (),
    Type.NVFP4: (),
}


def halves_of(kind: Type) -> tuple[int, ...]:
    """Where the binary16 numbers of a block are."""
    return _HALVES.get(kind, (0,))


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
    limit = np.float16(65504).view(np.uint16)
    for offset in halves_of(kind):
        bits = random.integers(0, int(limit) + 1, count, np.uint16)
        bits |= random.choice(np.array([0, 0x8000], np.uint16), count)
        awkward = np.append(AWKWARD_HALVES, limit.view(np.float16)).view(np.uint16)
        bits = np.where(random.random(count) < 0.5, random.choice(awkward, count), bits)
        blocks[:, offset : offset + 2] = bits[:, None].view(np.uint8)
    if kind == Type.IQ1_M:
        blocks[:, 55] &= 0xBF  # its factor, in four places, is finite without this bit
    if kind == Type.MXFP4:
        blocks[:, 0] = blocks[:, 0].clip(0, 252)  # 12 times greater scales are infinite
    return blocks


def pack(source: NDArray[Any], kind: int, rows: int, cols: int, *, fmt: int, **options: Any) -> Bytes:
    """The packed matrix, in memory that was not zero before."""
    packed = np.full(_kernels.packed_bytes(fmt, rows, cols), 0xFF, np.uint8)
    _kernels.pack(source.reshape(-1).view(np.uint8), kind, rows, cols, format=fmt, packed=packed, **options)
    return packed


def read(packed: Bytes, fmt: Format, cols: int) -> Floats:
    """All rows of all panels [16 * panels, cols], after weights.h."""
    layout = LAYOUTS[fmt]
    sizes = {"": 0, "half": 32, "float": 64, "power": 16, "byte": 16, "signed byte": 16, "low": 16, "high": 0}
    products = [kind for kind in (layout.scale, layout.minimum) if kind not in ("", "half", "float", "power")]
    block_groups = 8 if products else 1
    group_bytes = layout.halves * (sizes[layout.scale] + sizes[layout.minimum])
    block_bytes = 32 * len(products) + block_groups * group_bytes
    run_blocks = 1 if layout.planes == (8,) else 64 // math.gcd(64, block_bytes)
    quant_bytes = 64 * sum(layout.planes)

    groups = cols // 32
    runs = -(-groups // (run_blocks * block_groups))
    panels = packed.reshape(-1, runs * run_blocks * block_bytes + groups * quant_bytes)
    weights = np.empty((len(panels), 16, groups, 2, 16), np.float32)
    for group in range(groups):
        run, in_run = divmod(group, run_blocks * block_groups)
        start = run * run_blocks * (block_bytes + block_groups * quant_bytes)
        block, in_block = divmod(in_run, block_groups)
        shared = start + block * block_bytes
        own = shared + 32 * len(products) + in_block * group_bytes
        quants = start + run_blocks * block_bytes + in_run * quant_bytes
        numbers = _numbers(panels[:, quants : quants + quant_bytes], layout).reshape(-1, 16, 2, 16)
        scales = _factors(panels, layout.scale, own, shared, layout.halves)
        if layout.minimum:
            at = own if layout.minimum == "high" else own + layout.halves * sizes[layout.scale]
            minimums = _factors(panels, layout.minimum, at, shared + 32, layout.halves)
            weights[:, :, group] = scales * numbers + minimums
        else:
            weights[:, :, group] = scales * numbers
    rows: Floats = weights.reshape(-1, cols)
    return rows


def _numbers(quants: Bytes, layout: Layout) -> Floats:
    """A group's bytes [panel, byte] as numbers [panel, row, column]."""
    columns = np.zeros((len(quants), 16, 32), np.uint8)
    place, first_bit = 0, sum(layout.planes)
    for bits in layout.planes:
        first_bit -= bits
        for column in range(32):
            quad = column // 4
            at = place + 64 * (quad // (8 // bits)) + column % 4
            shift = quad % (8 // bits) * bits
            columns[:, :, column] |= (quants[:, at : at + 64 : 4][:, :16] >> shift & (1 << bits) - 1) << first_bit
        place += 64 * bits
    if layout.numbers:
        return np.array(layout.numbers, np.float32)[columns]
    if layout.offset == 128:
        return columns.view(np.int8).astype(np.float32)
    return columns.astype(np.float32) - layout.offset


def _factors(panels: Bytes, kind: str, at: int, shared: int, halves: int) -> Floats:
    """Scales or minimums [panel, row, half, 1]."""
    size = {"half": 32, "float": 64}.get(kind, 16)
    entries = panels[:, at : at + halves * size].reshape(-1, halves, size).copy()
    if kind == "power":
        factors = np.ldexp(np.float32(1), entries.astype(np.int32) - 128)
    elif kind in ("half", "float"):
        factors = entries.view(np.float16 if kind == "half" else np.float32).astype(np.float32)
    else:
        times = {
            "byte": entries,
            "signed byte": entries.view(np.int8),
            "low": entries & 15,
            "high": entries >> 4,
        }[kind]
        half = panels[:, shared : shared + 32].copy().view(np.float16).astype(np.float32)
        factors = half[:, None] * times.astype(np.float32)
    swapped: Floats = factors.swapaxes(1, 2)[..., None]
    return swapped


def floats_of(random: np.random.Generator, rows: int, cols: int) -> Floats:
    """Groups of normal numbers of very different sizes and means, constant ones, zeros, and some with an outlier."""
    shape = (rows, cols // 32, 1)
    floats = random.normal(0, 1, (rows, cols // 32, 32)) + random.choice([0, 0, 3, -100], shape)
    floats *= 10.0 ** random.uniform(-9, 1, shape)
    floats[..., 7:8] *= random.choice([1, 1, 1, 50], shape)
    floats[0, 0], floats[0, 1], floats[-1, -1] = 0, -0.7, 1e4
    whole: Floats = floats.reshape(rows, cols).astype(np.float32)
    return whole


def as_source(floats: Floats, kind: Type) -> tuple[NDArray[Any], Floats]:
    """The floats in this type, and what they are then."""
    if kind == Type.F32:
        return floats, floats
    if kind == Type.F16:
        return floats.astype(np.float16), floats.astype(np.float16).astype(np.float32)
    bits = floats.view(np.uint32) >> 16
    return bits.astype(np.uint16), (bits << 16).view(np.float32)
