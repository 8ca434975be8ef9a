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

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of the safetensors file `path`, by name.

    Raises:
        ModelError: it is cut short, damaged or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= size - 8 else b""
    start = 8 + length
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        tensors = {name: _tensor(entry, start) for name, entry in entries.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
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
    for name, tensor in tensors.items():
        fits = tensor.size == math.prod(tensor.shape) * _BYTES.get(tensor.type, 0) or tensor.type not in _BYTES
        if tensor.offset < start or tensor.size < 0 or min(tensor.shape, default=0) < 0 or not fits:
            raise ModelError(
                f"The weights file {path} is damaged: its header gives {name} {tensor.size} bytes at {tensor.offset}, "
                f"which does not fit a {tensor.type} tensor of shape {list(tensor.shape)}. Copy or download it again."
            )
    return tensors


def _tensor(entry: dict[str, Any], start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    if not all(isinstance(number, int) for number in (begin, end, *entry["shape"])):
        raise TypeError("data_offsets and shape")
    return StoredTensor(str(entry["dtype"]), tuple(entry["shape"]), start + begin, end - begin)
