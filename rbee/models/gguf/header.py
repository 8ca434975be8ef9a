"""The header of a GGUF file, read with every count and length checked against the file's size.

Owns the check that a file is a GGUF and has all of its bytes; gguf's own reader trusts array lengths, and reports a cut
tensor as a shape error. Does not read tensor data and knows no architecture.

Layout (all little-endian; from the GGUF specification in ggml's docs): "GGUF", uint32 version, uint64 tensor count,
uint64 pair count; then pairs of key, uint32 type, value; then tensors of name, uint32 rank, uint64 dimensions,
uint32 type, uint64 offset; padding; data. A string is a uint64 length and UTF-8 bytes.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError
from rbee.models.stored_tensor import StoredTensor

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_MAX_RANK = 4

# ggml's types (ggml.h, enum ggml_type): name, weights in a block, bytes of a block. Importing gguf's table is slow.
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
GGML_TYPES = {name: number for number, (name, _, _) in _TYPES.items()}  # ggml's numbers


@dataclass(frozen=True)
class GGUFHeader:
    """A GGUF file's metadata and its tensors, both by name. An array is a list of strings or a numpy array."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


class _Malformed(Exception):  # noqa: N818 - becomes the reason in a ModelError
    """The reason why a file cannot be used, and what to do."""

    def __init__(self, reason: str, remedy: str = "Download or convert the model again.") -> None:
        super().__init__(reason)
        self.remedy = remedy


def read_header(path: Path) -> GGUFHeader:
    """Read the header of the GGUF file `path` and check that the file has all of its data.

    Raises:
        ModelError: it cannot be read, is no GGUF, is cut short, or its header makes no sense.
    """
    try:
        with path.open("rb") as file, _mapped(file) as data:
            return _parse(_Cursor(data, len(data)))
    except OSError as error:
        raise ModelError(f"The model file {path} cannot be read: {error.strerror or error}.") from error
    except _Malformed as reason:
        raise ModelError(f"{path} is not a GGUF file that can be used: {reason}. {reason.remedy}") from reason


def _mapped(file: BinaryIO) -> mmap.mmap:
    if file.seek(0, 2) == 0:
        raise _Malformed("it is empty")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _parse(cursor: _Cursor) -> GGUFHeader:
    if cursor.take(4) != b"GGUF":
        raise _Malformed("it does not begin with the letters GGUF")
    version, num_tensors, num_pairs = cursor.unpack("<I"), cursor.unpack("<Q"), cursor.unpack("<Q")
    if version not in (2, 3):
        raise _Malformed(f"its version is {version}, and 2 and 3 are supported")
    metadata: dict[str, Any] = {}
    for _ in range(cursor.count(num_pairs, 13)):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.unpack("<I"))
    tensors = [_tensor(cursor) for _ in range(cursor.count(num_tensors, 24))]

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise _Malformed(f"its alignment is {alignment!r}, which is not a positive number")
    start = (cursor.position + alignment - 1) // alignment * alignment
    placed = {name: replace(tensor, offset=start + tensor.offset) for name, tensor in tensors}
    if len(placed) < len(tensors):
        raise _Malformed("it has two tensors of one name")
    for name, tensor in placed.items():
        end = tensor.offset + tensor.size
        if end > cursor.size:
            raise _Malformed(f"its tensor {name!r} ends at byte {end}, but the file has only {cursor.size} bytes")
    return GGUFHeader(metadata, placed)


def _tensor(cursor: _Cursor) -> tuple[str, StoredTensor]:
    name = cursor.string()
    rank = cursor.unpack("<I")
    if rank > _MAX_RANK:
        raise _Malformed(f"its tensor {name!r} has {rank} dimensions, and {_MAX_RANK} is the limit")
    shape = tuple(cursor.unpack("<Q") for _ in range(rank))[::-1]  # a row's length comes first in the file
    code, offset = cursor.unpack("<I"), cursor.unpack("<Q")
    if code not in _TYPES:
        raise _Malformed(
            f"its tensor {name!r} has type {code}, which is none of llama.cpp's types known here",
            "A fork of llama.cpp or a newer one may have written it: get the model in another quantization.",
        )
    kind, block_weights, block_bytes = _TYPES[code]
    row = shape[-1] if shape else 1
    if row % block_weights:
        raise _Malformed(f"its tensor {name!r} has rows of {row} weights, which is no multiple of {block_weights}")
    return name, StoredTensor(kind, shape, offset, math.prod(shape) // block_weights * block_bytes)


class _Cursor:
    """A position in the file, never past its end."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.size = size
        self.position = 0
        self._data = data

    def take(self, count: int) -> bytes:
        start = self._skip(count)
        return self._data[start : self.position]

    def unpack(self, form: str) -> Any:
        start = self._skip(struct.calcsize(form))
        return struct.unpack_from(form, self._data, start)[0]

    def string(self) -> str:
        try:
            return self.take(self.unpack("<Q")).decode()
        except UnicodeDecodeError as error:
            raise _Malformed(f"the text before byte {self.position} is not UTF-8") from error

    def count(self, claimed: int, least_bytes: int) -> int:
        """`claimed`, if so many items of `least_bytes` or more can follow."""
        if claimed * least_bytes > self.size - self.position:
            raise _Malformed(f"it ends in the middle of its header: {claimed} items should follow byte {self.position}")
        return claimed

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])
        if kind != _ARRAY:
            raise _Malformed(f"the value before byte {self.position} has the unknown type {kind}")
        element, length = self.unpack("<I"), self.unpack("<Q")
        if element == _STRING:
            return self._strings(self.count(length, _LENGTH.size))
        if element in _SCALARS:
            import numpy as np  # noqa: PLC0415 - a start that finds everything ready reads no header

            form = np.dtype(_SCALARS[element])
            return np.frombuffer(self.take(length * form.itemsize), form)
        raise _Malformed(f"the array before byte {self.position} has elements of the unknown type {element}")

    def _strings(self, count: int) -> list[str]:
        """The next `count` strings; a vocabulary has half a million of them, with its merges."""
        data, position, limit = self._data, self.position, self.size
        unpack, texts = _LENGTH.unpack_from, []
        for _ in range(count):
            start = position + _LENGTH.size
            position = start + unpack(data, position)[0] if start <= limit else start
            if position > limit:
                raise _Malformed(f"it ends in the middle of its header, at byte {limit}")
            try:
                texts.append(data[start:position].decode())
            except UnicodeDecodeError as error:
                raise _Malformed(f"the text before byte {position} is not UTF-8") from error
        self.position = position
        return texts

    def _skip(self, count: int) -> int:
        start = self.position
        if count > self.size - start:
            raise _Malformed(f"it ends in the middle of its header, at byte {self.size}")
        self.position = start + count
        return start
