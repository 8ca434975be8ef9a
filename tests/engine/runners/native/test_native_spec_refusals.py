"""What of a config.json the native kernels do not do, and values that make no sense."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from rbee.engine.runners.interface import Unsupported
from rbee.engine.runners.native.families import COMMON, FAMILIES, WRAPPERS
from rbee.engine.runners.native.spec import read_spec
from tests.engine.runners.native.spec_parts import LONGROPE, SMALL


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "gpt2"}, r"its model_type is 'gpt2', and the native kernels do llama, mistral, .*gemma3_text"),
        ({"model_type": None}, "its model_type is None"),
        ({"head_dim": 40}, "its head_dim is 40, and the native kernels need a multiple of 16"),
        ({"num_key_value_heads": 3}, "its 4 attention heads cannot share 3 key-value heads evenly"),
        ({"hidden_act": "relu"}, "its activation is 'relu', and the native kernels do silu.*relu2"),
        ({"quantization_config": {"bits": 4}}, "its config.json sets quantization_config"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "sets attn_logit_softcapping"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "sets final_logit_softcapping"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "sets use_bidirectional_attention"),
        (
            {"model_type": "phi3", "partial_rotary_factor": 1.5},
            "its partial_rotary_factor is 1.5, and a share of a head was expected",
        ),
        (
            {"model_type": "phi3", "rope_parameters": {"partial_rotary_factor": 0.1}},
            "its partial_rotary_factor is 0.1: 3 of 32 numbers",
        ),
        (
            {"model_type": "phi3", "rope_parameters": {"partial_rotary_factor": "half"}},
            "its partial_rotary_factor is 'half'",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "its no_rope_layers do not list its 7 layers"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "its no_rope_layer_interval is 0"),
        ({"model_type": "granite", "logits_scaling": 0}, "its logits_scaling is 0, and a positive number was expected"),
        ({"model_type": "granite", "residual_multiplier": "x"}, "its residual_multiplier is 'x'"),
        (
            {"model_type": "ministral3", "rope_parameters": {"llama_4_scaling_beta": -1}},
            "its llama_4_scaling_beta is -1",
        ),
        (
            {"model_type": "ministral3", "rope_parameters": {"llama_4_scaling_beta": 0.1}},
            "its original_max_position_embeddings is None",
        ),
        ({"model_type": "gemma3", "text_config": [1]}, r"its text_config is \[1\], and an object was expected"),
        ({"model_type": "gemma3", "text_config": {}, "quantization_config": {"bits": 8}}, "sets quantization_config"),
        ({"model_type": "mistral3", "text_config": {"model_type": "mixtral"}}, "its model_type is 'mixtral'"),
        (
            {"rope_scaling": {"type": "proportional"}},
            "its rope_type is 'proportional', and the native kernels do default",
        ),
        ({"rope_scaling": {"type": "linear"}}, r"its linear rope cannot be computed \(KeyError\('factor'\)\)"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "its linear rope has frequencies that are not finite"),
        ({"rope_scaling": {**LONGROPE, "short_factor": [1.0]}}, "its longrope rope cannot be computed"),
        ({"rope_parameters": {"full_attention": {}}}, "it has a rope of its own for full_attention"),
        ({"rope_parameters": 7}, "its rope_parameters is 7, and an object was expected"),
        ({"model_type": "mistral", "sliding_window": 0}, "its sliding_window is 0"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"] * 6}, "its layer_types do not list its 7 layers"),
        (
            {"model_type": "qwen3", "layer_types": ["linear_attention"] * 7},
            "it has a layer of the type 'linear_attention'",
        ),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"] * 7}, "use_sliding_window forbids them"),
        ({"hidden_size": "64"}, "its hidden_size is '64', and a positive whole number was expected"),
        ({"vocab_size": None}, "its vocab_size is None"),
        ({"rms_norm_eps": "small"}, "its rms_norm_eps is 'small', and a number was expected"),
    ],
)
def test_what_the_kernels_do_not_do_is_named(values, reason):
    """Each refusal is a part of a sentence that names the key and its value."""
    with np.errstate(divide="ignore"), pytest.raises(Unsupported, match=reason):
        read_spec({"model_type": "llama", **SMALL, **values})


ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, float("nan"), float("inf"), 2**40, "x", [], [[1], 2], {}, {"rope_type": [1]}),
    *({"rope_type": "yarn", "factor": "x"}, {"rope_type": "longrope", "short_factor": "x"}, {"full_attention": 7}),
    *({"rope_type": "dynamic", "factor": 1e308}, {"rope_type": "default", "rope_theta": None}),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", [*FAMILIES, *WRAPPERS])
def test_a_damaged_value_of_any_key_is_a_reason_or_harmless(kind):
    """No value of a key that means something is an error that no sentence explains."""
    text = FAMILIES[WRAPPERS[kind].text if kind in WRAPPERS else kind]
    for name in ("text_config", *COMMON, *text.defaults):
        for value in ODD:
            with contextlib.suppress(Unsupported):
                read_spec({"model_type": kind, **SMALL, name: value})
