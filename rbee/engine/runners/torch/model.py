"""A transformers model, loaded quietly and run on packed tokens, with our attention.

Owns everything that is particular about transformers: loading, the attention interface, and what a forward pass takes
and returns. `probe` decides whether a model can be served. Does not know steps or blocks.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
)

from rbee.engine.runners.context_length import position_limit, with_one_longrope
from rbee.engine.runners.interface import Unsupported
from rbee.errors import ModelError
from rbee.models.safetensors_header import read_safetensors_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

# Two names for the same attention. transformers builds masks only under a name that has a mask function; while a
# model is served there is none, because the masks of packed sequences are worked out once a step, in `kv_cache`.
ATTENTION = "rbee"
_ATTENTION_WITH_MASKS = "rbee_with_masks"

NO_INTERFACE = "does not go through transformers' attention interface, so its state cannot be kept in a paged KV cache"


class Attend(Protocol):
    """Attention as transformers calls it: `others` holds scaling, sliding_window, softcap and the like."""

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **others: Any,
    ) -> torch.Tensor:
        """Output [1, T, num_heads, value_dim] for query, key, value [1, heads, T, dim]."""
        ...


class TorchModel:
    """A loaded model. Its layers attend with what `use_attention` was given last."""

    def __init__(self, model: PreTrainedModel, *, has_head: bool = True) -> None:
        self.config = config = model.config.get_text_config(decoder=True)
        self.name = type(model).__name__  # for messages
        self.num_layers = int(config.num_hidden_layers)
        self.vocab_size = int(config.vocab_size)  # width of its logits, by its configuration
        self.position_limit = _position_limit(config)  # None: it has none
        self.has_head = has_head  # False: a random one stands for it
        self.dtype = model.dtype
        self.device = model.device
        self._model = model
        self._last_hidden_state: torch.Tensor | None = None
        # The model itself returns what its decoder gave only among the states of all layers, which take memory.
        decoder: Callable[[], torch.nn.Module] = model.get_decoder
        decoder().register_forward_hook(self._keep_last_hidden_state)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states in the last forward pass; 0: the model has none that can be seen."""
        return 0 if self._last_hidden_state is None else self._last_hidden_state.shape[-1]

    def use_attention(self, attend: Attend) -> None:
        """Make all layers call `attend`."""
        for module in self._model.modules():
            vars(module)["rbee_attend"] = attend

    @contextlib.contextmanager
    def masks_from(self, mask: Callable[..., torch.Tensor]) -> Iterator[None]:
        """While this lasts, layers get their attention_mask from `mask`, a mask function as transformers defines it."""
        AttentionMaskInterface.register(_ATTENTION_WITH_MASKS, mask)
        self._name_attention(_ATTENTION_WITH_MASKS)
        yield
        self._name_attention(ATTENTION)

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logits [len(rows), vocab_size] of the given rows (int64) of packed tokens [T] at positions [T]."""
        with torch.inference_mode():
            output = self._model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=rows
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    def hidden_states(self, rows: torch.Tensor) -> torch.Tensor:
        """Of the last forward pass, the hidden states [len(rows), hidden_size] of rows: what its head read."""
        assert self._last_hidden_state is not None, "there was one"
        return self._last_hidden_state[0, rows]

    def _keep_last_hidden_state(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002 - torch's
        self._last_hidden_state = output[0]

    def _name_attention(self, name: str) -> None:
        choose: Callable[[str], None] = self._model.set_attn_implementation
        choose(name)
        if self._model.config.get_text_config(decoder=True)._attn_implementation != name:  # noqa: SLF001
            raise Unsupported(f"{self.name} {NO_INTERFACE}")


def load_model(path: Path, *, dtype: torch.dtype | None, device: str, max_model_len: int = 0) -> TorchModel:
    """Load the model in `path` for inference, in its own dtype if `dtype` is None; ModelError if that fails.

    `max_model_len` is the longest sequence that may come, 0: as the model allows. Some ropes depend on it.
    """
    config = _load_config(path)
    settle_ropes(config, max_model_len)
    _check_weights(path)
    register_attention()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
            model, loaded = load(
                path,
                config=config,
                dtype="auto" if dtype is None else dtype,
                attn_implementation=ATTENTION,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported, and named below
            )
    except Exception as error:
        raise ModelError(f"The model in {path} cannot be loaded: {reason_of(error, config)}.") from error
    names = sorted(loaded["missing_keys"])
    has_head = not names or not _lacks_its_head_alone(path, model, names)
    if names and has_head:
        raise ModelError(f"The weights in {path} are incomplete: {names[0]} and {len(names) - 1} others are missing.")
    if loaded["mismatched_keys"]:
        name, found, expected = min(loaded["mismatched_keys"])
        raise ModelError(
            f"The weights in {path} do not fit its config.json: {name} has shape {list(found)}, "
            f"but the configuration asks for {list(expected)}."
        )
    if loaded["unexpected_keys"]:
        names = sorted(loaded["unexpected_keys"])
        logger.warning(
            "Transformers does not use %s and %d other tensors of the weights in %s.", names[0], len(names) - 1, path
        )
    try:
        return TorchModel(model.to(device).eval(), has_head=has_head)
    except RuntimeError as error:
        raise ModelError(f"The model in {path} cannot be moved to --device {device}: {first_line(error)}.") from error


def settle_ropes(config: PretrainedConfig, max_model_len: int) -> None:
    """Leave ropes nothing to choose by the length of a sequence: see `with_one_longrope`."""
    text = config.get_text_config(decoder=True)
    ropes = getattr(text, "rope_parameters", None)
    if not isinstance(ropes, dict):
        return
    limit = getattr(text, "max_position_embeddings", None)
    for name, rope in ropes.items():
        if isinstance(rope, dict):
            ropes[name] = with_one_longrope(rope, limit=limit, max_model_len=max_model_len)
    text.rope_parameters = with_one_longrope(ropes, limit=limit, max_model_len=max_model_len)


def register_attention() -> None:
    """Make our attention known to transformers under both names."""
    for name in (ATTENTION, _ATTENTION_WITH_MASKS):
        AttentionInterface.register(name, _attention)


def reason_of(error: Exception, config: PretrainedConfig) -> str:
    """Why transformers did not make a model with our attention from `config`, as the end of a sentence."""
    no_interface = isinstance(error, KeyError) and error.args == (ATTENTION,)
    return f"{config.model_type} {NO_INTERFACE}" if no_interface else first_line(error)


def be_quiet() -> None:
    """Keep transformers' progress bars and advice off stderr."""
    hush: tuple[Callable[[], None], ...] = (
        transformers.logging.set_verbosity_error,
        transformers.logging.disable_progress_bar,
    )
    for function in hush:
        function()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened to fit a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Called by transformers in every layer."""
    attend: Attend = vars(module)["rbee_attend"]
    return attend(module, query, key, value, attention_mask, **others), None


def _load_config(path: Path) -> PretrainedConfig:
    if not (path / "config.json").is_file():
        raise ModelError(f"The folder {path} holds no model: there is no config.json in it.")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers finds wrong is the reason we pass on
        raise ModelError(
            f"{path / 'config.json'} cannot be used with transformers {transformers.__version__}: {first_line(error)}."
        ) from error
    if config.is_encoder_decoder:
        raise ModelError(
            f"The model in {path} cannot be served: {config.model_type} is an encoder-decoder, and rbee serves "
            "decoder-only models."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"The model in {path} cannot be served: transformers {transformers.__version__} does not generate text "
            f"with {config.model_type}."
        )
    return config


def _check_weights(path: Path) -> None:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"The folder {path} holds no weights: there is no .safetensors file in it.")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"The weights file {file} is damaged: {first_line(error)}. Fetch it again.") from error


def _lacks_its_head_alone(path: Path, model: PreTrainedModel, missing: list[str]) -> bool:
    """Whether the weights are those of a decoder that was saved without the head, which is all that is missing."""
    find_head: Callable[[], torch.nn.Module] = model.get_output_embeddings
    head = next(name for name, module in model.named_modules() if module is find_head())
    stored = [name for file in path.glob("*.safetensors") for name in read_safetensors_header(file)]
    whole = any(name.startswith(f"{model.base_model_prefix}.") for name in stored)
    return not whole and all(name.startswith(f"{head}.") for name in missing)


def _position_limit(text: PretrainedConfig) -> int | None:
    """The longest sequence that the model's configuration allows."""
    ropes = getattr(text, "rope_parameters", None) or {}
    nested = (rope for rope in ropes.values() if isinstance(rope, dict))
    return position_limit(getattr(text, "max_position_embeddings", None), (ropes, *nested))
