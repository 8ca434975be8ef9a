"""What each architecture of GGUF files is in transformers.

Owns the meaning of keys, as llama.cpp reads them (src/llama-model.cpp and src/models, one file for each architecture),
its rules for single sizes of a model included. Where a file says how the model was trained and llama.cpp takes a
shortcut, the file is followed: the window of phi3, and yarn of gpt-oss. Does not know the names of weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rbee.models.gguf.rope import rope_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rbee.models.gguf.keys import Keys

    Config = dict[str, Any]

_SLIDING, _FULL = "sliding_attention", "full_attention"
_OWN_HEAD, _TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}  # llama.cpp has no choice with these
_NO_WINDOW: Config = {"use_sliding_window": False, "sliding_window": None}
_ALL_ROUTED: Config = {"decoder_sparse_step": 1, "mlp_only_layers": []}


def _base(keys: Keys, model_type: str, *, partial: bool = False, truncate: bool = True, **others: Any) -> Config:
    return {
        "model_type": model_type,
        "rope_parameters": rope_parameters(keys, head_dim=keys.head_dim, partial=partial, truncate=truncate),
        **others,
    }


def _rms(keys: Keys, model_type: str, **others: Any) -> Config:
    """A decoder of RMS norms."""
    eps, size = keys.number("attention.layer_norm_rms_epsilon"), keys.count("feed_forward_length")
    return _base(keys, model_type, **{"rms_norm_eps": eps, "intermediate_size": size, **others})


def _layer_norm(keys: Keys, model_type: str, eps: str, **others: Any) -> Config:
    """A decoder of layer norms; its class calls their epsilon `eps`."""
    value, size = keys.number("attention.layer_norm_epsilon"), keys.count("feed_forward_length")
    return _base(keys, model_type, **{eps: value, "intermediate_size": size, **others})


def _experts(keys: Keys, name: str) -> Config:
    """How many experts there are, which the class calls `name`, and how many a token goes to."""
    count = keys.count("expert_count")
    return {name: count, "num_experts_per_tok": keys.count("expert_used_count", most=count)}


def _windows(keys: Keys, *, period: int, default: int | None = None) -> Config:
    windowed = keys.layers_with_window(period)
    return {
        "sliding_window": keys.count("attention.sliding_window", default),
        "layer_types": [_SLIDING if each else _FULL for each in windowed],
    }


def _has_qkv_bias(keys: Keys) -> bool:
    return keys.has("attn_q.bias") or keys.has("attn_qkv.bias")


def _check_one_base(keys: Keys) -> None:
    """Refuse a rope of their own for layers with a window, where transformers' class has one for all."""
    base = keys.number("rope.freq_base", 10000.0)
    if keys.number("rope.freq_base_swa", base) != base:
        keys.refuse("rope.freq_base_swa", "differs from rope.freq_base, which the class in transformers cannot")


def _check_no_sections(keys: Keys) -> None:
    if keys.given("rope.dimension_sections"):
        keys.refuse("rope.dimension_sections", "asks for a rope of several positions, which is not supported")


def _llama(keys: Keys) -> Config:
    """Llama and what computes alike. With biases of queries, keys and values alone it is what Qwen 2 is."""
    if keys.count("expert_count", 0, least=0):
        return _rms(keys, "mixtral", **_experts(keys, "num_local_experts"), sliding_window=None)
    outputs = keys.has("attn_output.bias")
    if _has_qkv_bias(keys) and not outputs:
        return _rms(keys, "qwen2", **_NO_WINDOW)
    return _rms(keys, "llama", attention_bias=outputs, mlp_bias=keys.has("ffn_up.bias"))


def _mistral3(keys: Keys) -> Config:
    """Ministral 3, whose queries grow with their position; without that it is a Llama."""
    growth = keys.number("attention.temperature_scale", 0.0, positive=False)
    if not growth:
        return _llama(keys)
    config = _rms(keys, "ministral3", sliding_window=None)
    config["rope_parameters"] |= {
        "llama_4_scaling_beta": growth,
        "original_max_position_embeddings": keys.original_length,
    }
    return config


def _qwen2_moe(keys: Keys) -> Config:
    size = keys.count("feed_forward_length")
    return _rms(
        keys,
        "qwen2_moe",
        **_experts(keys, "num_experts"),
        **_ALL_ROUTED,
        **_NO_WINDOW,
        **_OWN_HEAD,
        moe_intermediate_size=keys.count("expert_feed_forward_length"),
        shared_expert_intermediate_size=keys.count("expert_shared_feed_forward_length", size),
        norm_topk_prob=False,
        qkv_bias=_has_qkv_bias(keys),
    )


def _qwen3(keys: Keys) -> Config:
    return _rms(keys, "qwen3", **_NO_WINDOW, attention_bias=False)


def _qwen3_moe(keys: Keys) -> Config:
    return _rms(
        keys,
        "qwen3_moe",
        **_experts(keys, "num_experts"),
        **_ALL_ROUTED,
        **_NO_WINDOW,
        moe_intermediate_size=keys.count("expert_feed_forward_length"),
        norm_topk_prob=True,
        attention_bias=False,
    )


def _gemma_scale(keys: Keys, *, layers_of_27b: int) -> Config:
    """Queries of 27B are scaled by the width of a head in the residual stream, which is not that of its queries."""
    width = keys.hidden_size // keys.num_heads if keys.num_layers == layers_of_27b else keys.head_dim
    return {"query_pre_attn_scalar": width, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}


def _gemma2(keys: Keys) -> Config:
    _check_one_base(keys)
    return _rms(
        keys,
        "gemma2",
        **_windows(keys, period=2, default=4096),
        **_gemma_scale(keys, layers_of_27b=46),
        **_TIED,
        attn_logit_softcapping=keys.number("attn_logit_softcapping", 50.0),
        final_logit_softcapping=keys.number("final_logit_softcapping", 30.0),
    )


def _gemma3(keys: Keys) -> Config:
    """Layers with a window have a rope of their own, which is never scaled."""
    config = _rms(
        keys,
        "gemma3_text",
        **_gemma_scale(keys, layers_of_27b=62),
        final_logit_softcapping=keys.number("final_logit_softcapping", 0.0, positive=False) or None,
    )
    if keys.count("attention.sliding_window", 0, least=0):
        config |= _windows(keys, period=6)
    else:  # transformers wants a number even if no layer uses it
        config |= {"sliding_window": keys.count("context_length"), "layer_types": [_FULL] * keys.num_layers}
    local = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 10000.0)}
    return {**config, "rope_parameters": {_SLIDING: local, _FULL: config["rope_parameters"]}}


def _phi3(keys: Keys) -> Config:
    config = _rms(keys, "phi3", partial=True, sliding_window=keys.count("attention.sliding_window", 0, least=0) or None)
    # This class takes the original length from here.
    return {**config, "original_max_position_embeddings": keys.original_length}


def _granite(keys: Keys) -> Config:
    """Dense, or with experts, and one that is shared."""
    if not keys.flag("rope.scaling.finetuned", default=True):
        keys.refuse("rope.scaling.finetuned", "is false, so that the model has no rope, which is not supported")
    scales = {
        "attention_multiplier": keys.number("attention.scale", 0.0, positive=False) or keys.head_dim**-0.5,
        "embedding_multiplier": keys.number("embedding_scale", 0.0, positive=False) or 1.0,
        "residual_multiplier": keys.number("residual_scale", 0.0, positive=False) or 1.0,
        "logits_scaling": keys.number("logit_scale"),
    }
    if not keys.count("expert_count", 0, least=0):
        return _rms(keys, "granite", **scales, attention_bias=keys.has("attn_output.bias"), mlp_bias=False)
    config = _rms(keys, "granitemoe", **scales, **_experts(keys, "num_local_experts"), attention_bias=False)
    if shared := keys.count("expert_shared_feed_forward_length", 0, least=0):
        config |= {"model_type": "granitemoeshared", "shared_intermediate_size": shared}
    return config


def _minicpm(keys: Keys) -> Config:
    """Granite with other words. Older files lack the scales, and llama.cpp's defaults are wrong for their logits."""
    return _rms(
        keys,
        "granite",
        attention_multiplier=keys.head_dim**-0.5,
        embedding_multiplier=keys.number("embedding_scale"),
        residual_multiplier=keys.number("residual_scale"),
        logits_scaling=keys.number("logit_scale"),
        attention_bias=False,
        mlp_bias=False,
    )


def _ernie4_5(keys: Keys) -> Config:
    _check_no_sections(keys)
    return _rms(keys, "ernie4_5", use_bias=False)


def _glm4(keys: Keys) -> Config:
    _check_no_sections(keys)
    return _rms(keys, "glm4", partial=True, attention_bias=_has_qkv_bias(keys))


def _seed_oss(keys: Keys) -> Config:
    return _rms(
        keys,
        "seed_oss",
        attention_bias=_has_qkv_bias(keys),
        attention_out_bias=keys.has("attn_output.bias"),
        mlp_bias=False,
    )


def _smollm3(keys: Keys) -> Config:
    """Every fourth layer turns nothing."""
    return _rms(
        keys,
        "smollm3",
        **_NO_WINDOW,
        no_rope_layers=[int((layer + 1) % 4 != 0) for layer in range(keys.num_layers)],
        layer_types=[_FULL] * keys.num_layers,
        attention_bias=False,
        mlp_bias=False,
    )


def _stablelm(keys: Keys) -> Config:
    return _layer_norm(
        keys,
        "stablelm",
        "layer_norm_eps",
        **_OWN_HEAD,
        partial=True,
        use_qkv_bias=_has_qkv_bias(keys),
        qk_layernorm=keys.has("attn_q_norm.weight"),
        use_parallel_residual=not keys.has("ffn_norm.weight"),
    )


def _cohere(keys: Keys) -> Config:
    return _layer_norm(
        keys,
        "cohere",
        "layer_norm_eps",
        **_TIED,
        use_qk_norm=keys.has("attn_q_norm.weight"),
        attention_bias=False,
        logit_scale=keys.number("logit_scale", 0.0, positive=False) or 1.0,
    )


def _cohere2(keys: Keys) -> Config:
    return _layer_norm(
        keys,
        "cohere2",
        "layer_norm_eps",
        **_windows(keys, period=4),
        **_TIED,
        attention_bias=False,
        logit_scale=keys.number("logit_scale"),
    )


def _olmo(keys: Keys) -> Config:
    if keys.number("attention.layer_norm_epsilon") != 1e-5:
        keys.refuse("attention.layer_norm_epsilon", "is not 1e-05, which the class in transformers has fixed")
    clip = keys.number("attention.clamp_kqv", 0.0, positive=False) or None
    size = keys.count("feed_forward_length")
    return _base(keys, "olmo", intermediate_size=size, clip_qkv=clip, attention_bias=False)


def _olmo2(keys: Keys) -> Config:
    """With windows it is OLMo 3, which scales the rope of the other layers alone."""
    config = _rms(keys, "olmo2", **_OWN_HEAD, attention_bias=False)
    if not keys.count("attention.sliding_window", 0, least=0):
        return config
    scaled = config["rope_parameters"]
    ropes = {_SLIDING: {"rope_type": "default", "rope_theta": scaled["rope_theta"]}, _FULL: scaled}
    return {**config, "model_type": "olmo3", **_windows(keys, period=4), "rope_parameters": ropes}


def _olmoe(keys: Keys) -> Config:
    experts = _experts(keys, "num_experts")
    return _rms(keys, "olmoe", **experts, **_OWN_HEAD, norm_topk_prob=False, attention_bias=False, clip_qkv=None)


def _exaone4(keys: Keys) -> Config:
    """Only 32B has windows, and turns nothing where a layer has none."""
    if keys.num_layers == 64:
        return _rms(keys, "exaone4", **_windows(keys, period=4, default=4096))
    return _rms(keys, "exaone4", sliding_window=None, layer_types=[_FULL] * keys.num_layers)


def _nemotron(keys: Keys) -> Config:
    return _layer_norm(
        keys,
        "nemotron",
        "norm_eps",
        **_OWN_HEAD,
        partial=True,
        hidden_act="relu2",
        attention_bias=keys.has("attn_output.bias"),
        mlp_bias=keys.has("ffn_up.bias"),
    )


def _gpt_oss(keys: Keys) -> Config:
    _check_one_base(keys)
    size = keys.count("expert_feed_forward_length")
    config = _base(keys, "gpt_oss", truncate=False, **_OWN_HEAD, **_windows(keys, period=2), attention_bias=True)
    eps = keys.number("attention.layer_norm_rms_epsilon")
    return {**config, **_experts(keys, "num_local_experts"), "rms_norm_eps": eps, "intermediate_size": size}


def _gpt2(keys: Keys) -> Config:
    return {
        "model_type": "gpt2",
        "n_embd": keys.hidden_size,
        "n_head": keys.num_heads,
        "n_layer": keys.num_layers,
        "n_positions": keys.count("context_length"),
        "n_inner": keys.count("feed_forward_length"),
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


ARCHITECTURES: Mapping[str, Callable[[Keys], Config]] = {
    "arcee": lambda keys: _rms(keys, "arcee", hidden_act="relu2", attention_bias=False, mlp_bias=False),
    "chatglm": lambda keys: _rms(keys, "glm", partial=True, attention_bias=_has_qkv_bias(keys)),
    "cohere2": _cohere2,
    "command-r": _cohere,
    "ernie4_5": _ernie4_5,
    "exaone": _llama,
    "exaone4": _exaone4,
    "gemma": lambda keys: _rms(keys, "gemma", **_TIED, hidden_act="gelu_pytorch_tanh", attention_bias=False),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "glm4": _glm4,
    "gpt-oss": _gpt_oss,
    "gpt2": _gpt2,
    "granite": _granite,
    "granitemoe": _granite,
    "internlm2": _llama,
    "llama": _llama,
    "minicpm": _minicpm,
    "mistral3": _mistral3,
    "nemotron": _nemotron,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "phi2": lambda keys: _layer_norm(keys, "phi", "layer_norm_eps", **_OWN_HEAD, partial=True, hidden_act="gelu_new"),
    "phi3": _phi3,
    "qwen2": _llama,
    "qwen2moe": _qwen2_moe,
    "qwen2vl": _llama,  # text alone has one position, so that the sections of its rope are as good as one
    "qwen3": _qwen3,
    "qwen3moe": _qwen3_moe,
    "qwen3vl": _qwen3,
    "qwen3vlmoe": _qwen3_moe,
    "seed_oss": _seed_oss,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "starcoder2": lambda keys: _layer_norm(
        keys, "starcoder2", "norm_epsilon", sliding_window=None, use_bias=True, hidden_act="gelu_pytorch_tanh"
    ),
}
