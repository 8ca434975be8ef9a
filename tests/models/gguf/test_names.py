"""What the names of GGUF files say."""

from __future__ import annotations

import pytest

from rbee.errors import ModelError
from rbee.models.gguf.names import choose, offered_models


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Meta-Llama-3.1-8B-Instruct-IQ2_XXS.gguf", "IQ2_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gemma-3-4b-it-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("gemma-3-4b-it-qat-q4_0.gguf", "Q4_0"),
        ("bitnet-b1.58-2B-TQ2_0.gguf", "TQ2_0"),
        ("model.BF16-00001-of-00002.gguf", "BF16"),
        ("model-f16.gguf", "F16"),
        ("Q6_K/model.gguf", "Q6_K"),
        ("some-model-v2.gguf", "some-model-v2"),
    ],
)
def test_the_quantization_is_in_the_name(name, quant):
    """In any case of letters, after any separator, else in the folder's name; a name without one stands for itself."""
    [model] = offered_models([name])
    assert model.quant == quant


def test_shards_are_one_model_and_what_is_beside_a_model_is_none():
    """Projectors and importance matrices are left out in any spelling, other files too."""
    names = ["b-Q8_0-00002-of-00002.gguf", "b-Q8_0-00001-of-00002.gguf", "a-Q8_0.gguf", "config.json"]
    models = offered_models([*names, "mmproj-F16.gguf", "a.mmproj-Q8_0.gguf", "imatrix.gguf", "a.Imatrix.gguf"])
    assert [(model.name, len(model.files)) for model in models] == [("a-Q8_0", 1), ("b-Q8_0", 2)]


@pytest.mark.parametrize(
    ("names", "tag", "chosen"),
    [
        (["a-Q8_0", "a-Q4_0", "a-Q4_K_M"], "", "a-Q4_K_M"),
        (["a-Q8_0", "a-Q4_0"], "", "a-Q4_0"),
        (["a-Q2_K"], "", "a-Q2_K"),
        (["a-Q4_K_M", "a-UD-Q4_K_M"], "q4_k_m", "a-Q4_K_M"),
        (["a-Q4_K_M", "a-UD-Q4_K_M"], "UD-Q4_K_M", "a-UD-Q4_K_M"),
        (["a-Q4_K_M", "b-Q4_K_M"], "b-q4_k_m.gguf", "b-Q4_K_M"),
        (["a-Q4_K", "a-Q4_K_M"], "Q4_K", "a-Q4_K"),
    ],
)
def test_the_choice(names, tag, chosen):
    """A quantization means itself, not one that its name begins."""
    assert choose(offered_models(f"{name}.gguf" for name in names), tag, where="it").name == chosen


def test_many_choices_are_not_all_listed():
    """Twenty are enough for a sentence."""
    names = [f"model-{number:02}.gguf" for number in range(30)]
    with pytest.raises(
        ModelError, match=r"it has 30 GGUF models: model-00\.gguf, .*, model-19\.gguf and 10 more\. Give"
    ):
        choose(offered_models(names), "", where="it")
