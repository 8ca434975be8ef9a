"""The names of transformers' models and of their parameters, and of the modules of GGUF files that they come from.

Owns one table for each model_type. Does not know which tensors a file has.

A parameter that joins several modules has their names with spaces between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_QKV = tuple(_ATTENTION)[:3]
_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_PLAIN_MLP = {"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_LLAMA = {**_NORMS, **_ATTENTION, **_MLP}
_NORMS_BEHIND = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_FOUR_NORMS = {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm", **_NORMS_BEHIND}
_PHI3 = {
    **_NORMS,
    "self_attn.qkv_proj": "attn_q attn_k attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GLM = {**_NORMS, **_ATTENTION, "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_EXPERTS = {"mlp.experts.gate_up_proj": "ffn_gate_exps ffn_up_exps", "mlp.experts.down_proj": "ffn_down_exps"}
_ROUTED = {**_NORMS, **_ATTENTION, "mlp.gate": "ffn_gate_inp"}
_GRANITE_EXPERTS = {
    "block_sparse_moe.experts.gate_up_proj": "ffn_gate_exps ffn_up_exps",
    "block_sparse_moe.experts.down_proj": "ffn_down_exps",
}
_GRANITE_ROUTED = {**_NORMS, **_ATTENTION, "block_sparse_moe.router": "ffn_gate_inp"}
_NORM_BIASES = ("model.norm", "input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Names:
    """What the parameters of a model are called and made of."""

    layer: Mapping[str, str]  # modules of a layer
    whole: Mapping[str, str] = field(default_factory=lambda: _WHOLE)  # modules outside of layers
    bare: Mapping[str, str] = field(default_factory=dict)  # parameters of a layer that are called like modules
    layers: str = "model.layers"
    head: str = "lm_head"
    always_biased: tuple[str, ...] = ()  # modules
    biased_if: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by the config's key that asks for it
    only_if: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # modules that need a key
    not_if: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # modules that a key removes
    head_norms_if: str = ""  # the key that asks for a norm of each head
    unit_offset_norms: bool = False  # norms multiply by 1 + their weight, and a GGUF file has the sum
    swapped: bool = False  # matrices of the MLP or of all have inputs first, experts' gate and up alternate

    def layer_modules(self, config: Mapping[str, Any]) -> dict[str, str]:
        """The modules of a layer that a model with this config has."""
        left_out = {name for key, names in self.only_if.items() if not config.get(key) for name in names}
        left_out |= {name for key, names in self.not_if.items() if config.get(key) for name in names}
        return {name: module for name, module in self.layer.items() if name not in left_out}

    def biased(self, config: Mapping[str, Any]) -> set[str]:
        """The modules with a bias."""
        return {*self.always_biased, *(name for key, names in self.biased_if.items() if config[key] for name in names)}

    def norms_of_heads(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Norms that have a parameter for each head."""
        if not config.get(self.head_norms_if):
            return {}
        return {"self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm"}


_LLAMA_BIASES = {"attention_bias": tuple(_ATTENTION), "mlp_bias": tuple(_MLP)}

NAMES: Mapping[str, Names] = {
    "llama": Names(_LLAMA, biased_if=_LLAMA_BIASES),
    "ministral3": Names(_LLAMA),
    "granite": Names(_LLAMA, biased_if=_LLAMA_BIASES),
    "ernie4_5": Names(_LLAMA),
    "smollm3": Names(_LLAMA),
    "qwen2": Names(_LLAMA, always_biased=_QKV),
    "qwen3": Names({**_LLAMA, **_QK_NORMS}),
    "gemma": Names(_LLAMA, unit_offset_norms=True),
    "gemma2": Names({**_LLAMA, **_FOUR_NORMS}, unit_offset_norms=True),
    "gemma3_text": Names({**_LLAMA, **_QK_NORMS, **_FOUR_NORMS}, unit_offset_norms=True),
    "phi3": Names(_PHI3),
    "glm": Names(_GLM, biased_if={"attention_bias": _QKV}),
    "glm4": Names(
        {**_GLM, "post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm"},
        biased_if={"attention_bias": _QKV},
    ),
    "seed_oss": Names(
        {**_LLAMA, "post_attention_layernorm": "post_attention_norm"},
        biased_if={"attention_bias": _QKV, "attention_out_bias": ("self_attn.o_proj",)},
    ),
    "arcee": Names({**_NORMS, **_ATTENTION, **_PLAIN_MLP}),
    "nemotron": Names(
        {**_NORMS, **_ATTENTION, **_PLAIN_MLP},
        always_biased=_NORM_BIASES,
        biased_if={"attention_bias": tuple(_ATTENTION), "mlp_bias": tuple(_PLAIN_MLP)},
        unit_offset_norms=True,
    ),
    "starcoder2": Names(
        {**_NORMS, **_ATTENTION, "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
        always_biased=(*_NORM_BIASES, *_ATTENTION, "mlp.c_fc", "mlp.c_proj"),
    ),
    "stablelm": Names(
        _LLAMA,
        always_biased=_NORM_BIASES,
        biased_if={"use_qkv_bias": _QKV},
        not_if={"use_parallel_residual": ("post_attention_layernorm",)},
        head_norms_if="qk_layernorm",
    ),
    "phi": Names(
        {
            "input_layernorm": "attn_norm",
            **{name: _ATTENTION[name] for name in _QKV},
            "self_attn.dense": "attn_output",
            "mlp.fc1": "ffn_up",
            "mlp.fc2": "ffn_down",
        },
        whole={"model.embed_tokens": "token_embd", "model.final_layernorm": "output_norm", "lm_head": "output"},
        always_biased=(
            *("model.final_layernorm", "lm_head", "input_layernorm", *_QKV),
            *("self_attn.dense", "mlp.fc1", "mlp.fc2"),
        ),
    ),
    "cohere": Names(
        {"input_layernorm": "attn_norm", **_ATTENTION, **_MLP, **_QK_NORMS},
        only_if={"use_qk_norm": tuple(_QK_NORMS)},
    ),
    "cohere2": Names({"input_layernorm": "attn_norm", **_ATTENTION, **_MLP}),
    "olmo": Names({**_ATTENTION, **_MLP}, whole={"model.embed_tokens": "token_embd", "lm_head": "output"}),
    "olmo2": Names({**_ATTENTION, **_QK_NORMS, **_NORMS_BEHIND, **_MLP}),
    "olmo3": Names({**_ATTENTION, **_QK_NORMS, **_NORMS_BEHIND, **_MLP}),
    "exaone4": Names({**_ATTENTION, **_QK_NORMS, **_NORMS_BEHIND, **_MLP}),
    "mixtral": Names(_ROUTED, bare=_EXPERTS),
    "qwen3_moe": Names({**_ROUTED, **_QK_NORMS}, bare=_EXPERTS),
    "olmoe": Names({**_ROUTED, **_QK_NORMS}, bare=_EXPERTS),
    "qwen2_moe": Names(
        {
            **_ROUTED,
            "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
            "mlp.shared_expert.up_proj": "ffn_up_shexp",
            "mlp.shared_expert.down_proj": "ffn_down_shexp",
            "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        },
        bare=_EXPERTS,
        biased_if={"qkv_bias": _QKV},
    ),
    "granitemoe": Names(_GRANITE_ROUTED, bare=_GRANITE_EXPERTS),
    "granitemoeshared": Names(
        {
            **_GRANITE_ROUTED,
            "shared_mlp.input_linear": "ffn_gate_shexp ffn_up_shexp",
            "shared_mlp.output_linear": "ffn_down_shexp",
        },
        bare=_GRANITE_EXPERTS,
    ),
    "gpt_oss": Names(
        {
            **_ATTENTION,
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "post_attention_norm",
            "mlp.router": "ffn_gate_inp",
        },
        bare={
            "self_attn.sinks": "attn_sinks",
            **_EXPERTS,
            "mlp.experts.gate_up_proj_bias": "ffn_gate_exps ffn_up_exps",
            "mlp.experts.down_proj_bias": "ffn_down_exps",
        },
        always_biased=(*_ATTENTION, "mlp.router"),
        swapped=True,
    ),
    "gpt2": Names(
        {
            "ln_1": "attn_norm",
            "ln_2": "ffn_norm",
            "attn.c_attn": "attn_q attn_k attn_v",
            "attn.c_proj": "attn_output",
            "mlp.c_fc": "ffn_up",
            "mlp.c_proj": "ffn_down",
        },
        whole={
            "transformer.wte": "token_embd",
            "transformer.wpe": "position_embd",
            "transformer.ln_f": "output_norm",
            "lm_head": "output",
        },
        layers="transformer.h",
        always_biased=(*("transformer.ln_f", "ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),),
        swapped=True,
    ),
}

CLASSES = {  # by model_type
    "arcee": "ArceeForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "llama": "LlamaForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "nemotron": "NemotronForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
}
