"""What the native runner's tests share: steps put together by hand, a minimal model, transformers with its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import transformers

from rbee.engine import _kernels  # noqa: TID251 - what is under test
from rbee.engine.input_batch import InputBatch
from tests.engine.runners.native.weights_parts import GEMMA_PARTS, PARTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rbee.engine.runners.native.runner import NativeRunner
    from tests.engine.runners.native.weights_parts import PackedWeights

BLOCK_SIZE = 16
Q4, Q8 = 3, 5  # of weights.h


class Chunk(NamedTuple):
    """The tokens [start, end) of a sequence, to be computed in a step; its cache is in `blocks`."""

    tokens: Sequence[int]
    blocks: Sequence[int]
    start: int
    end: int


def arrays(*chunks: Chunk) -> dict[str, Any]:
    """The step of these chunks, which wants the logits of every token."""
    tables = np.zeros((len(chunks), max(len(chunk.blocks) for chunk in chunks)), np.int64)
    for row, chunk in enumerate(chunks):
        tables[row, : len(chunk.blocks)] = chunk.blocks
    places = [(chunk, position) for chunk in chunks for position in range(chunk.start, chunk.end)]
    numbers = {
        "token_ids": [chunk.tokens[position] for chunk, position in places],
        "positions": [position for _, position in places],
        "slot_mapping": [
            chunk.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE for chunk, position in places
        ],
        "query_start": np.cumsum([0, *(chunk.end - chunk.start for chunk in chunks)]),
        "context_lens": [chunk.end for chunk in chunks],
        "logits_rows": range(len(places)),
    }
    return {name: np.array(values, np.int64) for name, values in numbers.items()} | {"block_tables": tables}


def execute(runner: NativeRunner, *chunks: Chunk) -> list[NDArray[np.float32]]:
    """One step; of each chunk the logits of all its tokens, [end - start, vocab]."""
    step = arrays(*chunks)
    logits = runner.execute(InputBatch(num_decodes=0, row_sequences=[], num_sampling=0, **step)).logits.copy()
    return np.split(logits, step["query_start"][1:-1])


def minimal(**changes: Any) -> _kernels.Model:
    """A model of one layer and 16 numbers a row, with a cache of two blocks of 16; or with arguments changed."""
    arguments: dict[str, Any] = {
        "exact": True,
        "kv_cache": "f32",
        "num_blocks": 2,
        "block_size": BLOCK_SIZE,
        "instruction_set": "auto",
        "pool": _kernels.ThreadPool(1),
    } | {name: changes.pop(name) for name in list(changes) if name not in minimal_arguments()}
    weights = minimal_weights(**changes)
    weights.pack(weights.source_bytes, arguments["pool"], arguments.get("progress"))
    return _kernels.Model(weights, **arguments)


def minimal_weights(**changes: Any) -> _kernels.Weights:
    """The minimal model's, not packed."""
    return _kernels.Weights(**(minimal_arguments() | changes))


def minimal_arguments() -> dict[str, Any]:
    """Of `_kernels.Weights`."""
    sizes: dict[str, Any] = {
        "query": (32, 16),
        "key": (16, 16),
        "value": (16, 16),
        "output": (16, 32),
        "gate": (8, 16),
        "up": (8, 16),
        "down": (16, 8),
    }
    shapes = {f"layers.0.{name}": size for name, size in sizes.items()} | {"embedding": (20, 16)}
    rng = np.random.default_rng(1)
    return {
        "shape": minimal_shape(),
        "layers": [(0, 0)],
        "rotaries": [([1.0] * 8, 1.0)],
        "matrices": {name: stored(rng.normal(size=size).astype(np.float32)) for name, size in shapes.items()},
        "vectors": dict.fromkeys(
            ("final_norm", "layers.0.attention_norm", "layers.0.mlp_norm"), np.ones(16, np.float32)
        ),
    }


def minimal_shape(**changes: Any) -> _kernels.ModelShape:
    """Of the minimal model: two heads that share one kv head."""
    sizes: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 16,
        "epsilon": 1e-6,
        "activation": "silu",
        "attention_scale": 0.25,
        "embedding_scale": 1.0,
    }
    return _kernels.ModelShape(**(sizes | changes))


def stored(floats: NDArray[np.float32]) -> tuple[int, int, int, NDArray[np.uint8], int, None]:
    """A matrix as `_kernels.Weights` takes it, which stays float32."""
    return 0, *floats.shape, floats.reshape(-1).view(np.uint8), 0, None


def instruction_sets() -> tuple[str, ...]:
    """Those of this machine; each one of the list implies those behind it."""
    names = ("avx512", "avx2", "portable")
    return names[names.index(minimal().instruction_set) :]


INSTRUCTION_SETS = instruction_sets()


def take_weights(model: transformers.PreTrainedModel, weights: PackedWeights) -> None:
    """Give a transformers model the numbers that packed matrices stand for."""
    with torch.no_grad():
        for name, matrix in weights.matrices.items():
            numbers = _kernels.unpack(matrix.data, matrix.format, matrix.rows, matrix.cols)
            model.get_parameter(f"{_module_of(name, model)}.weight").copy_(torch.from_numpy(numbers))


def round_activations(model: transformers.PreTrainedModel, weights: PackedWeights) -> None:
    """Have a transformers model round, as the kernels do, what goes into products with quantized matrices."""
    modules = {_module_of(name, model) for name, matrix in weights.matrices.items() if matrix.format >= Q4}
    if "head" not in weights.matrices and "model.embed_tokens" in modules:
        modules.add("lm_head")
    for name in modules - {"model.embed_tokens"}:
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: (in_8_bits(inputs[0]),))


def in_8_bits(x: torch.Tensor) -> torch.Tensor:
    """Groups of 32 in steps of 1/127 of the group's greatest magnitude."""
    groups = x.reshape(*x.shape[:-1], -1, 32)
    greatest = groups.abs().amax(-1, keepdim=True)
    return (torch.round(groups * (127 / greatest)) * (greatest / 127)).reshape(x.shape)


class HalfCache(transformers.DynamicCache):
    """Keys and values in binary16."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See DynamicCache."""
        return super().update(key_states.half().float(), value_states.half().float(), *args, **kwargs)


class ByteCache(transformers.DynamicCache):
    """Keys and values in 8 bits: a scale for 32 dimensions of a key, and for a whole value."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See DynamicCache."""
        keys = torch.cat([_in_bytes(part) for part in torch.split(key_states, 32, dim=-1)], dim=-1)
        return super().update(keys, _in_bytes(value_states), *args, **kwargs)


def _in_bytes(numbers: torch.Tensor) -> torch.Tensor:
    """What is left of them with one scale, a binary16 number, for each last dimension."""
    scales = (numbers.abs().amax(-1, keepdim=True) / 127).half().float()
    return torch.where(scales > 0, (numbers / scales).round().clamp(-127, 127) * scales, 0.0)


def _module_of(name: str, model: transformers.PreTrainedModel) -> str:
    """The module whose weight is one of our matrices."""
    if name in ("embedding", "head"):
        return {"embedding": "model.embed_tokens", "head": "lm_head"}[name]
    layer, _, part = name.rpartition(".")
    parts = GEMMA_PARTS if model.config.model_type == "gemma3_text" else PARTS
    return f"model.{layer}.{parts[part].removesuffix('.weight')}"
