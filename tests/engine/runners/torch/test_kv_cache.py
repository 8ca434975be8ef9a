"""The paged KV cache against plain attention over each sequence's own keys and values."""

from __future__ import annotations

import array
import contextlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch

from rbee.engine.input_batch import InputBatch
from rbee.engine.runners.torch.kv_cache import KVCache, Layer
from rbee.engine.scheduling.scheduler import Scheduled
from rbee.engine.scheduling.sequence import Sequence
from rbee.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_SIZE = 4
NUM_BLOCKS = 512
SCALING = 0.3


class Features(NamedTuple):
    """What a layer's attention has to do."""

    num_heads: int = 4
    num_kv_heads: int = 4
    key_dim: int = 8
    value_dim: int = 8
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False


FEATURES = {
    "plain": Features(),
    "shared kv heads": Features(num_heads=6, num_kv_heads=2),
    "one kv head": Features(num_kv_heads=1),
    "values of another length": Features(key_dim=12, value_dim=5),
    "window": Features(num_kv_heads=2, window=7),
    "window of one token": Features(window=1),
    "window as long as blocks": Features(window=BLOCK_SIZE),
    "soft cap": Features(num_kv_heads=2, softcap=1.5),
    "sinks": Features(num_kv_heads=2, has_sinks=True),
    "all at once": Features(6, 2, 12, 5, window=9, softcap=1.5, has_sinks=True),
    "keys too large for one group": Features(num_heads=64, num_kv_heads=64, key_dim=32),
}


def dense_attention(
    features: Features, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None
) -> torch.Tensor:
    """[rows, heads, value_dim] for the last rows of one sequence: query [rows, heads, dim], key and value of it all."""
    groups = features.num_heads // features.num_kv_heads
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * SCALING
    if features.softcap is not None:
        scores = features.softcap * torch.tanh(scores / features.softcap)
    distance = torch.arange(len(key) - len(query), len(key))[:, None] - torch.arange(len(key))
    scores[:, (distance < 0) | (distance >= (features.window or len(key)))] = -torch.inf
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, len(query), 1)], dim=-1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1)[..., : len(key)], value)


@pytest.fixture(autouse=True)
def _one_thread():
    """These tensors are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def uninitialized_memory_is_nan() -> Iterator[None]:
    """Within the block torch.empty fills its tensors with NaN, as it does for who wants it deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(99).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", FEATURES)
def test_attention_of_every_kind_of_step(name):
    """Chunks and decoding rows of sequences of all lengths attend to their own past and to nothing else.

    Every slot is NaN before it is written, so that a look at one that is not the sequence's own, even with a weight of
    zero, would show.
    """
    features = FEATURES[name]
    random = torch.Generator().manual_seed(3)
    layer = Layer(features.num_kv_heads, features.key_dim, features.value_dim, features.window)
    with uninitialized_memory_is_nan():
        cache = KVCache({0: layer}, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, dtype=torch.float32, device="cpu")
    sinks = torch.randn(features.num_heads, generator=random) if features.has_sinks else None

    lengths = (1, 2, 5, 30, 31, 33, 60, 90, 180, 900)  # the longest ends alone, and decodes in a group of its own
    blocks = iter(torch.randperm(NUM_BLOCKS, generator=random).tolist())
    sequences, keys, values = [], [], []
    for number, length in enumerate(lengths):
        sequence = Sequence(
            request_id=str(number),
            ring=number,
            rank=(number, number),
            token_ids=array.array("I", range(length)),
            sampling=SamplingParams(max_tokens=9),
        )
        sequence.block_table.extend(next(blocks) for _ in range(-(-length // BLOCK_SIZE)))
        sequences.append(sequence)
        keys.append(torch.randn(length, features.num_kv_heads, features.key_dim, generator=random))
        values.append(torch.randn(length, features.num_kv_heads, features.value_dim, generator=random))

    num_decodes = 0
    while live := [sequence for sequence in sequences if sequence.num_uncomputed_tokens > 0]:
        # Half of the rest, so that all end with decoding rows, and most of them in the same step.
        scheduled = [Scheduled(sequence, -(-sequence.num_uncomputed_tokens // 2)) for sequence in live]
        batch = InputBatch.build(scheduled, BLOCK_SIZE)
        by_block = {sequence.block_table[0]: sequence for sequence in live}
        packed_sequences = [by_block[int(table[0])] for table in batch.block_tables]
        parts = [
            slice(sequence.num_computed_tokens, sequence.num_computed_tokens + int(length))
            for sequence, length in zip(packed_sequences, np.diff(batch.query_start), strict=True)
        ]
        rows = [sequence.ring for sequence in packed_sequences]
        query = torch.randn(len(batch.token_ids), features.num_heads, features.key_dim, generator=random)
        new_keys = torch.cat([keys[row][part] for row, part in zip(rows, parts, strict=True)])
        new_values = torch.cat([values[row][part] for row, part in zip(rows, parts, strict=True)])

        cache.begin_step(batch)
        packed = (each.transpose(0, 1)[None] for each in (query, new_keys, new_values))
        out = cache.attend(0, *packed, scaling=SCALING, softcap=features.softcap, sinks=sinks)

        pieces = query.split(torch.from_numpy(batch.query_start).diff().tolist())
        expected = [
            dense_attention(features, piece, keys[row][: part.stop], values[row][: part.stop], sinks)
            for piece, row, part in zip(pieces, rows, parts, strict=True)
        ]
        torch.testing.assert_close(out[0], torch.cat(expected), rtol=1e-4, atol=1e-5)
        assert out.is_contiguous()
        for sequence, num_tokens in scheduled:
            sequence.num_computed_tokens += num_tokens
        num_decodes += batch.num_decodes
    assert num_decodes >= len(lengths)
