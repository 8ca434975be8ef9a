"""Metadata of GGUF files as config.json: what is refused, and that nothing but a refusal comes of damage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.errors import ModelError
from rbee.models.gguf import GGUFModel
from rbee.models.gguf.config import config_of
from rbee.models.stored_tensor import PlacedTensor, StoredTensor

HIDDEN, HEADS, LAYERS = 32, 4, 3
_COMMON: dict[str, Any] = {
    "block_count": LAYERS,
    "context_length": 128,
    "embedding_length": HIDDEN,
    "feed_forward_length": 48,
    "attention.head_count": HEADS,
    "attention.head_count_kv": 2,
    "attention.key_length": 8,
    "attention.value_length": 8,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.dimension_count": 8,
    "rope.freq_base": 5000.0,
}
_NORMS, _FOUR_NORMS = ("attn_norm", "ffn_norm"), ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
_ATTENTION, _MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
# Keys beside the common ones, and the modules of a layer.
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "llama": (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_beta_fast": 8.0},
        (*_NORMS, *_ATTENTION, *_MLP),
    ),
    "qwen3": (
        {"rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.5},
        (*_NORMS, *_ATTENTION, *_MLP, "attn_q_norm", "attn_k_norm"),
    ),
    "gemma3": (
        {"attention.sliding_window": 16, "attention.sliding_window_pattern": np.array([True, False, True])},
        (*_FOUR_NORMS, *_ATTENTION, *_MLP, "attn_q_norm", "attn_k_norm"),
    ),
    "granite": ({"logit_scale": 2.0, "attention.scale": 0.5}, (*_NORMS, *_ATTENTION, *_MLP)),
    "qwen3moe": (
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16},
        (
            *(*_NORMS, *_ATTENTION, "attn_q_norm", "attn_k_norm", "ffn_gate_inp"),
            *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
        ),
    ),
    "phi3": ({"attention.sliding_window": 16}, (*_NORMS, *_ATTENTION, "ffn_up", "ffn_down")),
}


def model_of(architecture: str) -> GGUFModel:
    """A model without data."""
    keys, modules = MODELS[architecture]
    metadata = {f"{architecture}.{name}": value for name, value in {**_COMMON, **keys}.items()}
    names = ["token_embd", "output_norm", "output"]
    names += [f"blk.{layer}.{module}" for layer in range(LAYERS) for module in modules]
    path = Path("some.gguf")
    tensors = {f"{name}.weight": PlacedTensor(path, StoredTensor("F32", (64, HIDDEN), 0, 0)) for name in names}
    return GGUFModel((path,), {"general.architecture": architecture, **metadata}, tensors)


def with_keys(architecture: str, **keys: Any) -> GGUFModel:
    """The model with other keys; "__" stands for a dot, and None removes a key."""
    model = model_of(architecture)
    changed = {f"{architecture}.{name.replace('__', '.')}": value for name, value in keys.items()}
    metadata = {name: value for name, value in {**model.metadata, **changed}.items() if value is not None}
    return dataclasses.replace(model, metadata=metadata)


@pytest.mark.parametrize("architecture", MODELS)
def test_these_models_are_good(architecture):
    """So that what is refused below is refused for what was changed."""
    config = config_of(model_of(architecture))
    assert (config["num_hidden_layers"], config["vocab_size"], config["dtype"]) == (LAYERS, 64, "float32")


@pytest.mark.parametrize(
    ("architecture", "keys", "reason"),
    [
        ("llama", {"context_length": None}, r"its key llama\.context_length is missing\. Download or convert"),
        ("llama", {"attention__head_count": 0}, r"llama\.attention\.head_count is 0, and a whole number from 1 to"),
        ("llama", {"attention__head_count": -4}, r"llama\.attention\.head_count is -4, and"),
        ("llama", {"attention__head_count": 4.0}, r"llama\.attention\.head_count is 4\.0, and"),
        ("llama", {"attention__head_count": True}, r"llama\.attention\.head_count is True, and"),
        ("llama", {"attention__head_count_kv": 3}, r"head_count_kv is 3, which does not divide the 4 heads"),
        ("llama", {"attention__head_count_kv": np.array([2, 2, 1])}, "head_count_kv differs from layer to layer"),
        ("llama", {"attention__value_length": 16}, "value_length is not 8 like the length of keys"),
        (
            "llama",
            {"attention__key_length": None, "attention__head_count": 5},
            "head_count is 5, which does not divide",
        ),
        ("llama", {"block_count": 4}, r"llama\.block_count is 4, and the file has no tensors of the last of these"),
        ("llama", {"block_count": 2}, r"nothing would read the tensor blk\.2\.attn_k\.weight and 8 more"),
        ("llama", {"block_count": 1 << 40}, r"llama\.block_count is 1099511627776, and a whole number"),
        ("llama", {"embedding_length": 64}, "embedding_length is 64, and there is no tensor token_embd.weight with"),
        ("llama", {"attention__layer_norm_rms_epsilon": "small"}, r"layer_norm_rms_epsilon is 'small', and a number"),
        ("llama", {"attention__causal": False}, r"llama\.attention\.causal is false, so that the model generates no"),
        ("llama", {"attention__causal": 1}, r"llama\.attention\.causal is 1, and true or false was expected"),
        ("llama", {"rope__dimension_count": 6}, r"rope\.dimension_count is 6, and 8 was expected"),
        ("phi3", {"rope__dimension_count": 5}, r"rope\.dimension_count is 5, and 8 was expected"),
        (
            "llama",
            {"rope__scaling__type": "ntk"},
            r"rope\.scaling\.type is 'ntk', and none, linear, yarn, longrope are",
        ),
        ("llama", {"rope__scaling__type": 3}, r"rope\.scaling\.type is 3, and a text was expected"),
        ("llama", {"rope__scaling__factor": float("nan")}, r"rope\.scaling\.factor is nan, and a number"),
        ("llama", {"rope__freq_base": 0.0}, r"rope\.freq_base is 0\.0, and a number greater than 0"),
        ("llama", {"rope__scaling__yarn_ext_factor": 0.5}, "yarn_ext_factor is not 1, which is not supported"),
        ("llama", {"nextn_predict_layers": 3}, r"nextn_predict_layers is 3, and a whole number from 0 to 2"),
        ("gemma3", {"attention__sliding_window_pattern": np.array([True])}, "pattern is no list of true or false"),
        ("granite", {"rope__scaling__finetuned": False}, "finetuned is false, so that the model has no rope"),
        ("qwen3moe", {"expert_used_count": 5}, r"expert_used_count is 5, and a whole number from 1 to 4"),
        ("qwen3moe", {"expert_count": None}, r"qwen3moe\.expert_count is missing"),
    ],
)
def test_a_key_that_cannot_be_is_named(architecture, keys, reason):
    """With its value, and what was expected."""
    with pytest.raises(ModelError, match=reason):
        config_of(with_keys(architecture, **keys))


def test_rope_tensors_must_fit(tmp_path):
    """Both or none of the factors of longrope, of the size that is turned, and none beside yarn."""
    (tmp_path / "data").write_bytes(np.array([1, 2, 3, 4], "<f4").tobytes())
    factors = PlacedTensor(tmp_path / "data", StoredTensor("F32", (4,), 0, 16))
    model = model_of("phi3")

    def rope(*names: str, tensor: PlacedTensor = factors, of: GGUFModel = model) -> dict[str, Any]:
        added = {f"rope_{name}.weight": tensor for name in names}
        parameters: dict[str, Any] = config_of(dataclasses.replace(of, tensors={**of.tensors, **added}))[
            "rope_parameters"
        ]
        return parameters

    assert rope("factors_long", "factors_short")["short_factor"] == [1, 2, 3, 4]
    assert rope("freqs")["long_factor"] == [1, 2, 3, 4]
    for names in (("factors_long",), ("factors_short",), ("freqs", "factors_long", "factors_short")):
        with pytest.raises(ModelError, match=r"rope\.scaling\.type needs rope_factors_long\.weight and"):
            rope(*names)
    with pytest.raises(ModelError, match="and a tensor has factors of the frequencies beside it"):
        rope("freqs", of=model_of("llama"))
    with pytest.raises(ModelError, match="nothing would read the tensor rope_freqs"):
        rope("freqs", of=model_of("gemma3"))
    for stored in (StoredTensor("F32", (5,), 0, 20), StoredTensor("F16", (4,), 0, 8)):
        with pytest.raises(ModelError, match=r"its tensor rope_freqs\.weight is F\d\d of shape \[\d\], and F32 of"):
            rope("freqs", tensor=factors._replace(stored=stored))
    (tmp_path / "data").write_bytes(np.array([1, 2, 0, 4], "<f4").tobytes())
    with pytest.raises(ModelError, match=r"its tensor rope_freqs\.weight has values that are no positive numbers"):
        rope("freqs")
    (tmp_path / "data").unlink()
    with pytest.raises(ModelError, match="data cannot be read: No such file"):
        rope("freqs")


def test_a_missing_tensor_is_named():
    """With how many more are missing."""
    model = model_of("llama")
    del model.tensors["blk.1.ffn_up.weight"], model.tensors["output_norm.weight"]
    with pytest.raises(ModelError, match=r"it lacks the tensor output_norm\.weight and 1 more\. Download"):
        config_of(model)


ANYTHING = st.one_of(
    st.none(),  # the key is missing
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-2, 70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["none", "linear", "yarn", "longrope"]),
    st.lists(st.text(max_size=2), max_size=4),
    st.lists(st.integers(0, 2**31), max_size=4).map(lambda values: np.array(values, np.uint32)),
    st.lists(st.booleans(), max_size=4).map(lambda values: np.array(values, np.bool_)),
    st.lists(st.floats(width=32), max_size=4).map(lambda values: np.array(values, np.float32)),
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), architecture=st.sampled_from(sorted(MODELS)))
def test_damage_is_refused_by_name_or_makes_another_config(data, architecture):
    """Any values for any keys: no error but a ModelError, which names one of them, or a tensor that does not fit."""
    names = sorted({*_COMMON, *MODELS[architecture][0], "nextn_predict_layers", "attention.causal"})
    changed = data.draw(st.dictionaries(st.sampled_from(names), ANYTHING, min_size=1, max_size=3))
    model = with_keys(architecture, **{name.replace(".", "__"): value for name, value in changed.items()})
    try:
        assert config_of(model)["num_hidden_layers"] <= LAYERS
    except ModelError as error:
        refusal = str(error)
    else:
        return
    known = (*names, "rope.scaling.original_context_length")
    assert "the tensor" in refusal or any(f"{architecture}.{name}" in refusal for name in known)
