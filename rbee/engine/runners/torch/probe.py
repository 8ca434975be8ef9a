"""What a transformers model really does, seen by running it; or a sentence why it cannot be served.

Owns the two short forward passes between loading a model and serving it. Concludes nothing from the name of an
architecture or its configuration. Does not know blocks or steps.

* Which layers attend, and with how many heads, shows in their calls of the attention interface.
* How far back a row looks is what the model's masks say: transformers hands the rule of each mask to whatever
  registers for it. Sliding windows are supported, any other rule is refused.
* Attention must be the only way from one row to another, and a row's position the given one: a row must come out
  the same beside other neighbours and in another place of the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rbee.engine.runners.interface import Unsupported
from rbee.engine.runners.torch.kv_cache import Layer
from rbee.engine.runners.torch.model import NO_INTERFACE, first_line
from rbee.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PretrainedConfig

    from rbee.engine.runners.torch.model import TorchModel

_MANY = 1 << 20  # tokens of a sequence, for a model without a limit of its own

# How much of a row's query, key or value may depend on its neighbours, as a share of its length. In the first layer
# that is rounding. Further on, a router of experts may turn rounding into the choice of another expert, which must be
# tolerated; a state that runs from row to row, or positions that count rows, changes everything.
_ROUNDING = 0.02
_ROUTING = 0.25

# Arguments of attention that the cache obeys, and those that change nothing.
_OBEYED = frozenset({"scaling", "softcap", "s_aux", "is_causal"})
_HARMLESS = frozenset({"dropout", "position_ids", "cache_position", "use_cache", "output_router_logits"})


class _Seen(NamedTuple):
    """What one layer attended with: query, key and value [1, heads, rows, dim]; how far back it would have looked."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    window: int | None


def probe(path: Path, model: TorchModel) -> dict[int, Layer]:
    """What each layer stores for a token, and how far back it looks; ModelError names what the cache cannot do."""
    limit = model.position_limit or _MANY
    some = model.vocab_size // 8
    try:
        with model.masks_from(lambda **asked: _note_rule(limit, **asked)):
            seen, logits = _run(model, [1 * some, 2 * some, 3 * some], [0, 1, 2], rows=[0, 2])
        again, logits_again = _run(model, [4 * some, 3 * some, 5 * some, some], [limit - 1, 2, 3, 0], rows=[3, 1])
    except Unsupported as error:
        raise ModelError(f"The model in {path} cannot be served: {error}.") from error
    except Exception as error:  # whatever stops it is the reason we pass on
        raise ModelError(f"The model in {path} does not run on packed tokens: {first_line(error)}.") from error

    problem = _problem(model, seen, again, logits, logits_again)
    if problem is not None:
        raise ModelError(f"The model in {path} cannot be served: {problem}.")
    return {
        layer: Layer(key.shape[1], key.shape[3], value.shape[3], window)
        for layer, (_, key, value, window) in seen.items()
    }


def _problem(
    model: TorchModel, seen: dict[int, _Seen], again: dict[int, _Seen], logits: torch.Tensor, logits_again: torch.Tensor
) -> str | None:
    """Why a model that ran cannot be served, or None. Rows 0 and 2 of the first pass are 3 and 1 of the second one."""
    missing = set(range(model.num_layers)) - set(seen)
    if missing:
        return f"layer {min(missing)} ({model.name}) {NO_INTERFACE}"
    if logits.shape != (2, model.vocab_size):
        return f"it gives logits {list(logits.shape)} for 2 rows, where its config.json promises {model.vocab_size}"
    tolerance = _ROUNDING
    for layer in seen:
        for one, other in zip(seen[layer][:3], again[layer][:3], strict=True):
            if _differ(one[0, :, [0, 2]], other[0, :, [3, 1]], tolerance):
                return (
                    f"what layer {layer} ({model.name}) computes for a token depends on the other tokens of the same "
                    "step, or on its place among them, by other ways than attention"
                )
        tolerance = _ROUTING
    if _differ(logits, logits_again, _ROUTING):
        return f"the logits of {model.name} for a token depend on the other tokens of the same step"
    return _window_that_no_mask_shows(model.config, [seen[layer].window for layer in range(model.num_layers)])


def _window_that_no_mask_shows(config: PretrainedConfig, windows: list[int | None]) -> str | None:
    """Where the configuration restricts a layer and its masks do not: then transformers' own cache does it."""
    window = getattr(config, "sliding_window", None)
    if window is None or window >= getattr(config, "max_position_embeddings", _MANY):
        return None
    kinds = getattr(config, "layer_types", None) or (["sliding_attention"] if not any(windows) else [])
    blind = [(kind, found) == ("sliding_attention", None) for kind, found in zip(kinds, windows, strict=False)]
    return f"layer {blind.index(True)} has a sliding window that no mask shows" if any(blind) else None


def _run(
    model: TorchModel, token_ids: list[int], positions: list[int], *, rows: list[int]
) -> tuple[dict[int, _Seen], torch.Tensor]:
    """What each layer attends with, and the logits of `rows`, when a row attends to nothing but itself."""
    seen: dict[int, _Seen] = {}

    def record(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        sliding_window: int | None = None,
        **others: Any,
    ) -> torch.Tensor:
        feature = _unsupported_feature(module, attention_mask, others)
        if feature is not None:
            raise Unsupported(f"its attention ({type(module).__name__}) has {feature}, which rbee does not support")
        layer = module.layer_idx
        assert isinstance(layer, int)
        if layer in seen:
            raise Unsupported(f"it runs layer {layer} more than once, which rbee does not support")
        window = sliding_window if attention_mask is None else int(attention_mask) or None
        seen[layer] = _Seen(query, key, value, window)
        return value[0].repeat_interleave(query.shape[1] // key.shape[1], dim=0).transpose(0, 1)[None].contiguous()

    model.use_attention(record)
    arrays = (torch.tensor(each, device=model.device) for each in (token_ids, positions, rows))
    logits = model.forward(*arrays)
    return seen, logits


def _unsupported_feature(module: torch.nn.Module, mask: torch.Tensor | None, others: dict[str, Any]) -> str | None:
    """Return what a call of the attention interface needs and the paged cache lacks, or None."""
    if others.get("is_causal") is False or not getattr(module, "is_causal", True):
        return "no causality"
    if not hasattr(module, "layer_idx"):
        return "no layer number"
    if mask is not None and not _is_rule(mask):
        return "a mask of its own"
    for name, other in others.items():
        if name not in _OBEYED | _HARMLESS and other is not None and other is not False:
            return f"'{name}'"
    return None


def _note_rule(
    limit: int, *, mask_function: Callable[..., torch.Tensor], device: torch.device | str, **_: Any
) -> torch.Tensor:
    """Stands in for a mask: int64 [1, 1, 1, 1], the sliding window of its rule, or 0 if a row sees all before it."""
    keys = torch.arange(limit, device=device)
    window = 0
    for last in (limit - 1, limit - 1 - limit // 3):
        visible = mask_function(0, 0, torch.tensor(last, device=device), keys).expand(limit)
        if visible[last + 1 :].any():
            raise Unsupported("a token sees those behind it, so that it generates no text token by token")
        window = window or int(visible.sum())
        if not torch.equal(visible, (keys <= last) & (keys > last - window)):
            raise Unsupported("its masks are no sliding windows, and rbee supports no others")
    return torch.full((1, 1, 1, 1), 0 if window == limit else window, device=device)


def _is_rule(mask: torch.Tensor) -> bool:
    return mask.dtype == torch.int64 and mask.shape == (1, 1, 1, 1)


def _differ(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Whether two results differ by more than a share of their size. NaN, from broken weights, does not count."""
    one, other = one.float(), other.float()
    distance, size = torch.linalg.vector_norm(one - other), torch.linalg.vector_norm(one)
    return bool(distance > tolerance * size)
