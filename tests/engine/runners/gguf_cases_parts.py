"""Small models of every architecture of GGUF files, and what the conversion scripts write beside what all have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import transformers

from tests.engine.runners.tiny_models import (
    ALL_HEADS,
    ALTERNATING,
    EXPERTS,
    LLAMA3_ROPE,
    SMALL,
    WINDOW,
    Architecture,
    rope,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class GGUFCase(NamedTuple):
    """A model, its architecture in GGUF, and keys by name with "__" for a dot; None leaves one out."""

    architecture: str
    config: Callable[[], transformers.PretrainedConfig]
    keys: dict[str, Any] = {}  # noqa: RUF012 - never changed
    scale: float = 0.3

    @property
    def tiny(self) -> Architecture:
        """For `make_model`."""
        return Architecture(self.config, scale=self.scale)


TIED = {**SMALL, "tie_word_embeddings": True}
FOUR_LAYERS = {**SMALL, "num_hidden_layers": 4}
WINDOWED: dict[str, Any] = {"sliding_window": WINDOW}
# With this base and these betas, neither the usual betas nor rounding them gives the same frequencies.
YARN: dict[str, Any] = {
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 2.0,
    "beta_slow": 0.25,
}
SCALES: dict[str, Any] = {
    "attention_multiplier": 0.11,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
    "embedding_multiplier": 3.0,
}
SCALE_KEYS = {"attention__scale": 0.11, "logit_scale": 2.0, "residual_scale": 0.5, "embedding_scale": 3.0}
SECTIONS: dict[str, Any] = {"rope__dimension_sections": [2, 2, 2, 0]}
LONGROPE: dict[str, Any] = {
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [4.0] * 3,
    "original_max_position_embeddings": 64,
}


def _every(period: int, count: int) -> list[str]:
    return ["full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in range(count)]


CASES: dict[str, GGUFCase] = {
    "llama": GGUFCase("llama", lambda: transformers.LlamaConfig(**SMALL)),
    "llama, tied, biased": GGUFCase(
        "llama", lambda: transformers.LlamaConfig(**TIED, attention_bias=True, mlp_bias=True, head_dim=20)
    ),
    "llama, llama3 rope": GGUFCase("llama", lambda: transformers.LlamaConfig(**SMALL, **LLAMA3_ROPE)),
    "llama, linear rope": GGUFCase("llama", lambda: transformers.LlamaConfig(**SMALL, **rope("linear", factor=3.0))),
    "llama, yarn": GGUFCase("llama", lambda: transformers.LlamaConfig(**SMALL, **rope("yarn", **YARN))),
    "mixtral": GGUFCase("llama", lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4)),
    "mistral3": GGUFCase(
        "mistral3",
        lambda: transformers.Ministral3Config(
            **SMALL,
            head_dim=12,
            **rope("yarn", **YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.3),
        ),
        {"rope__scaling__yarn_log_multiplier": 1.0, "attention__temperature_scale": 0.3},
    ),
    "internlm2": GGUFCase("internlm2", lambda: transformers.LlamaConfig(**SMALL)),
    "exaone": GGUFCase("exaone", lambda: transformers.LlamaConfig(**SMALL, **LLAMA3_ROPE)),
    "qwen2": GGUFCase("qwen2", lambda: transformers.Qwen2Config(**SMALL)),
    "qwen2, yarn": GGUFCase("qwen2", lambda: transformers.Qwen2Config(**SMALL, **rope("yarn", **YARN))),
    "qwen3": GGUFCase("qwen3", lambda: transformers.Qwen3Config(**SMALL, head_dim=16)),
    "qwen2vl": GGUFCase("qwen2vl", lambda: transformers.Qwen2Config(**SMALL), SECTIONS),
    "qwen3vl": GGUFCase("qwen3vl", lambda: transformers.Qwen3Config(**SMALL, head_dim=16), SECTIONS),
    "qwen3vlmoe": GGUFCase(
        "qwen3vlmoe",
        lambda: transformers.Qwen3MoeConfig(**{**SMALL, **EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
        {**SECTIONS, "expert_feed_forward_length": 24},
    ),
    "qwen2moe": GGUFCase(
        "qwen2moe",
        lambda: transformers.Qwen2MoeConfig(**SMALL, **EXPERTS, shared_expert_intermediate_size=16),
        {"expert_feed_forward_length": 24, "expert_shared_feed_forward_length": 16},
    ),
    "qwen3moe": GGUFCase(
        "qwen3moe",
        lambda: transformers.Qwen3MoeConfig(**{**SMALL, **EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
        {"expert_feed_forward_length": 24},
    ),
    "olmoe": GGUFCase(
        "olmoe",
        lambda: transformers.OlmoeConfig(**{**SMALL, "num_key_value_heads": 4}, num_experts=6, num_experts_per_tok=2),
    ),
    "gemma": GGUFCase("gemma", lambda: transformers.GemmaConfig(**TIED, head_dim=20)),
    "gemma2": GGUFCase(
        "gemma2",
        lambda: transformers.Gemma2Config(
            **TIED,
            **WINDOWED,
            head_dim=20,
            query_pre_attn_scalar=20,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=20.0,
        ),
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 20.0, "attention__sliding_window": WINDOW},
    ),
    "gemma3": GGUFCase(
        "gemma3",
        lambda: transformers.Gemma3TextConfig(
            **{**TIED, "num_hidden_layers": 7},
            **WINDOWED,
            head_dim=20,
            query_pre_attn_scalar=20,
            layer_types=_every(6, 7),
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        {"attention__sliding_window": WINDOW},
    ),
    "phi3": GGUFCase(
        "phi3",
        lambda: transformers.Phi3Config(**SMALL, **WINDOWED),
        {"attention__sliding_window": WINDOW, "rope__scaling__original_context_length": 256},
    ),
    "phi3, longrope, partial": GGUFCase(
        "phi3",
        lambda: transformers.Phi3Config(
            **{**SMALL, "max_position_embeddings": 1024},
            original_max_position_embeddings=64,
            **rope("longrope", **LONGROPE, partial_rotary_factor=0.5),
        ),
        {"attention__sliding_window": 0},
    ),
    "phi2": GGUFCase("phi2", lambda: transformers.PhiConfig(**ALL_HEADS, **rope("default", partial_rotary_factor=0.5))),
    "granite": GGUFCase("granite", lambda: transformers.GraniteConfig(**SMALL, **SCALES), SCALE_KEYS),
    "granitemoe": GGUFCase(
        "granitemoe",
        lambda: transformers.GraniteMoeConfig(**SMALL, **SCALES, num_local_experts=4, num_experts_per_tok=2),
        SCALE_KEYS,
    ),
    "granitemoe, shared": GGUFCase(
        "granitemoe",
        lambda: transformers.GraniteMoeSharedConfig(
            **SMALL, **SCALES, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=16
        ),
        {**SCALE_KEYS, "expert_shared_feed_forward_length": 16},
    ),
    "minicpm": GGUFCase(
        "minicpm",
        lambda: transformers.GraniteConfig(**SMALL, **{**SCALES, "attention_multiplier": 12**-0.5}),
        {**SCALE_KEYS, "attention__scale": None},
    ),
    "ernie4_5": GGUFCase("ernie4_5", lambda: transformers.Ernie4_5Config(**SMALL, head_dim=16)),
    "seed_oss": GGUFCase("seed_oss", lambda: transformers.SeedOssConfig(**SMALL, head_dim=16)),
    "smollm3": GGUFCase("smollm3", lambda: transformers.SmolLM3Config(**FOUR_LAYERS)),
    "arcee": GGUFCase("arcee", lambda: transformers.ArceeConfig(**SMALL, **rope("yarn", **YARN))),
    "stablelm": GGUFCase(
        "stablelm",
        lambda: transformers.StableLmConfig(
            **SMALL, **rope("default", partial_rotary_factor=0.5), use_qkv_bias=True, use_parallel_residual=False
        ),
    ),
    "stablelm, parallel, norms of heads": GGUFCase(
        "stablelm",
        lambda: transformers.StableLmConfig(
            **SMALL, **rope("default", partial_rotary_factor=0.5), use_parallel_residual=True, qk_layernorm=True
        ),
    ),
    "starcoder2": GGUFCase("starcoder2", lambda: transformers.Starcoder2Config(**TIED)),
    "command-r": GGUFCase(
        "command-r",
        lambda: transformers.CohereConfig(**TIED, logit_scale=0.5, use_qk_norm=True),
        {"logit_scale": 0.5, "rope__scaling__type": "none"},
    ),
    "cohere2": GGUFCase(
        "cohere2",
        lambda: transformers.Cohere2Config(
            **{**TIED, "num_hidden_layers": 4}, **WINDOWED, logit_scale=0.5, layer_types=_every(4, 4)
        ),
        {"logit_scale": 0.5, "attention__sliding_window": WINDOW, "rope__scaling__type": "none"},
    ),
    "olmo": GGUFCase(
        "olmo",
        lambda: transformers.OlmoConfig(**SMALL, clip_qkv=1.5),
        {"attention__clamp_kqv": 1.5, "attention__layer_norm_epsilon": 1e-5},
    ),
    "olmo2": GGUFCase("olmo2", lambda: transformers.Olmo2Config(**SMALL)),
    "olmo3": GGUFCase(
        "olmo2",
        lambda: transformers.Olmo3Config(
            **SMALL,
            **WINDOWED,
            layer_types=ALTERNATING,
            rope_parameters={
                "full_attention": {"rope_type": "yarn", **YARN},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
        {"attention__sliding_window": WINDOW, "attention__sliding_window_pattern": [True, False, True]},
    ),
    "exaone4": GGUFCase(
        "exaone4",
        lambda: transformers.Exaone4Config(**SMALL, sliding_window=None, layer_types=["full_attention"] * 3),
    ),
    "exaone4, windows": GGUFCase(
        "exaone4",
        lambda: transformers.Exaone4Config(
            **{**SMALL, "num_hidden_layers": 64, "hidden_size": 24, "intermediate_size": 8},
            **WINDOWED,
            layer_types=_every(4, 64),
        ),
        {"attention__sliding_window": WINDOW},
    ),
    "chatglm": GGUFCase(
        "chatglm",
        lambda: transformers.GlmConfig(
            **SMALL, head_dim=12, attention_bias=True, **rope("default", partial_rotary_factor=0.5)
        ),
    ),
    "glm4": GGUFCase(
        "glm4", lambda: transformers.Glm4Config(**SMALL, head_dim=16, **rope("default", partial_rotary_factor=0.5))
    ),
    "nemotron": GGUFCase(
        "nemotron",
        lambda: transformers.NemotronConfig(**SMALL, **rope("default", partial_rotary_factor=0.5)),
        {"rope__scaling__type": "none"},
    ),
    "gpt-oss": GGUFCase(
        "gpt-oss",
        lambda: transformers.GptOssConfig(
            **SMALL,
            **WINDOWED,
            head_dim=12,
            num_local_experts=4,
            num_experts_per_tok=2,
            layer_types=ALTERNATING,
            **rope("yarn", **YARN, truncate=False),
        ),
        {"attention__sliding_window": WINDOW, "expert_feed_forward_length": 64},
    ),
    "gpt2": GGUFCase(
        "gpt2",
        lambda: transformers.GPT2Config(
            vocab_size=211, n_embd=48, n_layer=3, n_head=4, n_positions=256, n_inner=64, bos_token_id=0, eos_token_id=0
        ),
        {"rope__dimension_count": None},
    ),
}
