r"""How byte-pair vocabularies split text into words before merging: the values of `tokenizer.ggml.pre`.

Owns the table, whose regexes and defaults are llama.cpp's. Does not know tokens or merges.

Each regex cuts the pieces that the ones before it left: its matches, and what is between them, are pieces. Where
llama.cpp splits unlike the regex of a model's own tokenizer.json, the table follows llama.cpp:

* it has one class of letters, so that `\p{Lu}`, `\p{Ll}` and their like are written `\p{L}` here;
* `\d` and `[0-9]` are ASCII digits;
* a white space that is not ASCII is never matched by a range of characters around it;
* afmoe and tiny_aya leave the text before a number in one piece with the number's first digits;
* kimi-k2 takes no combining mark for a part of a word, and has its own list of Han characters.

The engine of `tokenizers` knows Unicode 16 and llama.cpp's table Unicode 15, so that a character that is new in
Unicode 16 can be of another class there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from rbee.errors import ModelError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Split:
    """What one value of `tokenizer.ggml.pre` stands for."""

    regexes: tuple[str, ...]
    byte_level: bool = (
        True  # words are written in GPT-2's alphabet for bytes; else in plain text, with a mark for spaces
    )
    ignore_merges: bool = False  # a word that is a token stays one
    add_bos: bool = False  # unless the file has tokenizer.ggml.add_bos_token
    always_bos: bool = False  # whatever the file has
    default_bos: bool = True  # a file without a BOS id has llama.cpp's default


_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKED_WORD = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_LETTERS_AND_SPACES = r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s+(?!\S)|\s+"
_LINE_END = r"\s*[\r\n]+|" + _SPACES
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LINES = r"[^\n]+|\n+"
# A number's first one to three digits, with the text before them, and then groups of three.
_GROUPED_DIGITS = (
    r"(?<=\p{N})\p{N}{3}|\P{N}++(?:\p{N}{1,3}(?=(?:\p{N}{3})*+(?!\p{N})))?|\p{N}{1,3}(?=(?:\p{N}{3})*+(?!\p{N}))"
)
# Cuts before each group of three digits, counted from a number's end: (?=([0-9]{3})+(?![0-9])) in linear time.
_FEWER = r"[0-9]{1,2}(?=(?:[0-9]{3})*+(?![0-9]))"  # those before the groups
_REST = rf"(?:[^0-9]+(?:{_FEWER})?)*"
_THREES = rf"\A(?:{_FEWER}{_REST}|[^0-9]+(?:{_FEWER})?{_REST})|[0-9]{{3}}(?:(?=[0-9])|{_REST})"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\U0002ceb0-\U0002ebef\uf900-\ufaff\U0002f800-\U0002fa1f"
)
_DEEPSEEK_CJK = "[\u4e00-\u9fa5[\u0800-\u4e00&&\\S]\uac00-\ud7ff]+"
_DEEPSEEK_LETTERS = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_AFMOE_CJK = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_YOUTU_CJK = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    f"\ufe30-\ufe4f]+|[\u3105-\u312f]+|{_CJK}"
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_ASCII_PUNCTUATION = r"""[!"#$%\&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK_WORD = _ASCII_PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = _DEEPSEEK_WORD + r"| ?[\p{P}\p{S}]+[\r\n]*|" + _LINE_END


def _cased(letters: str, end: str = "") -> str:
    """Words of capitals, then small letters; a letter that is not ASCII counts as either."""
    upper, lower = f"[{letters}&&[^a-z]]", f"[{letters}&&[^A-Z]]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{upper}*{lower}+{end}|{before}{upper}+{lower}*{end}"


_TEKKEN = _cased(r"\p{L}") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _LINE_END
_AFTER_CASED = rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINE_END}"

_gpt2 = Split(regexes=(_GPT2,))
_starcoder = Split(regexes=(r"\p{N}", _GPT2))
_llama3 = Split(regexes=(rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|{_LINE_END}",))
_llama3_bos = replace(_llama3, ignore_merges=True, add_bos=True)
_qwen2 = Split(regexes=(rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_OTHER}|{_LINE_END}",))
_deepseek3 = Split(regexes=(r"\p{N}{1,3}", _CJK, _DEEPSEEK3))
_gpt4o = Split(regexes=(_cased(r"\p{L}", f"{_CONTRACTION}?") + _AFTER_CASED,))
_bloom = Split(regexes=(_BLOOM,))
_tiny_aya = Split(regexes=(_GROUPED_DIGITS, f"{_MARKED_WORD}{_CONTRACTION}?" + _AFTER_CASED))
_bailing = Split(regexes=(rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_OTHER}|\s*[\r\n]|{_SPACES}",))
_chatglm = replace(_llama3, default_bos=False)
_glm4 = replace(_chatglm, ignore_merges=True)
_gemma4 = Split(regexes=(_LINES,), byte_level=False, always_bos=True)

_SPLITS: dict[str, Split] = {
    "default": Split(regexes=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"), _gpt2
    ),
    **dict.fromkeys(("modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais"), _gpt2),
    **dict.fromkeys(("exaone4", "trillion", "granite-docling"), _gpt2),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"), _starcoder),
    **dict.fromkeys(("minerva-7b", "mellum2"), _starcoder),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), _llama3_bos),
    **dict.fromkeys(("lfm2", "jina-v5-nano"), _llama3_bos),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _llama3),
    "chatglm-bpe": _chatglm,
    **dict.fromkeys(("glm4", "glm5"), _glm4),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan"), _qwen2),
    **dict.fromkeys(("solar-open", "grok-2"), _qwen2),
    "qwen35": Split(
        regexes=(rf"{_CONTRACTION}|{_MARKED_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINE_END}",)
    ),
    "ufakzeka": Split(regexes=(rf"{_WORD}|\p{{N}}|{_OTHER}|{_LINE_END}",)),
    "laguna": Split(regexes=(_LINES, *_qwen2.regexes)),
    "seed-coder": Split(
        regexes=(rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINE_END}",),
    ),
    "minicpm5": Split(
        regexes=(r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_OTHER}|{_LINE_END}"), ignore_merges=True
    ),
    "exaone-moe": Split(
        regexes=(rf"{_CONTRACTION}|{_LETTERS_AND_SPACES}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}",)
    ),
    "jais-2": Split(
        regexes=(
            rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|\s*[\r\n]+|"
            + "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
            + r"|\s",
        )
    ),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _bailing),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _deepseek3),
    "spark2_5": Split(
        regexes=(r"\p{N}{1,3}", _CJK, rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACES}", r"\p{N}")
    ),
    "deepseek-llm": Split(
        regexes=(
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001-\u3002]+",
            r"\s+\z",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Split(regexes=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
    "youtu": Split(
        regexes=(
            _YOUTU_CJK,
            rf"{_MARKED_WORD}{_CONTRACTION}?|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINE_END}",
        ),
        ignore_merges=True,
    ),
    "falcon": Split(regexes=(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _bloom),
    "viking": Split(regexes=(_BLOOM, r"\p{N}")),
    "tekken": Split(regexes=(_TEKKEN,), ignore_merges=True, add_bos=True),
    "chameleon": Split(
        regexes=(
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _gpt4o),
    "granite-embed-multi-97m": Split(
        regexes=(_cased(r"\p{L}\p{M}", f"{_CONTRACTION}?") + _AFTER_CASED,), ignore_merges=True
    ),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _tiny_aya),
    "superbpe": Split(regexes=(r"\p{N}+", _THREES)),
    "afmoe": Split(regexes=(_GROUPED_DIGITS, _AFMOE_CJK, _DEEPSEEK3)),
    "kimi-k2": Split(
        regexes=(
            rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?|\p{{N}}{{1,3}}|{_OTHER}|{_LINE_END}",
        )
    ),
    **dict.fromkeys(("gemma4", "granite-embed-multi-311m"), _gemma4),
    "sarvam-moe": Split(regexes=(_LINES,), byte_level=False),
}


def split_names() -> tuple[str, ...]:
    """All values of `tokenizer.ggml.pre` that are known."""
    return tuple(_SPLITS)


def split_of(pre: str | None) -> Split:
    """The split that the file names; without a name llama.cpp's default, with a warning.

    Raises:
        ModelError: the name is not known.
    """
    if not pre:
        _log.warning(
            "The GGUF file does not say how its tokenizer splits words (tokenizer.ggml.pre), so that llama.cpp's "
            "default is used. A file that is converted again has it, and gives better text."
        )
        return _SPLITS["default"]
    if pre not in _SPLITS:
        raise ModelError(
            f"The GGUF file's tokenizer splits words in a way that is not known here: tokenizer.ggml.pre is {pre!r}. "
            "Use a newer rbee, or the model's safetensors with their tokenizer.json."
        )
    return _SPLITS[pre]
