"""What a step of the native runner cannot beat on this machine: its bytes over the bandwidth, its MACs over the peak.

Owns the arithmetic of both, from the model's GGUF file and config. The two rates are measured by the native module,
with as many threads as the step has.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf import GGUFReader

from rbee.engine import _kernels  # noqa: TID251 - it measures what the kernels are held against

if TYPE_CHECKING:
    from pathlib import Path

_SCALE_DIMS = 32  # of a key in 8 bits
_SCALE_BYTES = 2


@dataclass(frozen=True)
class Work:
    """What a step must do.

    Attributes:
        weight_bytes: of all matrices, as the file holds them; read once, whatever the batch.
        weights: in these matrices: multiplications per token.
        kv_bytes: that a token reads for each token before it, keys and values in all layers.
        attention_macs: likewise multiplications.
    """

    weight_bytes: int
    weights: int
    kv_bytes: int
    attention_macs: int

    @classmethod
    def of(cls, folder: Path, gguf: Path, kv_cache: str = "f16") -> Work:
        """Of a model of the Llama family; of embeddings counts only what is the head too.

        `kv_cache` is "q8", or anything else for 16 bits.
        """
        matrices = {tensor.name: tensor for tensor in GGUFReader(gguf).tensors if len(tensor.shape) == 2}
        if "output.weight" in matrices:
            del matrices["token_embd.weight"]
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        key = value = 2 * head_dim
        if kv_cache == "q8":
            key, value = head_dim + -(-head_dim // _SCALE_DIMS) * _SCALE_BYTES, head_dim + _SCALE_BYTES
        return cls(
            weight_bytes=sum(int(tensor.n_bytes) for tensor in matrices.values()),
            weights=sum(int(tensor.n_elements) for tensor in matrices.values()),
            kv_bytes=layers * config.get("num_key_value_heads", heads) * (key + value),
            attention_macs=2 * layers * heads * head_dim,
        )

    def bytes_of(self, batch: int, context: int) -> int:
        """Read by a step that decodes `batch` sequences of so many tokens."""
        return self.weight_bytes + batch * context * self.kv_bytes

    def macs_of(self, batch: int, context: int) -> int:
        """Multiplied by it."""
        return batch * (self.weights + context * self.attention_macs)


@dataclass(frozen=True)
class Machine:
    """Measured: bytes per second read from memory, and int8 multiply-accumulates per second."""

    bandwidth: float
    peak_macs: float

    @classmethod
    def measure(cls, instruction_set: str, threads: int, num_bytes: int) -> Machine:
        """Reading as many bytes as the weights have: a server's last cache may hold a small model whole."""
        return cls(
            _kernels.read_bandwidth(max(num_bytes >> 20, 1), threads), _kernels.peak_macs(instruction_set, threads)
        )
