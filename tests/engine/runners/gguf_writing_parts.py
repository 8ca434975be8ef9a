"""Writes a transformers model as a GGUF file, as llama.cpp's conversion scripts do.

The names of tensors are those of gguf's own table, so that nothing here knows ours; what else the scripts do to weights
and metadata is said again here, from them.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import gguf
import numpy as np
import torch

from rbee.engine.input_batch import InputBatch
from rbee.engine.runners.torch.runner import TorchRunner
from rbee.models.gguf.config import config_of
from tests.engine.runners.tiny_models import cache_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import transformers
    from numpy.typing import NDArray

    from rbee.models.gguf import GGUFModel

    Weights = dict[str, torch.Tensor]

_ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
_PERMUTED = {"llama", "mistral3", "granite", "granitemoe", "smollm3", "arcee", "internlm2", "minicpm", "olmo"}
_PLUS_ONE = {"gemma", "gemma2", "gemma3", "nemotron"}


class Written(NamedTuple):
    """What goes into a file."""

    architecture: str
    keys: dict[str, Any]  # without the architecture's prefix
    tensors: dict[str, np.ndarray]


def describe(architecture: str, model: transformers.PreTrainedModel, **keys: Any) -> Written:
    """The metadata and tensors of `model`; `keys` come on top, and those that are None do not."""
    config = {name: getattr(model.config, name) for name in (*model.config.to_dict(), *model.config.attribute_map)}
    found = {**_keys(config), **{name.replace("__", "."): value for name, value in keys.items()}}
    state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    table = gguf.get_tensor_name_map(_ARCHITECTURES[architecture], config["num_hidden_layers"])
    tensors = {}
    for name, tensor in _converted(architecture, config, state):
        stored = name if name.startswith("blk.") else table.get_name(name, (".weight", ".bias"))
        assert stored is not None, name
        tensors[stored] = tensor.numpy()
    ropes = config.get("rope_parameters") or {}
    rope = ropes.get("full_attention", ropes)
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _llama3_factors(rope, found["rope.dimension_count"])
    if rope.get("rope_type") == "longrope":
        for kind in ("long", "short"):
            tensors[f"rope_factors_{kind}.weight"] = np.array(rope[f"{kind}_factor"], np.float32)
    return Written(architecture, {name: value for name, value in found.items() if value is not None}, tensors)


def write(
    path: Path, written: Written, *, kind: str = "F32", raw: Mapping[str, tuple[NDArray[Any], str]] | None = None
) -> Path:
    """Write the file; `kind` is the type of matrices, and tensors in `raw` have blocks of their own with their type."""
    writer = gguf.GGUFWriter(path, written.architecture)
    for name, value in written.keys.items():
        _add(writer, f"{written.architecture}.{name}", value)
    for name, tensor in written.tensors.items():
        data, type_name = (raw or {}).get(name, (tensor.astype(np.float32), kind if tensor.ndim > 1 else "F32"))
        type_ = gguf.GGMLQuantizationType[type_name]
        packed = gguf.quants.quantize(data, type_) if name not in (raw or {}) else data
        writer.add_tensor(name, np.ascontiguousarray(packed), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load_gguf(folder: Path, model: GGUFModel, **options: Any) -> TorchRunner:
    """A runner for the GGUF model, in float32 unless asked for otherwise; its config.json is written into `folder`."""
    (folder / "config.json").write_text(json.dumps(config_of(model)))
    defaults = {"device": "cpu", "dtype": "auto", "threads": 1}
    cache, others = cache_size({"block_size": 16, "kv_cache_mib": 8, **options})
    return TorchRunner(folder, cache, on_loading=lambda *_: None, gguf=model, **{**defaults, **others})


def logits_of(runner: TorchRunner, tokens: list[int]) -> NDArray[np.float32]:
    """The logits of all tokens of one sequence, [T, vocab]."""
    positions = np.arange(len(tokens))
    step = InputBatch(
        num_decodes=0,
        query_start=np.array([0, len(tokens)]),
        context_lens=np.array([len(tokens)]),
        token_ids=np.array(tokens),
        positions=positions,
        slot_mapping=positions,
        block_tables=np.arange(-(-len(tokens) // 16))[None],
        logits_rows=positions,
        row_sequences=[],
        num_sampling=0,
    )
    return runner.execute(step).logits.copy()


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case _:
            writer.add_array(name, value)


def _keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """What every script writes (TextModel.set_gguf_parameters)."""

    def first(*names: str) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), None)

    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    ropes = config.get("rope_parameters") or {}
    rope = ropes.get("full_attention", ropes)
    kind = rope.get("rope_type", "default")
    head_dim = config.get("head_dim")
    keys = {
        "block_count": config["num_hidden_layers"],
        "context_length": first("max_position_embeddings", "n_positions"),
        "embedding_length": hidden,
        "feed_forward_length": first("intermediate_size", "n_inner") or 4 * hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": first("num_key_value_heads"),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": first("rms_norm_eps"),
        "attention.layer_norm_epsilon": first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
        "expert_count": first("num_local_experts", "num_experts"),
        "expert_used_count": first("num_experts_per_tok"),
        "rope.dimension_count": int((head_dim or hidden // heads) * rope.get("partial_rotary_factor", 1)),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.freq_base_swa": ropes.get("sliding_attention", {}).get("rope_theta"),
        "vocab_size": config["vocab_size"],
    }
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": rope["factor"]}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        for name in ("beta_fast", "beta_slow"):
            keys[f"rope.scaling.yarn_{name}"] = rope.get(name)
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        keys |= {
            "rope.scaling.type": kind,
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(scale) / math.log(original)),
        }
    return keys


def _llama3_factors(rope: Mapping[str, Any], size: int) -> np.ndarray:
    """What each frequency is divided by (LlamaModel.generate_extra_tensors)."""
    factors = []
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    for frequency in 1 / rope["rope_theta"] ** (torch.arange(0, size, 2).float() / size):
        wavelength = 2 * math.pi / frequency
        smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        between = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1.0 if wavelength < high else rope["factor"] if wavelength > low else float(between))
    return np.array(factors, np.float32)


def _permuted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """LlamaModel.permute."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _converted(architecture: str, config: Mapping[str, Any], state: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """What the script of the architecture makes of the weights."""
    stacked: dict[str, list[torch.Tensor]] = {}
    for name, tensor in state.items():
        if ".norms." in name:  # a norm for each head, in one tensor
            stem, _, _ = name.partition(".norms.")
            stacked.setdefault(stem + ".weight", []).append(tensor)
        elif ".experts." in name or "shared_mlp.input_linear" in name:
            yield from _experts(architecture, name, tensor)
        elif architecture in _PERMUTED and (".q_proj." in name or ".k_proj." in name):
            heads = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
            yield name, _permuted(tensor, config[heads])
        elif architecture in _PLUS_ONE and name.endswith("norm.weight"):
            yield name, tensor + 1
        elif architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            yield name, tensor.T
        elif name.endswith("sinks"):
            yield name + ".weight", tensor
        elif name.endswith("shared_expert_gate.weight"):
            yield name, tensor[0]
        else:
            yield name.replace("block_sparse_moe.router.weight", "block_sparse_moe.router.layer.weight"), tensor
    yield from ((name, torch.stack(tensors)) for name, tensors in stacked.items())


def _experts(architecture: str, name: str, tensor: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
    """Experts' gate and up apart, as the scripts name them."""
    if "shared_mlp" in name:
        gate, up = tensor.chunk(2, dim=0)
        layer = f"blk.{name.split('.')[2]}"
        return [(f"{layer}.ffn_gate_shexp.weight", gate), (f"{layer}.ffn_up_shexp.weight", up)]
    stem, _, part = name.partition(".experts.")
    stem = stem.replace("block_sparse_moe", "mlp") + ".experts."
    bias = part.endswith("_bias")
    end = ".bias" if bias else ".weight"
    if architecture == "gpt-oss" and not bias:
        tensor = tensor.transpose(-1, -2)
    if not part.startswith("gate_up"):
        return [(stem + "down_proj" + end, tensor)]
    if architecture == "gpt-oss":
        gate, up = tensor[:, ::2], tensor[:, 1::2]
    else:
        gate, up = tensor.chunk(2, dim=1)
    return [(stem + "gate_proj" + end, gate), (stem + "up_proj" + end, up)]
