"""The native encoder has the tokens of the `tokenizers` library, and takes only tokenizers whose structure it knows."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from rbee.models.gguf.tokenizer.splits import split_of
from rbee.server.text.byte_pairs import native_encoder
from rbee.server.text.tokenizer import TextCodec, TooManyTokensError
from tests.server.text import character_classes
from tests.server.text.text_parts import SENTENCEPIECE, SYNTHETIC, wordpiece

ROOT = Path(__file__).parents[3]
MANY = 10**9
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPECIAL = ["<|start|>", "<|start|>more", "<|end|>"]


def trained() -> dict[str, Any]:
    """A model with merges of English, of code and of other scripts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    others = "naïve Größe привет мир 你好世界 こんにちは 한국어 हिन्दी 🐝👩‍🚀 ٣٤ ½ ǅ \u00a0\u3000 " * 20
    tokenizer.train_from_iterator([*texts, others, Path(__file__).read_text()], trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


MODEL = trained()


def split(regex: str) -> dict[str, Any]:
    """A step whose matches are words."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def byte_level(*, use_regex: bool = False) -> dict[str, Any]:
    """The step that spells words in bytes."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def made(*steps: dict[str, Any], model: dict[str, Any] | None = None, **others: Any) -> Tokenizer:
    """A tokenizer with these steps, three special tokens and the trained model, with `model` in it."""
    tokenizer = Tokenizer(models.BPE())
    content = json.loads(tokenizer.to_str()) | {"model": MODEL | (model or {})}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(steps)}
    tokenizer = Tokenizer.from_str(json.dumps(content | others))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer


def lacking(names: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trained model without these bytes, and the step that removes them, as GGUF files have it."""
    kept = {name: number for name, number in MODEL["vocab"].items() if not set(name) & set(names)}
    merges = [merge for merge in MODEL["merges"] if not set("".join(merge)) & set(names)]
    step = split(f"[{names}]") | {"behavior": "Removed"}
    return {"vocab": kept, "merges": merges}, step


def with_ends(tokenizer: Tokenizer) -> Tokenizer:
    """With a token before each text, and one behind it."""
    names = [(name, tokenizer.token_to_id(name)) for name in (SPECIAL[0], SPECIAL[2])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A {SPECIAL[2]}", special_tokens=names
    )
    return tokenizer


LACKS, REMOVES = lacking("Ąñe")  # U+0004, the first byte of some characters, and a letter
TOKENIZERS = {
    "gpt2": made(byte_level(use_regex=True)),
    "gpt2 as a regex": made(split(GPT2), byte_level()),
    "smollm": made({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)),
    "llama3": with_ends(made(split(LLAMA3), byte_level(), model={"ignore_merges": True})),
    "llama3 with merges": made(split(LLAMA3), byte_level()),
    "qwen2": made(split(QWEN2), byte_level(), normalizer={"type": "NFC"}),
    "bytes are lacking": made(byte_level(use_regex=True), model=LACKS),
    "bytes are removed": made(split(LLAMA3), byte_level(), REMOVES, model=LACKS),
    "words with removed bytes": made(split(LLAMA3), byte_level(), REMOVES, model={"ignore_merges": True}),
    **{f"GGUF {name}": made(*map(split, split_of(name).regexes), byte_level()) for name in ("smollm", "gpt-2")},
    **{f"GGUF {name}": made(*map(split, split_of(name).regexes), byte_level()) for name in ("llama-bpe", "qwen2")},
}
CODECS = {name: TextCodec(tokenizer) for name, tokenizer in TOKENIZERS.items()}

PIECES = st.one_of(
    st.text(max_size=6),
    st.text(st.sampled_from(" \n\r\t\u00a0\u3000\u0085\u180e\x1c"), max_size=6),
    st.text(st.sampled_from("aeé中0٣½'sS\u017ftT.!_e\u0301\u0338\x04\U00050000"), max_size=8),
    st.sampled_from([*SPECIAL, "<|start", "<|", "'ll", "'RE", "Hello", " world", "12345", "🐝", "👩‍🚀", "的", "हि"]),
    st.sampled_from([" ", "a", "-", "7", "\n", "中", "ab", "! "]).map(lambda text: text * 70),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(TEXTS, st.booleans())
@example("", True)
@example("a" * 20_000 + " " * 20_000, False)
@example("><|end|>\u0338\u0301", True)
def test_every_text_has_the_same_tokens(name, text, add_special_tokens):
    """Whatever stands around it."""
    ids = TOKENIZERS[name].encode(text, add_special_tokens=add_special_tokens).ids
    assert CODECS[name].encode(text, add_special_tokens=add_special_tokens) == ids


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_texts_are_tokenized_natively(name):
    """Or the test above would compare the library with itself."""
    encoder = native_encoder(TOKENIZERS[name])
    assert encoder is not None
    text = "I'll say 1234 naïve 你好\r\n\n  x<|end|>"
    assert encoder.encode(text, MANY) == TOKENIZERS[name].encode(text, add_special_tokens=False).ids


def test_a_limit_counts_what_stands_around_a_text():
    """As the library counts it."""
    codec = CODECS["llama3"]
    ids = codec.encode("Hello world", add_special_tokens=True)
    assert codec.encode("Hello world", add_special_tokens=True, limit=len(ids)) == ids
    with pytest.raises(TooManyTokensError) as raised:
        codec.encode("Hello world", add_special_tokens=True, limit=len(ids) - 1)
    assert raised.value.found == len(ids)


def test_the_classes_of_characters_are_the_library_s():
    """Or a newer library knows more: run `python -m tests.server.text.character_classes`."""
    assert character_classes.content() == character_classes.HEADER.read_text()


@pytest.mark.parametrize("name", ["smollm", "GGUF smollm"])
def test_a_digit_that_is_new_in_unicode(name):
    """Of version 17, which the step Digits of tokenizers 0.23 knows, and its regular expressions do not."""
    text = "a\U00011de1b \U00011de1\U00011de1"
    assert CODECS[name].encode(text, add_special_tokens=False) == TOKENIZERS[name].encode(text).ids


def test_normalization_changes_no_text_that_is_taken_as_it_is():
    """No accepted character is changed alone, moves behind another one, or joins the one before it."""
    encoder = native_encoder(TOKENIZERS["qwen2"])
    assert encoder is not None
    accepted = [
        code
        for code in range(0x110000)
        if code not in range(0xD800, 0xE000) and encoder.encode(chr(code), MANY) is not None
    ]
    assert len(accepted) > 40_000
    normalizer, joins = normalizers.NFC(), set()
    for code in range(0x110000):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            joins.add(int(parts[1], 16))
    joins |= {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # of Hangul
    assert not joins & set(accepted)
    assert not [code for code in accepted if unicodedata.combining(chr(code))]
    text = "".join(map(chr, accepted))
    assert normalizer.normalize_str(text) == text


def test_a_text_that_normalization_may_change_is_left_to_the_library():
    """A letter and its accent become one."""
    encoder = native_encoder(TOKENIZERS["qwen2"])
    assert encoder is not None
    assert encoder.encode("e\u0301", MANY) is None


def test_half_a_character_is_left_to_the_library():
    """It has its own refusal."""
    encoder = native_encoder(TOKENIZERS["gpt2"])
    assert encoder is not None
    assert encoder.encode("\ud800", MANY) is None


GPT2_STEP = byte_level(use_regex=True)


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
