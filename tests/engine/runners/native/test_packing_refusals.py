"""What cannot be packed is refused with a sentence, and numbers that cannot be held show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from rbee.engine import _kernels  # noqa: TID251 - what is under test

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]
from tests.engine.runners.native.packing_parts import (
    HELD_BY,
    Format,
    pack,
)


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
        ({"packed": np.zeros(2 * 640 - 1, np.uint8)}, "20 x 64 weights packed as q4 have 1280 bytes, not 1279."),
        ({"packed": np.zeros(4 * 640, np.uint8)}, "have 1280 bytes, not 2560."),
        ({"rows": 21}, "have 840 bytes, not 800."),
        ({"rows": 2**61}, "is too large; it can have 268435456 rows and columns."),
        ({"rows": 0, "cols": 2**28 + 32}, "is too large"),
        ({"cols": 65}, "q4 has blocks of 32 columns, which 65 columns are not; leave them floats."),
        (
            {"source_type": Type.Q4_K, "cols": 288, "format": Format.Q8_FLOAT, "packed": np.zeros(10368, np.uint8)},
            "Q4_K would lose something as q8-float; q4-k holds it.",
        ),
        ({"source_type": Type.Q8_1}, "ggml type 9 cannot be read; these can: F32, F16, BF16, Q1_0, "),
        ({"source_type": 4_000_000_000}, "ggml type 4000000000 cannot be read"),
        ({"format": len(Format)}, f"There is no weight format {len(Format)}."),
        ({"source_type": Type.Q4_K}, "Q4_K would lose something as q4; q4-k holds it."),
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


PACKED = {
    *HELD_BY.items(),
    *((kind, fmt) for kind in (Type.F32, Type.F16, Type.BF16) for fmt in (Format.F32, Format.Q4, Format.Q8)),
    (Type.F16, Format.F16),
    (Type.BF16, Format.BF16),
}


@pytest.mark.parametrize("fmt", Format, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("kind", [*HELD_BY, Type.F32, Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_pairs_that_would_lose_something_are_refused(kind: Type, fmt: Format):
    """A format is packed if it holds the type, or is one that quantizes it, and refused otherwise."""
    block_cols, block_bytes = GGML_QUANT_SIZES[kind]
    source = np.zeros(16 * 256 // block_cols * block_bytes, np.uint8)
    if (kind, fmt) in PACKED:
        packed = pack(source, kind, 16, 256, fmt=fmt)
        assert np.array_equal(_kernels.unpack(packed, fmt, 16, 256), _kernels.dequantize(source, kind, 16, 256))
    else:
        with pytest.raises(ValueError, match=f"^{kind.name} would lose something as "):
            pack(source, kind, 16, 256, fmt=fmt)


def test_other_calls_refuse_what_does_not_fit():
    """`held_by`, `packed_bytes` and `unpack` have their own sentences; empty matrices are none of it."""
    with pytest.raises(ValueError, match=r"^ggml type 9 cannot be read"):
        _kernels.held_by(Type.Q8_1)
    with pytest.raises(ValueError, match=rf"^There is no weight format {len(Format)}"):
        _kernels.packed_bytes(len(Format), 16, 32)
    with pytest.raises(ValueError, match=r"^q8 has blocks of 32 columns, which 33 columns are not"):
        _kernels.packed_bytes(Format.Q8, 16, 33)
    with pytest.raises(ValueError, match=r"^16 x 32 weights packed as q8 have 544 bytes, not 543\.$"):
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
