"""Byte-level tokenizers of all shapes that the native encoder takes, and texts for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from rbee.models.gguf.tokenizer.splits import split_of
from rbee.server.text.tokenizer import TextCodec

ROOT = Path(__file__).parents[3]
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


def in_lines(merges: list[Any]) -> list[str]:
    """In the older form, as a file of merges, whose first line may be a comment."""
    return ["#version: 0.2", *map(" ".join, merges)]


def with_words(tokenizer: Tokenizer) -> Tokenizer:
    """With added tokens that overlap, begin one another, are one letter, or do not end where a letter does."""
    for name in ["ab", "bc", "abcd", "b", "aa", "aaaaab", " ", "\n\n", "c d", "e\u0301", "的", "的的"]:
        tokenizer.add_tokens([AddedToken(name, normalized=False, special=name < "b")])
    return tokenizer


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
    "added words": with_words(made(split(LLAMA3), byte_level())),
    "gaps between ids": made(
        byte_level(use_regex=True), model={"vocab": {n: 3 * i + 7 for n, i in MODEL["vocab"].items()}}
    ),
    "merges in lines": made(split(QWEN2), byte_level(), model={"merges": in_lines(MODEL["merges"])}),
    "merges twice": made(split(LLAMA3), byte_level(), model={"merges": MODEL["merges"] + MODEL["merges"][300:100:-1]}),
    **{f"GGUF {name}": made(*map(split, split_of(name).regexes), byte_level()) for name in ("smollm", "gpt-2")},
    **{f"GGUF {name}": made(*map(split, split_of(name).regexes), byte_level()) for name in ("llama-bpe", "qwen2")},
}
CODECS = {name: TextCodec(tokenizer) for name, tokenizer in TOKENIZERS.items()}
with pytest.MonkeyPatch.context() as patch:
    patch.setattr("rbee.server.text.tokenizer.native_encoder", lambda *_: None)
    BY_LIBRARY = {name: TextCodec(tokenizer) for name, tokenizer in TOKENIZERS.items()}

PIECES = st.one_of(
    st.text(max_size=6),
    st.text(st.sampled_from(" \n\r\t\u00a0\u3000\u0085\u180e\x1c"), max_size=6),
    st.text(st.sampled_from("aeé中0٣½'sS\u017ftT.!_e\u0301\u0338\x04\U00050000"), max_size=8),
    st.text(
        st.sampled_from("\0\ufeff\ue000\U000f0000\U0010ffff\u212b\u1100\u1161\u11a8가か\u3099\u0130\u017f²"), max_size=6
    ),
    st.sampled_from([*SPECIAL, "<|start", "<|", "'ll", "'RE", "Hello", " world", "12345", "🐝", "👩‍🚀", "的", "हि"]),
    st.sampled_from([" ", "a", "-", "7", "\n", "中", "ab", "! "]).map(lambda text: text * 70),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)
