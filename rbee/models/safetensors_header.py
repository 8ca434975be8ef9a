"""The header of a safetensors file, and the check that the file has all of its bytes. Does not read tensor data.

Layout (safetensors' own README): uint64 little-endian length of the header, the header in JSON with each tensor's
dtype, shape and [begin, end) in the data, the data.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError
from rbee.models.stored_tensor import StoredTensor

if TYPE_CHECKING:
    from pathlib import Path

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
_MOST_BYTES = 100_000_000  # of a header, as the format allows
_MAX_RANK = 32


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of the safetensors file `path`, by name.

    Raises:
        ModelError: it cannot be read, is cut short, damaged or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length <= min(size - 8, _MOST_BYTES) else b""
    except OSError as error:
        raise ModelError(f"The weights file {path} cannot be read: {error.strerror or error}.") from error
    start = 8 + length
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        tensors = {name: _tensor(entry, start) for name, entry in entries.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"The weights file {path} is cut short or no safetensors file: it has {size} bytes and no whole header. "
            "Copy or download it again."
        ) from error
    end = max((tensor.offset + tensor.size for tensor in tensors.values()), default=start)
    if end != size:
        raise ModelError(
            f"The weights file {path} is damaged: its header asks for {end} bytes and it has {size}. "
            "Copy or download it again."
        )
    covered = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        fits = tensor.size == math.prod(tensor.shape) * _BYTES.get(tensor.type, 0) or tensor.type not in _BYTES
        if tensor.offset != covered or tensor.size < 0 or not fits:
            raise ModelError(
                f"The weights file {path} is damaged: its header gives {name} {tensor.size} bytes at {tensor.offset}, "
                f"which does not fit a {tensor.type} tensor of shape {list(tensor.shape)} after byte {covered}. Copy "
                "or download it again."
            )
        covered += tensor.size
    return tensors


def _tensor(entry: dict[str, Any], start: int) -> StoredTensor:
    numbers = [*entry["data_offsets"], *entry["shape"]]
    if len(numbers) > _MAX_RANK + 2 or not all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers):
        raise TypeError("data_offsets and shape")
    begin, end = entry["data_offsets"]
    return StoredTensor(str(entry["dtype"]), tuple(entry["shape"]), start + begin, end - begin)
