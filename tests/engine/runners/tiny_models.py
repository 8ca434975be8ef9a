"""Small random models of many architectures, and what transformers itself generates with them."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import transformers

from rbee.engine.runners.context_length import CacheSize
from rbee.engine.runners.native.runner import NativeRunner
from rbee.engine.runners.native.spec import read_spec
from rbee.engine.runners.torch.runner import TorchRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WINDOW = 12
SMALL: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,  # a tied random model repeats its last token, whatever its attention sees
}
ALL_HEADS = {**SMALL, "num_key_value_heads": 4}
EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]


def rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    """The member of a config that chooses rotary frequencies."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}}


LLAMA3_ROPE = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN_ROPE = rope("yarn", factor=4.0, original_max_position_embeddings=64)


class Architecture(NamedTuple):
    """How to make a small model; weights are drawn with `scale`, large enough that its tokens vary, from `seed`.

    The seed is one with which no token is a close call; see `Answers.margin`.
    """

    config: Callable[[], transformers.PretrainedConfig]
    seed: int = 7
    scale: float = 0.5
    max_model_len: int = 0  # of a runner that is to do what transformers does within it; 0: whatever the model allows


ARCHITECTURES = {
    "llama": Architecture(lambda: transformers.LlamaConfig(**SMALL), scale=0.3),
    "llama, tied and biased": Architecture(
        lambda: transformers.LlamaConfig(
            **{**SMALL, "tie_word_embeddings": True}, attention_bias=True, mlp_bias=True, head_dim=20
        )
    ),
    "llama, linear rope": Architecture(lambda: transformers.LlamaConfig(**SMALL, **rope("linear", factor=3.0))),
    "llama, llama3 rope": Architecture(lambda: transformers.LlamaConfig(**SMALL, **LLAMA3_ROPE)),
    "qwen2": Architecture(lambda: transformers.Qwen2Config(**SMALL), seed=1),
    "qwen2, yarn": Architecture(lambda: transformers.Qwen2Config(**SMALL, **YARN_ROPE)),
    "qwen2, upper layers with windows": Architecture(
        lambda: transformers.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen3": Architecture(lambda: transformers.Qwen3Config(**SMALL, head_dim=16)),
    "mistral": Architecture(lambda: transformers.MistralConfig(**SMALL, sliding_window=WINDOW)),
    "gemma2": Architecture(
        lambda: transformers.Gemma2Config(
            **SMALL,
            head_dim=12,
            sliding_window=WINDOW,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=20.0,
            query_pre_attn_scalar=3,
        ),
        scale=0.3,
    ),
    "gemma3": Architecture(
        lambda: transformers.Gemma3TextConfig(
            **SMALL, head_dim=12, sliding_window=WINDOW, query_pre_attn_scalar=3, layer_types=ALTERNATING
        ),
        scale=0.3,
    ),
    "phi3": Architecture(lambda: transformers.Phi3Config(**SMALL, sliding_window=WINDOW)),
    "phi3, longrope": Architecture(
        lambda: transformers.Phi3Config(
            **{**SMALL, "max_position_embeddings": 1024},
            original_max_position_embeddings=128,
            **rope(
                "longrope",
                short_factor=[1.5] * 6,
                long_factor=[4.0] * 6,
                original_max_position_embeddings=128,
            ),
        ),
        seed=1,
        max_model_len=128,
    ),
    "gpt2": Architecture(lambda: transformers.GPT2Config(**ALL_HEADS, scale_attn_by_inverse_layer_idx=True)),
    "gpt-neox": Architecture(lambda: transformers.GPTNeoXConfig(**ALL_HEADS), scale=0.3),
    "mixtral": Architecture(lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4)),
    "qwen2-moe": Architecture(
        lambda: transformers.Qwen2MoeConfig(**SMALL, **EXPERTS, shared_expert_intermediate_size=16)
    ),
    "qwen2-moe, windows by masks alone": Architecture(
        lambda: transformers.Qwen2MoeConfig(
            **SMALL,
            **EXPERTS,
            shared_expert_intermediate_size=16,
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=1,
        ),
        seed=1,
    ),
    "qwen3-moe": Architecture(lambda: transformers.Qwen3MoeConfig(**{**SMALL, **EXPERTS, "head_dim": 16}), scale=0.3),
    "gpt-oss": Architecture(
        lambda: transformers.GptOssConfig(
            **SMALL,
            head_dim=12,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=WINDOW,
            layer_types=ALTERNATING,
            **YARN_ROPE,
        )
    ),
    "deepseek-v3": Architecture(
        lambda: transformers.DeepseekV3Config(
            **ALL_HEADS,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=12,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
        )
    ),
    "olmo2": Architecture(lambda: transformers.Olmo2Config(**SMALL), scale=0.3),
    "starcoder2": Architecture(lambda: transformers.Starcoder2Config(**SMALL, sliding_window=WINDOW)),
    "granite": Architecture(
        lambda: transformers.GraniteConfig(
            **SMALL, attention_multiplier=0.1, logits_scaling=2.0, residual_multiplier=0.5, embedding_multiplier=3.0
        ),
        seed=2,
    ),
    "smollm3": Architecture(lambda: transformers.SmolLM3Config(**SMALL, no_rope_layers=[1, 0, 1])),
    "cohere2": Architecture(
        lambda: transformers.Cohere2Config(**SMALL, sliding_window=WINDOW, layer_types=ALTERNATING, logit_scale=1.0)
    ),
    "phi": Architecture(lambda: transformers.PhiConfig(**{**SMALL, "partial_rotary_factor": 0.5})),
    "opt": Architecture(
        lambda: transformers.OPTConfig(**ALL_HEADS, ffn_dim=64, word_embed_proj_dim=48), seed=1, scale=0.3
    ),
    "stablelm": Architecture(
        lambda: transformers.StableLmConfig(**{**SMALL, "partial_rotary_factor": 0.5}, use_parallel_residual=True),
        scale=0.3,
    ),
}

# What the native runner serves too; with sizes that are no multiple of a panel's 16 rows, or of a group's 32 columns.
SIXTEEN = {**SMALL, "hidden_size": 64, "intermediate_size": 72}  # heads of 16
NATIVE_ARCHITECTURES = {
    "llama": Architecture(lambda: transformers.LlamaConfig(**SIXTEEN), scale=0.3),
    "llama, tied and biased": Architecture(
        lambda: transformers.LlamaConfig(
            **{**SIXTEEN, "tie_word_embeddings": True}, attention_bias=True, mlp_bias=True, head_dim=32
        )
    ),
    "llama, a kv head for each head": Architecture(
        lambda: transformers.LlamaConfig(**{**SIXTEEN, "num_key_value_heads": 4}), scale=0.3
    ),
    "llama, linear rope": Architecture(lambda: transformers.LlamaConfig(**SIXTEEN, **rope("linear", factor=3.0))),
    "llama, llama3 rope": Architecture(lambda: transformers.LlamaConfig(**SIXTEEN, **LLAMA3_ROPE)),
    "llama, longrope": Architecture(
        lambda: transformers.LlamaConfig(
            **{**SIXTEEN, "max_position_embeddings": 1024},
            **rope(
                "longrope",
                short_factor=[1.5] * 8,
                long_factor=[4.0] * 8,
                factor=8.0,
                original_max_position_embeddings=128,
            ),
        ),
        max_model_len=128,
    ),
    "mistral": Architecture(lambda: transformers.MistralConfig(**SIXTEEN, sliding_window=WINDOW)),
    "qwen2": Architecture(lambda: transformers.Qwen2Config(**SIXTEEN)),
    "qwen2, yarn": Architecture(lambda: transformers.Qwen2Config(**SIXTEEN, **YARN_ROPE)),
    "qwen2, upper layers with windows": Architecture(
        lambda: transformers.Qwen2Config(**SIXTEEN, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen3": Architecture(lambda: transformers.Qwen3Config(**SIXTEEN, head_dim=48)),
    "gemma3": Architecture(
        lambda: transformers.Gemma3TextConfig(
            **SIXTEEN, head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=3, layer_types=ALTERNATING
        ),
        scale=0.3,
    ),
    "gemma": Architecture(lambda: transformers.GemmaConfig(**SIXTEEN, head_dim=32), scale=0.2),
    "ministral": Architecture(
        lambda: transformers.MinistralConfig(**SIXTEEN, head_dim=16, sliding_window=WINDOW, layer_types=ALTERNATING)
    ),
    "ministral3": Architecture(
        lambda: transformers.Ministral3Config(
            **SIXTEEN,
            head_dim=16,
            **rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                llama_4_scaling_beta=0.5,
                mscale=1.0,
                mscale_all_dim=1.0,
            ),
        )
    ),
    "granite": Architecture(
        lambda: transformers.GraniteConfig(
            **SIXTEEN, attention_multiplier=0.1, logits_scaling=3.0, residual_multiplier=0.5, embedding_multiplier=3.0
        ),
    ),
    "ernie4_5": Architecture(lambda: transformers.Ernie4_5Config(**SIXTEEN, head_dim=16, use_bias=True)),
    "seed_oss": Architecture(lambda: transformers.SeedOssConfig(**SIXTEEN, head_dim=32)),
    "helium": Architecture(lambda: transformers.HeliumConfig(**SIXTEEN, head_dim=16)),
    "smollm3": Architecture(
        lambda: transformers.SmolLM3Config(
            **SIXTEEN, no_rope_layers=[1, 0, 1], use_sliding_window=True, sliding_window=WINDOW
        )
    ),
    "arcee": Architecture(lambda: transformers.ArceeConfig(**SIXTEEN, mlp_bias=True), scale=0.3),
    "phi3, longrope of parts of heads": Architecture(
        lambda: transformers.Phi3Config(
            **{**SIXTEEN, "max_position_embeddings": 1024},
            original_max_position_embeddings=128,
            **rope(
                "longrope",
                partial_rotary_factor=0.75,
                short_factor=[1 + 0.1 * i for i in range(6)],
                long_factor=[4.0] * 6,
                original_max_position_embeddings=128,
            ),
        ),
        seed=2,
        max_model_len=128,
    ),
}


def make_model(
    folder: Path, architecture: Architecture, *, kind: Any = transformers.AutoModelForCausalLM
) -> transformers.PreTrainedModel:
    """A model with random weights, saved in `folder`."""
    torch.manual_seed(architecture.seed)
    model: transformers.PreTrainedModel = kind.from_config(architecture.config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, architecture.scale)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return model


class Answer(NamedTuple):
    """What transformers generates for a prompt, greedily; and by how much the closest call was decided."""

    tokens: list[int]
    margin: float


def answer(model: transformers.PreTrainedModel, prompt: list[int], num_tokens: int) -> Answer:
    """Generate for one prompt alone, with transformers' own cache and attention."""
    of_model: Any = model  # which can generate, as its static type does not say
    generated = of_model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=num_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.cat(generated.logits).float().topk(2).values
    return Answer(generated.sequences[0, len(prompt) :].tolist(), float((best[:, 0] - best[:, 1]).min()))


def load_native(folder: Path, **options: Any) -> NativeRunner:
    """A native runner for the folder, exact unless asked for otherwise, with two threads: it must bear them."""
    defaults = {"quantize": "none", "exact": True, "threads": 2}
    cache, others = cache_size({"block_size": 16, "kv_cache_mib": 4, **options})
    spec = read_spec(json.loads((folder / "config.json").read_bytes()), max_model_len=cache.max_model_len)
    with pytest.MonkeyPatch.context() as patch:  # the packed weights go where the test's files are
        patch.setenv("RBEE_CACHE", str(folder.parent / "cache"))
        return NativeRunner(folder, spec, cache, on_loading=lambda *_: None, **{**defaults, **others})


def load(folder: Path, **options: Any) -> TorchRunner:
    """A runner for the folder, with one thread: these models are too small for more."""
    defaults = {"device": "cpu", "dtype": "auto", "threads": 1}
    cache, others = cache_size({"block_size": 16, "kv_cache_mib": 4, **options})
    return TorchRunner(folder, cache, on_loading=lambda *_: None, **{**defaults, **others})


def cache_size(options: dict[str, Any]) -> tuple[CacheSize, dict[str, Any]]:
    """The options that are the cache's, for 64 sequences unless they say otherwise, and the other options."""
    names = [field.name for field in dataclasses.fields(CacheSize)]
    own = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names}
    return CacheSize(**{"max_num_seqs": 64, **own}), others
