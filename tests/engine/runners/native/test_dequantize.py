"""Matrices of files as floats, against what the gguf package makes of them; and the types that it does not know."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from rbee.engine import _kernels  # noqa: TID251 - what is under test
from rbee.models.gguf import GGML_TYPES
from tests.engine.runners.native.packing_parts import HELD_BY, Format, pack, random_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# ggml has these; gguf cannot dequantize the first and does not know the second.
ONE_BIT, TWO_BITS = GGML_TYPES["Q1_0"], GGML_TYPES["Q2_0"]


def small_blocks(random: np.random.Generator, code: int) -> tuple[NDArray[np.uint8], Floats]:
    """37 rows of 256 columns in Q1_0 or Q2_0, and what they mean."""
    shape, most = ((37 * 2, 128), 2) if code == ONE_BIT else ((37 * 4, 64), 4)
    quants = random.integers(0, most, shape, np.uint8)
    scales = random.choice(np.array([0, 2**-24, -(2**-14), 0.1, -3, 65504], np.float16), (len(quants), 1))
    if code == ONE_BIT:
        packed = np.packbits(quants, -1, "little")
        numbers = 2 * quants.astype(np.float32) - 1
    else:
        packed = np.bitwise_or.reduce(quants.reshape(len(quants), -1, 4) << np.array([0, 2, 4, 6], np.uint8), -1)
        numbers = quants.astype(np.float32) - 1
    source = np.concatenate([scales.view(np.uint8), packed], -1)
    return source.reshape(-1), (scales * numbers).reshape(37, 256)


def test_every_type_is_listed():
    """SOURCE_TYPES has ggml's names of all types that can be read, which are all that have weights."""
    known = {kind.name for kind in HELD_BY} | {"F32", "F16", "BF16", "Q1_0", "Q2_0"}
    assert set(_kernels.SOURCE_TYPES) == known
    assert known == GGML_TYPES.keys() - {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}


@pytest.mark.parametrize("kind", [*HELD_BY, Type.F32, Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_weights_are_those_of_gguf(kind: Type):
    """Every type becomes the floats that gguf makes of it, whole or in ranges of rows, in any order of rows."""
    random = np.random.default_rng(9)
    if kind in (Type.F32, Type.F16, Type.BF16):
        source = random.integers(0, 256, (37, 512 * GGML_QUANT_SIZES[kind][1]), np.uint8)
    else:
        source = random_blocks(random, kind, 37, 512).reshape(37, -1)
    wanted = dequantize(source, kind)
    weights = _kernels.dequantize(source.reshape(-1), kind, 37, 512)
    assert weights.dtype == np.float32
    assert np.array_equal(weights, wanted, equal_nan=True)
    order = random.integers(0, 37, 37, np.uint32)
    some = _kernels.dequantize(source.reshape(-1), kind, 37, 512, row_order=order, first_row=5, end_row=21)
    assert np.array_equal(some, wanted[order[5:21]], equal_nan=True)


@pytest.mark.parametrize(
    "kind",
    [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.TQ1_0, Type.TQ2_0, Type.MXFP4],
    ids=lambda kind: kind.name,
)
def test_weights_that_gguf_quantized(kind: Type):
    """Ordinary weights, quantized by gguf, are packed and unpacked to what gguf dequantizes."""
    floats = np.random.default_rng(10).normal(0, 0.02, (20, 512)).astype(np.float32)
    blocks = quantize(floats, kind)
    wanted = dequantize(blocks, kind)
    assert np.array_equal(_kernels.dequantize(blocks.reshape(-1), kind, 20, 512), wanted)
    fmt = _kernels.held_by(kind)
    assert np.array_equal(_kernels.unpack(pack(blocks, kind, 20, 512, fmt=fmt), fmt, 20, 512), wanted)


@pytest.mark.parametrize("code", [ONE_BIT, TWO_BITS], ids=["Q1_0", "Q2_0"])
def test_types_that_gguf_lacks(code: int):
    """A bit is the scale or its negative; two bits are -1, 0, 1 or 2 times the scale. Four bits hold both."""
    source, wanted = small_blocks(np.random.default_rng(11), code)
    assert np.array_equal(_kernels.dequantize(source, code, 37, 256), wanted)
    assert _kernels.held_by(code) == Format.Q4_0
    assert np.array_equal(_kernels.unpack(pack(source, code, 37, 256, fmt=Format.Q4_0), Format.Q4_0, 37, 256), wanted)


def test_every_scale_of_eight_bits():
    """All powers of two of MXFP4, infinity among the products, and all scales of NVFP4 are those of gguf."""
    random = np.random.default_rng(12)
    for kind, scale_bytes in ((Type.MXFP4, 1), (Type.NVFP4, 4)):
        blocks = random.integers(0, 256, (256, GGML_QUANT_SIZES[kind][1]), np.uint8)
        blocks[:, :scale_bytes] = np.arange(256, dtype=np.uint8)[:, None]
        cols = GGML_QUANT_SIZES[kind][0]
        with np.errstate(over="ignore"):
            wanted = dequantize(blocks, kind)
        assert np.array_equal(_kernels.dequantize(blocks.reshape(-1), kind, 256, cols), wanted)
        fmt = _kernels.held_by(kind)
        assert np.array_equal(_kernels.unpack(pack(blocks, kind, 256, cols, fmt=fmt), fmt, 256, cols), wanted)


def test_rows_are_read_side_by_side():
    """Several threads read ranges of the same matrix at once."""
    source = random_blocks(np.random.default_rng(14), Type.IQ3_S, 100, 512).reshape(-1)
    whole = _kernels.dequantize(source, Type.IQ3_S, 100, 512)

    def read(first: int) -> Floats:
        return _kernels.dequantize(source, Type.IQ3_S, 100, 512, first_row=first, end_row=first + 25)

    with ThreadPoolExecutor(4) as pool:
        assert np.array_equal(np.concatenate(list(pool.map(read, range(0, 100, 25)))), whole)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"source": np.zeros(799, np.uint8)}, "20 x 64 weights as Q4_1 have 800 bytes, not 799."),
        ({"cols": 65}, "Rows of Q4_1 are blocks of 32 columns, which 65 columns are not."),
        ({"rows": 2**61}, "is too large; it can have 268435456 rows and columns."),
        ({"source_type": Type.F64}, "ggml type 28 cannot be read; these can: F32, "),
        ({"row_order": np.zeros(19, np.uint32)}, "row_order must have an entry per row."),
        ({"row_order": np.full(20, 20, np.uint32)}, "row_order names row 20 of 20."),
        ({"first_row": 3, "end_row": 2}, "A matrix of 20 rows has no rows 3 to 2."),
        ({"end_row": 21}, "A matrix of 20 rows has no rows 0 to 21."),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], sentence: str):
    """Sizes, types and rows that do not go together are a ValueError that names them."""
    arguments: dict[str, Any] = {"source": np.zeros(800, np.uint8), "source_type": Type.Q4_1, "rows": 20, "cols": 64}
    assert _kernels.dequantize(**arguments, first_row=20).shape == (0, 64)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the sentence is compared
        _kernels.dequantize(**(arguments | changed))
    assert sentence in str(error.value)
