"""Paged keys and values of all layers, and attention over them.

Owns the tensors and the arithmetic of attention, for any mix of decoding rows and prompt chunks. What a step looks
like is worked out once (`begin_step`) and shared by all layers. Does not know models, sequences or schedules.

A layer's cache is [num_blocks * block_size, num_kv_heads, head_dim]; token p of a sequence is in slot
block_table[p // block_size] * block_size + p % block_size. (PagedAttention: Kwon et al., SOSP 2023.)

A row reads no slot that its own sequence has not written, not even behind a mask: what is left in a freed block may
be NaN, and NaN times a weight of zero is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from rbee.engine.input_batch import InputBatch

# Decoding rows attend together, padded to the longest of their group. A group ends when padding would cost more than
# the call it saves, or when its gathered keys would outgrow the processor's caches by far.
_MAX_PADDING = 128
_MAX_GROUP_SLOTS = 32768


class LayerShape(NamedTuple):
    """What one attention layer stores for a token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(slots=True)
class _Rows:
    """Query rows [start, end) that attend in one call: a group of decoding rows, or one sequence's chunk.

    Attributes:
        start: the first row.
        end: behind the last row.
        is_chunk: one sequence's rows (the last `end - start` of its `width` tokens), not one row each of several.
        width: keys given to each row.
        slots: int64, flat: width slots for each decoding row, or width slots for the chunk.
        last_visible: int64, one per row: the last of its keys that it may see.
        masks: by sliding window, built on first use.
    """

    start: int
    end: int
    is_chunk: bool
    width: int
    slots: torch.Tensor
    last_visible: torch.Tensor
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)


class KVCache:
    """Keys and values for `num_blocks` blocks of `block_size` tokens in each of the layers in `shapes`."""

    def __init__(
        self, shapes: dict[int, LayerShape], *, num_blocks: int, block_size: int, dtype: torch.dtype, device: str
    ) -> None:
        self.block_size = block_size
        self._dtype = dtype
        self._device = device
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        for layer, shape in shapes.items():
            slots = (num_blocks * block_size, shape.num_kv_heads)
            self._keys[layer] = torch.empty(*slots, shape.key_dim, dtype=dtype, device=device)
            self._values[layer] = torch.empty(*slots, shape.value_dim, dtype=dtype, device=device)
        self._slot_mapping = torch.empty(0, dtype=torch.int64)
        self._rows: list[_Rows] = []

    @staticmethod
    def bytes_per_block(shapes: dict[int, LayerShape], block_size: int, dtype: torch.dtype) -> int:
        """Memory that one block takes in all layers together."""
        per_token = sum(shape.num_kv_heads * (shape.key_dim + shape.value_dim) for shape in shapes.values())
        return per_token * block_size * dtype.itemsize

    def begin_step(self, batch: InputBatch) -> None:
        """Work out what all layers of the coming step have in common."""
        self._slot_mapping = torch.from_numpy(batch.slot_mapping).to(self._device)
        tables = torch.from_numpy(batch.block_tables).to(self._device)
        lengths = batch.context_lens.tolist()
        self._rows = []
        start = 0
        while start < batch.num_decodes:
            end = _group_end(lengths, start, batch.num_decodes)
            last = torch.tensor(lengths[start:end], device=self._device) - 1
            slots = self._slots(tables[start:end], last, lengths[end - 1])
            self._rows.append(_Rows(start, end, False, lengths[end - 1], slots, last))
            start = end
        for row in range(batch.num_decodes, len(lengths)):
            first, end, width = int(batch.query_start[row]), int(batch.query_start[row + 1]), lengths[row]
            last = torch.arange(width - (end - first), width, device=self._device)
            self._rows.append(
                _Rows(first, end, True, width, self._slots(tables[row : row + 1], last[-1:], width), last)
            )

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Store this step's keys and values of `layer`, and attend over all that each row may see.

        Args:
            layer: which layer.
            query: [1, num_heads, T, key_dim], the step's T rows.
            key: [1, num_kv_heads, T, key_dim].
            value: [1, num_kv_heads, T, value_dim].
            scaling: factor of the scores.
            window: a row sees itself and the window - 1 tokens before it; None sees all.
            softcap: scores become softcap * tanh(score / softcap); None leaves them.

        Returns:
            [1, T, num_heads, value_dim].
        """
        keys, values = self._keys[layer], self._values[layer]
        keys.index_copy_(0, self._slot_mapping, key[0].transpose(0, 1))
        values.index_copy_(0, self._slot_mapping, value[0].transpose(0, 1))
        parts = []
        for rows in self._rows:
            count = rows.end - rows.start
            q = query[:, :, rows.start : rows.end]
            k, v = _gather(keys, rows), _gather(values, rows)
            if not rows.is_chunk:
                # The query heads that share a kv head stand side by side, as if they were that many positions.
                q = q[0].transpose(0, 1).reshape(count, keys.shape[1], -1, query.shape[3])
            out = _attention(q, k, v, mask=self._mask(rows, window), scaling=scaling, softcap=softcap)
            parts.append(out[0].transpose(0, 1) if rows.is_chunk else out.reshape(count, query.shape[1], -1))
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]

    def _slots(self, tables: torch.Tensor, last: torch.Tensor, width: int) -> torch.Tensor:
        """The slots of tokens 0..last of each block table, padded to `width` with the slot of token 0; flat."""
        tokens = torch.arange(width, device=self._device)
        tokens = torch.where(tokens <= last[:, None], tokens, 0)
        blocks = tables.gather(1, tokens // self.block_size)
        return (blocks * self.block_size + tokens % self.block_size).reshape(-1)

    def _mask(self, rows: _Rows, window: int | None) -> torch.Tensor | None:
        """What is added to the scores: 0 where a row may look and -inf elsewhere; None when it may look everywhere.

        [rows, 1, 1, width] for decoding rows, [rows, width] for a chunk. Built once per step and window.
        """
        if window in rows.masks:
            return rows.masks[window]
        mask = None
        if rows.end - rows.start > 1 or (window is not None and window < rows.width):
            columns = torch.arange(rows.width, device=self._device)
            last = rows.last_visible[:, None] if rows.is_chunk else rows.last_visible[:, None, None, None]
            visible = columns <= last
            if window is not None:
                visible &= columns > last - window
            mask = torch.zeros(visible.shape, dtype=self._dtype, device=self._device)
            mask.masked_fill_(~visible, -torch.inf)
        rows.masks[window] = mask
        return mask


def _group_end(lengths: list[int], start: int, stop: int) -> int:
    """Where the group of decoding rows that starts at `start` ends; `lengths` ascend up to `stop`."""
    end = start + 1
    while end < stop:
        padding = lengths[end] - lengths[start]
        if padding > max(_MAX_PADDING, lengths[start]) or lengths[end] * (end + 1 - start) > _MAX_GROUP_SLOTS:
            break
        end += 1
    return end


def _gather(cache: torch.Tensor, rows: _Rows) -> torch.Tensor:
    """A copy of the keys or values given to the rows: [rows, or 1 for a chunk; num_kv_heads, width, dim]."""
    return cache.index_select(0, rows.slots).view(-1, rows.width, *cache.shape[1:]).transpose(1, 2)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """softmax(cap(query key^T * scaling) + mask) value, all [batch, heads, rows, dim]; kv heads may be shared."""
    if softcap is None:
        shared = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=shared)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.tanh(query @ key.transpose(-1, -2) * (scaling / softcap)) * softcap
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value
