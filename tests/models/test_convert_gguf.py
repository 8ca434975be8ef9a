"""The code of the GGUF conversion in this process: what it refuses, and what it makes of pre-tokenizers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from rbee.engine.runners.torch.convert_gguf import Reporter, mend_pre_tokenizer, run
from tests.models.models_parts import tiny_weights, write_tiny_gguf


def convert_here(source, folder):
    """Convert in this process; returns the exit status and the lines that were reported."""
    folder.mkdir()
    lines = folder.with_suffix(".jsonl")
    with lines.open("w") as file:
        status = run(source, folder, Reporter(file))
    return status, [json.loads(line) for line in lines.read_text().splitlines()]


def without(weights, name):
    """The weights without one of them."""
    return {other: weight for other, weight in weights.items() if other != name}


def with_infinity(weights, name):
    """The weights with one infinite element."""
    weights[name][0] = np.inf
    return weights


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "mamba9"}, r"transformers cannot convert .*mamba9.* is not supported yet\)\."),
        (
            {"weights": without(tiny_weights(), "model.layers.1.self_attn.q_proj.weight")},
            r"lacks weights that the architecture needs: model\.layers\.1\.self_attn\.q_proj\.weight\.",
        ),
        (
            {"weights": with_infinity(tiny_weights(), "model.norm.weight")},
            r"is damaged: it holds infinite or undefined weights in model\.norm\.weight\.",
        ),
    ],
    ids=["architecture", "missing weight", "infinite weight"],
)
def test_a_file_that_transformers_cannot_turn_into_a_model_is_a_sentence(changes, reason, tmp_path):
    """Unsupported architecture, missing and undefined weights: status 2 and one sentence that names the file."""
    source = write_tiny_gguf(tmp_path / "odd.gguf", **changes)
    status, lines = convert_here(source, tmp_path / "out")
    assert status == 2
    assert str(source) in lines[-1]["error"]
    assert re.search(reason, lines[-1]["error"])


def test_an_unknown_pre_tokenizer_is_said_and_kept_as_transformers_makes_it(tmp_path):
    """The user learns that text may be cut in another way than in training; the conversion goes on."""
    source = write_tiny_gguf(tmp_path / "odd.gguf", pre="somebody-elses")
    status, lines = convert_here(source, tmp_path / "out")
    assert status == 0
    (note,) = [line["note"] for line in lines if "note" in line]
    assert "odd.gguf: the pre-tokenizer is of the unknown type 'somebody-elses'" in note
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("\n\n1").tokens == ["Ċ", "Ċ", "1"]


@pytest.mark.parametrize(
    ("pre_type", "tokens", "warns"),
    [
        ("smollm", ["ĊĊ", "1", "2"], False),
        ("starcoder", ["ĊĊ", "1", "2"], False),
        ("gpt-2", ["Ċ", "Ċ", "12"], False),
        ("unheard-of", ["Ċ", "Ċ", "12"], True),
        (None, ["Ċ", "Ċ", "12"], True),
    ],
)
def test_pre_tokenizers_are_mended_by_type(pre_type, tokens, warns):
    """Types with isolated digits get them, GPT-2's is right as it is, others are kept with a warning."""
    vocabulary = {"Ċ": 0, "1": 1, "2": 2, "ĊĊ": 3, "12": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ"), ("1", "2")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    warning = mend_pre_tokenizer(tokenizer, pre_type)
    assert tokenizer.encode("\n\n12").tokens == tokens
    assert (warning is not None) == warns


def test_a_pre_tokenizer_that_transformers_knows_is_left_alone():
    """What is no plain byte-level pre-tokenizer was made for the type on purpose."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    assert mend_pre_tokenizer(tokenizer, "smollm") is None
    assert isinstance(tokenizer.pre_tokenizer, pre_tokenizers.Sequence)
    assert tokenizer.pre_tokenizer.pre_tokenize_str("a1") == [("a1", (0, 2))]
