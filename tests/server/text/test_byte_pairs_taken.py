"""The native encoder takes the tokenizers whose structure it knows, and no others."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer

from rbee.server.text.byte_pairs import native_encoder
from rbee.server.text.tokenizer import TextCodec
from tests.server.text.byte_pairs_parts import (
    CODECS,
    GPT2,
    LACKS,
    LLAMA3,
    MODEL,
    REMOVES,
    TOKENIZERS,
    byte_level,
    made,
    split,
)
from tests.server.text.text_parts import SENTENCEPIECE, SYNTHETIC, wordpiece

GPT2_STEP = byte_level(use_regex=True)
PADDING = {
    "strategy": "BatchLongest",
    "direction": "Right",
    "pad_to_multiple_of": 8,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "a",
}


@pytest.mark.parametrize(
    "tokenizer",
    [
        SYNTHETIC,
        SENTENCEPIECE[True],
        wordpiece(),
        made(GPT2_STEP | {"add_prefix_space": True}),
        made(split(r"\p{L}+"), byte_level()),
        made(split(LLAMA3) | {"invert": True}, byte_level()),
        made(split(LLAMA3) | {"behavior": "MergedWithNext"}, byte_level()),
        made(split(LLAMA3), byte_level(use_regex=True)),
        made(split(r"\p{L}"), split(GPT2), byte_level()),
        made({"type": "Digits", "individual_digits": False}, GPT2_STEP),
        made(GPT2_STEP, split("ab") | {"behavior": "Removed"}),
        made(GPT2_STEP, split("[ab]+") | {"behavior": "Removed"}),
        made(GPT2_STEP, normalizer={"type": "Lowercase"}),
        made(GPT2_STEP, model={"dropout": 0.5}),
        made(GPT2_STEP, model={"unk_token": "a"}),
        made(GPT2_STEP, model={"unk_token": ""}),
        made(GPT2_STEP, model={"byte_fallback": True}),
        made(GPT2_STEP, model={"end_of_word_suffix": "</w>"}),
        made(GPT2_STEP, normalizer={"type": "NFKC"}),
        made(GPT2_STEP, normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
        made({"type": "Whitespace"}, GPT2_STEP),
        made(GPT2_STEP, padding=PADDING),
        made(GPT2_STEP, truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}),
    ],
)
def test_other_tokenizers_are_left_to_the_library(tokenizer):
    """One thing is different in each."""
    assert native_encoder(tokenizer) is None


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_added_tokens_that_look_around_are_left_to_the_library(flag):
    """Two kinds that are searched for one after the other, too."""
    tokenizer = made(GPT2_STEP)
    tokenizer.add_tokens([AddedToken("<other>", **({"normalized": False} | {flag: True}))])
    assert native_encoder(tokenizer) is None


def test_a_tokenizer_that_is_not_what_its_file_says_is_left_to_the_library(caplog):
    """As one whose steps mean something else in another version of the library."""
    other = made(GPT2_STEP, model={"merges": []})
    assert native_encoder(TOKENIZERS["gpt2"], other.to_str().encode()) is None
    assert "takes longer" in caplog.text


def test_what_a_file_leaves_out_or_empty_is_read_as_the_library_reads_it():
    """A null is not refused."""
    content = json.loads(TOKENIZERS["gpt2"].to_str())
    content["model"] |= {"ignore_merges": None, "byte_fallback": None, "continuing_subword_prefix": ""}
    del content["normalizer"], content["model"]["dropout"], content["model"]["fuse_unk"]
    data = json.dumps(content).encode()
    encoder = native_encoder(Tokenizer.from_buffer(data), data)
    assert encoder is not None
    assert encoder.encode("Hello", 100) == TOKENIZERS["gpt2"].encode("Hello").ids


def test_added_tokens_have_the_ids_that_the_library_gives_them():
    """Those of the file do not count if they do not follow the vocabulary's."""
    content = json.loads(TOKENIZERS["qwen2"].to_str())
    content["added_tokens"][1]["content"] = "e\u0301"  # a text that the library takes
    content["added_tokens"][2]["id"] += 10
    data = json.dumps(content).encode()
    tokenizer = Tokenizer.from_buffer(data)
    encoder = native_encoder(tokenizer, data)
    assert encoder is not None
    assert encoder.encode("<|end|>", 100) == tokenizer.encode("<|end|>").ids


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_token_without_a_name_is_found_nowhere(ignore_merges):
    """Not beside a byte that is removed either."""
    vocabulary = LACKS["vocab"] | {"": len(MODEL["vocab"])}
    tokenizer = made(GPT2_STEP, REMOVES, model=LACKS | {"vocab": vocabulary, "ignore_merges": ignore_merges})
    encoder = native_encoder(tokenizer)
    assert encoder is not None
    assert encoder.encode("eae", 100) == tokenizer.encode("eae").ids


@pytest.mark.parametrize(
    ("name", "body", "is_quick"),
    [
        ("llama3", "é".encode(), True),
        ("qwen2", b"e", True),
        ("qwen2", "é".encode(), False),
        ("qwen2", rb"\u00e9", False),
    ],
)
def test_what_is_quick(name, body, is_quick):
    """All texts without a normalizer, else those in ASCII."""
    assert CODECS[name].is_quick_with(body) == is_quick


def test_texts_of_other_tokenizers_are_not_quick():
    """The library takes them."""
    assert not TextCodec(SENTENCEPIECE[True]).is_quick_with(b"e")
