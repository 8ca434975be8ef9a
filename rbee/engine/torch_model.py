"""From a folder to a transformers model whose attention is ours, or a sentence why not.

Owns everything that is particular about transformers: loading quietly, the attention interface, and the check that a
model does with it only what `kv_cache` can do. Does not know steps, batches or blocks.

Any decoder-only architecture works whose every layer calls the attention interface once. Nothing is assumed about the
others: one short forward pass with a recording attention function (`probe`) shows what a model really does.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from rbee.engine.kv_cache import LayerShape
from rbee.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

_ATTENTION = "rbee_paged"
_HARMLESS = frozenset({"dropout", "position_ids", "cache_position", "is_causal", "use_cache", "output_router_logits"})


class Attend(Protocol):
    """What computes attention for a layer; see `KVCache.attend`."""

    def __call__(
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
        """Output [1, T, num_heads, value_dim] for query, key, value [1, heads, T, dim]."""
        ...


def load_config(path: Path) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        ModelError: config.json is missing, damaged, or names an architecture that transformers does not know.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"The folder {path} holds no model: there is no config.json in it.")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers finds wrong is the reason we pass on
        raise ModelError(
            f"{path / 'config.json'} cannot be used with transformers {transformers.__version__}: {_first_line(error)}"
        ) from error
    return config


def load_model(path: Path, config: PretrainedConfig, *, dtype: torch.dtype | None, device: str) -> PreTrainedModel:
    """The model of `config` with the weights in `path`, ready for inference; `dtype` None takes the model's own.

    Its attention does nothing useful before `use_attention`.

    Raises:
        ModelError: no generative model, or weights that are missing, damaged or of another shape.
    """
    _check_weights(path)
    AttentionInterface.register(_ATTENTION, _attention)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
            model, loaded = load(
                path,
                config=config,
                dtype="auto" if dtype is None else dtype,
                attn_implementation=_ATTENTION,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported, and named below
            )
    except Exception as error:
        raise ModelError(f"The model in {path} cannot be loaded: {_first_line(error)}") from error
    if loaded["missing_keys"]:
        names = sorted(loaded["missing_keys"])
        raise ModelError(f"The weights in {path} are incomplete: {names[0]} and {len(names) - 1} others are missing.")
    if loaded["mismatched_keys"]:
        name, found, expected = min(loaded["mismatched_keys"])
        raise ModelError(
            f"The weights in {path} do not fit its config.json: {name} has shape {list(found)}, "
            f"but the configuration asks for {list(expected)}."
        )
    try:
        ready: PreTrainedModel = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ModelError(f"The model in {path} cannot be moved to --device {device}: {_first_line(error)}") from error
    return ready


def be_quiet() -> None:
    """Keep transformers' progress bars and advice off stderr."""
    hush: tuple[Callable[[], None], ...] = (
        transformers.logging.set_verbosity_error,
        transformers.logging.disable_progress_bar,
    )
    for function in hush:
        function()


def use_attention(model: PreTrainedModel, attend: Attend) -> None:
    """Make all layers of a model from `load_model` call `attend`."""
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            vars(module)["rbee_attend"] = attend


def probe(path: Path, model: PreTrainedModel) -> dict[int, LayerShape]:
    """What each layer stores for a token, seen by running two tokens through the model.

    Raises:
        ModelError: the model does something that the paged cache cannot do; the message names it.
    """
    shapes: dict[int, LayerShape] = {}
    windows: dict[int, int | None] = {}

    def record(
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,  # noqa: ARG001 - the interface
        window: int | None,
        softcap: float | None,  # noqa: ARG001
    ) -> torch.Tensor:
        if layer in shapes:
            raise ModelError(f"The model in {path} runs layer {layer} more than once, which rbee does not support.")
        shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        windows[layer] = window
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])

    use_attention(model, record)
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    try:
        forward(model, tokens, torch.arange(2, device=model.device)[None], torch.tensor([1], device=model.device))
    except _UnsupportedError as error:
        raise ModelError(f"The model in {path} cannot be served: {error}") from error
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"The model in {path} does not run on packed tokens: {_first_line(error)}") from error

    config = model.config.get_text_config(decoder=True)
    missing = set(range(config.num_hidden_layers)) - set(shapes)
    if missing:
        raise ModelError(
            f"The model in {path} cannot be served: layer {min(missing)} ({type(model).__name__}) does not go through "
            "transformers' attention interface, so its state cannot be kept in the paged KV cache."
        )
    _check_windows(path, config, windows)
    return shapes


def position_limit(config: PretrainedConfig) -> int | None:
    """Tokens that one sequence may have by the model's own account; None when it does not say.

    With `longrope` the frequencies of all rows change once one row is beyond the original length, so that a request
    would depend on its neighbours: such a model is limited to that length.
    """
    text = config.get_text_config(decoder=True)
    limit: int | None = getattr(text, "max_position_embeddings", None)
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in (ropes, *(nested for nested in ropes.values() if isinstance(nested, dict))):
        original = rope.get("original_max_position_embeddings")
        if rope.get("rope_type") == "longrope" and original:
            limit = min(limit or original, original)
    return limit


def forward(
    model: PreTrainedModel, token_ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Logits [len(rows), vocab] of the given rows (int64) of packed tokens [1, T] at positions [1, T]."""
    with torch.inference_mode():
        output = model(
            input_ids=token_ids, position_ids=positions, attention_mask=None, use_cache=False, logits_to_keep=rows
        )
    logits: torch.Tensor = output.logits[0]
    return logits


class _UnsupportedError(Exception):
    """Something about a model that the paged cache cannot do."""


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer. A registered function without a mask function gets no mask."""
    unknown = [name for name, other in others.items() if not (name in _HARMLESS or other is None or other is False)]
    if unknown or attention_mask is not None or not getattr(module, "is_causal", True):
        feature = (
            f"'{unknown[0]}'" if unknown else "a mask of its own" if attention_mask is not None else "no causality"
        )
        raise _UnsupportedError(f"its attention ({type(module).__name__}) has {feature}, which rbee does not support.")
    attend: Callable[..., torch.Tensor] = vars(module)["rbee_attend"]
    out = attend(
        module.layer_idx,
        query,
        key,
        value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out, None


def _check_windows(path: Path, config: PretrainedConfig, windows: dict[int, int | None]) -> None:
    """Refuse models that restrict what a row sees by a mask alone: their attention function never hears of it."""
    kinds = getattr(config, "layer_types", None) or []
    for layer, kind in enumerate(kinds):
        if kind not in ("full_attention", "sliding_attention") or (
            kind == "sliding_attention" and windows.get(layer) is None
        ):
            raise ModelError(f"The model in {path} cannot be served: {kind} in layer {layer} is not supported.")
    if not kinds and getattr(config, "sliding_window", None) and not any(windows.values()):
        raise ModelError(f"The model in {path} cannot be served: its kind of sliding window is not supported.")


def _check_weights(path: Path) -> None:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"The folder {path} holds no weights: there is no .safetensors file in it.")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"The weights file {file} is damaged: {_first_line(error)}. Fetch it again.") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
