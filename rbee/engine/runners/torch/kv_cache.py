"""Paged keys and values of all layers, and attention over them (PagedAttention: Kwon et al., SOSP 2023).

Owns the tensors and the arithmetic of attention, for any mix of decoding rows and prompt chunks. `begin_step` works out
once what all layers share. Does not know models, sequences or schedules.

A layer's cache is [num_blocks * block_size, num_kv_heads, head_dim]; token p of a sequence is in slot
block_table[p // block_size] * block_size + p % block_size. A row reads no slot that its own sequence has not written,
not even behind a mask: a freed block may hold NaN, and NaN times a weight of zero is NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbee.engine.input_batch import InputBatch

# Decoding rows attend together, padded to the longest of their group. A group ends when padding would cost more than
# the call it saves, or when its gathered keys would outgrow the processor's caches.
_MAX_PADDING = 128
_MAX_GROUP_BYTES = 1 << 20


class Layer(NamedTuple):
    """What one attention layer stores for a token, and how far it looks back."""

    num_kv_heads: int  # keys and values of a token
    key_dim: int  # length of a key
    value_dim: int  # length of a value
    window: int | None  # a row sees itself and the window - 1 tokens before it; None sees all


class _Rows(NamedTuple):
    """Query rows [start, end) that attend in one call: a group of decoding rows, or one sequence's chunk."""

    start: int  # the first row
    end: int  # behind the last row
    is_chunk: bool  # one sequence's rows (the last of the tokens in `slots`), not one row each of several
    slots: torch.Tensor | slice  # int64, flat: the keys of the chunk, or as many for each decoding row; or their range
    mask: torch.Tensor | None  # 0 or -inf, [rows, keys] (decoding rows: [rows, 1, 1, keys]); None: all are seen


class KVCache:
    """Keys and values for `num_blocks` blocks of `block_size` tokens in each of the layers in `layers`."""

    def __init__(
        self, layers: dict[int, Layer], *, num_blocks: int, block_size: int, dtype: torch.dtype, device: str
    ) -> None:
        self.block_size = block_size
        self._dtype = dtype
        self._device = device
        self._windows = {number: layer.window for number, layer in layers.items()}
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        for number, layer in layers.items():
            slots = (num_blocks * block_size, layer.num_kv_heads)
            self._keys[number] = torch.empty(*slots, layer.key_dim, dtype=dtype, device=device)
            self._values[number] = torch.empty(*slots, layer.value_dim, dtype=dtype, device=device)
        self._slot_mapping = torch.empty(0, dtype=torch.int64)
        self._rows: dict[int | None, list[_Rows]] = {window: [] for window in self._windows.values()}
        largest = max(layer.num_kv_heads * layer.key_dim for layer in layers.values())
        self._max_group_slots = _MAX_GROUP_BYTES // (largest * dtype.itemsize)

    @staticmethod
    def bytes_per_block(layers: dict[int, Layer], block_size: int, dtype: torch.dtype) -> int:
        """Memory that one block takes in all layers together."""
        per_token = sum(layer.num_kv_heads * (layer.key_dim + layer.value_dim) for layer in layers.values())
        return per_token * block_size * dtype.itemsize

    def begin_step(self, batch: InputBatch) -> None:
        """Compute what all layers of the coming step share."""
        self._slot_mapping = torch.from_numpy(batch.slot_mapping).to(self._device)
        for window in self._rows:
            self._rows[window] = self._plan(batch, window)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Store this step's keys and values of `layer`, and attend over all that each row may see.

        query is [1, num_heads, T, key_dim], key and value are [1, num_kv_heads, T, their dim], the result, contiguous,
        [1, T, num_heads, value_dim]. Scores are multiplied by `scaling`, then become softcap * tanh(score / softcap).
        `sinks` [num_heads] are a further score of each head whose value is zero.
        """
        keys, values, window = self._keys[layer], self._values[layer], self._windows[layer]
        keys.index_copy_(0, self._slot_mapping, key[0].transpose(0, 1))
        values.index_copy_(0, self._slot_mapping, value[0].transpose(0, 1))
        parts = []
        for rows in self._rows[window]:
            count = rows.end - rows.start
            q = query[:, :, rows.start : rows.end]
            if isinstance(rows.slots, slice):
                k, v = keys[rows.slots], values[rows.slots]
            else:
                k, v = (cache.index_select(0, rows.slots) for cache in (keys, values))
            k, v = (each.view(1 if rows.is_chunk else count, -1, *each.shape[1:]).transpose(1, 2) for each in (k, v))
            if not rows.is_chunk:
                # The query heads that share a kv head stand side by side, as if they were that many positions.
                q = q[0].transpose(0, 1).reshape(count, keys.shape[1], -1, query.shape[3])
            sink = None if sinks is None else sinks.view(1, q.shape[1], -1, 1)
            out = _attention(q, k, v, mask=rows.mask, scaling=scaling, softcap=softcap, sinks=sink)
            parts.append(out[0].transpose(0, 1) if rows.is_chunk else out.reshape(count, query.shape[1], -1))
        return torch.cat(parts)[None]

    def _plan(self, batch: InputBatch, window: int | None) -> list[_Rows]:
        """Group the rows that attend together in the layers with this window."""
        # Keys begin with the block that holds the first one that any row of the sequence sees.
        query_lens = np.diff(batch.query_start)
        reach = batch.context_lens if window is None else np.minimum(batch.context_lens, query_lens + window - 1)
        first_blocks = (batch.context_lens - reach) // self.block_size
        widths = batch.context_lens - first_blocks * self.block_size

        plan = []
        row, num_sequences, width_list = 0, len(widths), widths.tolist()
        while row < num_sequences:
            is_chunk = row >= batch.num_decodes
            end = row + 1 if is_chunk else self._group_end(width_list, row, batch.num_decodes)
            start, stop = int(batch.query_start[row]), int(batch.query_start[end])
            slots = self._slots(batch.block_tables[row:end], first_blocks[row:end], widths[row:end])
            last = np.arange(widths[row] - (stop - start), widths[row]) if is_chunk else widths[row:end] - 1
            mask = self._mask(last, slots.shape[1], window)
            if mask is not None and not is_chunk:
                mask = mask[:, None, None]
            plan.append(_Rows(start, stop, is_chunk, self._address(slots.reshape(-1)), mask))
            row = end
        return plan

    def _group_end(self, widths: list[int], start: int, stop: int) -> int:
        """Where the group of decoding rows that starts at `start` ends; rows with fewer keys come first."""
        end = start + 1
        while end < stop and widths[end] * (end + 1 - start) <= self._max_group_slots:
            if widths[end] - widths[start] > max(_MAX_PADDING, widths[start]):
                break
            end += 1
        return end

    def _slots(
        self, tables: NDArray[np.int64], first_blocks: NDArray[np.int64], widths: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """For each block table the slots of `widths` tokens from a block on: [n, most], padded with the first slot."""
        most = int(widths.max())
        indices = first_blocks[:, None] + np.arange(-(-most // self.block_size))
        blocks = tables[np.arange(len(tables))[:, None], np.minimum(indices, tables.shape[1] - 1)]
        all_slots = blocks[:, :, None] * self.block_size + np.arange(self.block_size)
        slots: NDArray[np.int64] = all_slots.reshape(len(tables), -1)[:, :most]
        np.copyto(slots, slots[:, :1], where=np.arange(most) >= widths[:, None])
        return slots

    def _address(self, slots: NDArray[np.int64]) -> torch.Tensor | slice:
        """A range if the slots are one, as those of a long prompt in a young pool: its keys need no copy then."""
        first, last = int(slots[0]), int(slots[-1])
        if last - first + 1 == len(slots) and (np.diff(slots) == 1).all():
            return slice(first, last + 1)
        return torch.from_numpy(slots).to(self._device)

    def _mask(self, last: NDArray[np.int64], width: int, window: int | None) -> torch.Tensor | None:
        """[rows, width]: 0 for the keys up to the `last` that each row may see, as far as its window reaches."""
        columns = np.arange(width)
        visible = columns <= last[:, None]
        if window is not None:
            visible &= columns > last[:, None] - window
        if visible.all():
            return None
        mask = np.where(visible, np.float32(0), np.float32(-np.inf))
        return torch.from_numpy(mask).to(self._device, self._dtype)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """softmax(cap(query key^T * scaling) + mask, sinks) value; all [batch, heads, rows, dim]; kv heads may repeat."""
    if softcap is None and sinks is None:
        shared = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=shared)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores.dtype).expand(*scores.shape[:3], 1)), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return weights[..., : key.shape[2]] @ value
