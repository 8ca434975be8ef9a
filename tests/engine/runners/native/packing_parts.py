"""The layouts of packed weights, read a second time after native/kernels/rbee_kernels/weights.h; and blocks to pack."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from rbee.engine import _kernels  # noqa: TID251 - what is under test

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]


class Format(IntEnum):
    """WeightFormat of weights.h."""

    F32 = 0
    F16 = 1
    BF16 = 2
    Q4 = 3
    Q4_K = 4
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
    Format.Q8: Layout(544, four_bits=False, factors=np.float16, minimums=False),
    Format.Q8_MIN: Layout(640, four_bits=False, factors=np.float32, minimums=True),
    Format.Q8_FINE: Layout(640, four_bits=False, factors=np.float32, minimums=False),
}


# The types whose blocks gguf dequantizes. All are held without loss.
HELD_BY = {
    Type.TQ1_0: Format.Q4,
    Type.TQ2_0: Format.Q4,
    Type.Q4_0: Format.Q4,
    Type.Q4_1: Format.Q4,
    Type.Q5_0: Format.Q8,
    Type.Q5_1: Format.Q8_MIN,
    Type.Q8_0: Format.Q8,
    Type.Q3_K: Format.Q8_FINE,
    Type.Q4_K: Format.Q4_K,
    Type.Q5_K: Format.Q8_MIN,
    Type.Q6_K: Format.Q8_FINE,
    Type.IQ1_S: Format.Q8_MIN,
    Type.IQ1_M: Format.Q8_FINE,
    Type.IQ2_XXS: Format.Q8_MIN,
    Type.IQ2_XS: Format.Q8_FINE,
    Type.IQ2_S: Format.Q8_FINE,
    Type.IQ3_XXS: Format.Q8_MIN,
    Type.IQ3_S: Format.Q8_MIN,
    Type.IQ4_NL: Format.Q8,
    Type.IQ4_XS: Format.Q8_MIN,
    Type.MXFP4: Format.Q8_MIN,
    Type.NVFP4: Format.Q8_FINE,
}


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
    if fmt is Format.Q4_K:
        return _read_q4_k(packed, cols)
    group_bytes, four_bits, factors, minimums = LAYOUTS[fmt]
    quant_bytes = 256 if four_bits else 512
    groups = packed.reshape(-1, cols // 32, group_bytes)
    quants = _quants(groups[..., :quant_bytes], four_bits=four_bits)
    numbers = groups[..., quant_bytes:].copy().view(factors).astype(np.float32).reshape(*groups.shape[:2], -1, 16)
    numbers = numbers.transpose(2, 0, 3, 1)[..., None]  # [which, panel, row, group, 1]
    if minimums:
        weights = numbers[0] * quants + numbers[1]
    else:
        weights = np.concatenate([numbers[0] * quants[..., :16], numbers[-1] * quants[..., 16:]], -1)
    rows: Floats = weights.reshape(-1, cols)
    return rows


def _quants(groups: Bytes, *, four_bits: bool) -> NDArray[Any]:
    """The bytes [panel, group, byte] as quants [panel, row, group, column]."""
    quants = groups.reshape(*groups.shape[:2], -1, 16, 4).transpose(0, 3, 1, 2, 4)
    quants = quants.reshape(*quants.shape[:3], -1)
    return np.concatenate([quants & 15, quants >> 4], -1) if four_bits else quants.view(np.int8)


def _read_q4_k(packed: Bytes, cols: int) -> Floats:
    """The format whose factors are bytes times binary16 numbers."""
    blocks = packed.reshape(-1, cols // 256, 2368)
    factors = blocks[..., :64].copy().view(np.float16).astype(np.float32).reshape(-1, cols // 256, 1, 2, 16)
    times = blocks[..., 64:320].reshape(-1, cols // 256, 8, 2, 16)
    numbers = (factors * times).reshape(-1, cols // 32, 2, 16).transpose(2, 0, 3, 1)[..., None]
    quants = _quants(blocks[..., 320:].reshape(-1, cols // 32, 256), four_bits=True)
    rows: Floats = (numbers[0] * quants + numbers[1]).reshape(-1, cols)
    return rows


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
