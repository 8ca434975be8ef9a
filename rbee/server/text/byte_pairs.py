"""Tokenizers whose texts the native encoder of byte pairs takes: the same tokens in a tenth of the time.

Owns which these are, judged by their structure: byte-level vocabularies whose words are cut as GPT-2, Llama 3 or Qwen 2
do. All others stay with the `tokenizers` library. Does not know models.
"""

from __future__ import annotations

import itertools
import logging
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rbee.server.text._byte_pairs import BytePairEncoder
from rbee.server.text.plain_texts import made_of, removed_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenizers import AddedToken, Tokenizer

_log = logging.getLogger(__name__)

_SMALL, _BOTH_CASES, _FOLDED = range(3)
_DIGIT = r"\p{N}"
_DIGITS_STEP = "Digits"
_ALONE = {_DIGIT: 1, _DIGITS_STEP: 2}  # what a first step makes words of their own
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)": _FOLDED,
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])": _BOTH_CASES,
}
_DIGITS = {r"\p{N}{1,3}": 3, _DIGIT: 1}
_LLAMA3 = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_CLASS = re.compile(r"\[(?:[^\[\]\\]|\\.)+\]")  # a regular expression that matches single characters

# Tokenized both ways when the encoder is made: what they show is not left to the structure.
_SAMPLES = (
    "I'll say it's 12345 o'clock,  isn't IT'S?\n\n\tdef f(x_1):\r\n    return  x**2 #!  \n\x00\x7f <|im_start|>user ",
    "L\u2019\u00e9t\u00e9 na\u00efve \u4e2d\u6587\u3002 \u043f\u0440\u0438\u0432\u0435\u0442 \u00bd \u00a0 x",
    "\u0939\u093f\u0928 \u1112\u1161 \U0001f469\u200d\U0001f680 '\u017f \u2003x\u200b\u0664",
)


class _Rule(NamedTuple):
    """How a text is cut into words; see native/include/rbee/words.h."""

    llama3: bool
    contractions: int
    most_digits: int


_RULES = {_GPT2: _Rule(llama3=False, contractions=_SMALL, most_digits=0)} | {
    contractions + _LLAMA3 % digits: _Rule(llama3=True, contractions=number, most_digits=most)
    for (contractions, number), (digits, most) in itertools.product(_CONTRACTIONS.items(), _DIGITS.items())
}
_RULES[_GPT2 + r"|\s+"] = _RULES[_GPT2]  # white space that the other leaves is one character


class _Model(msgspec.Struct):
    type: Any = None
    vocab: msgspec.Raw = msgspec.Raw(b"{}")
    merges: msgspec.Raw = msgspec.Raw(b"[]")
    continuing_subword_prefix: Any = None
    end_of_word_suffix: Any = None
    unk_token: Any = None
    byte_fallback: Any = None
    dropout: Any = None
    ignore_merges: Any = None


class _File(msgspec.Struct):
    """What is looked at of a tokenizer.json."""

    model: _Model
    normalizer: Any = None
    pre_tokenizer: Any = None


def native_encoder(tokenizer: Tokenizer, tokenizer_json: bytes | None = None) -> BytePairEncoder | None:
    """The encoder of this tokenizer; None if it is of another kind.

    `tokenizer_json` is the tokenizer's file, if there is one.
    """
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        return None
    file = msgspec.json.decode(tokenizer_json or tokenizer.to_str(), type=_File)
    normalizer, steps = file.normalizer, _word_steps(file.pre_tokenizer)
    if steps is None or (normalizer is not None and normalizer != {"type": "NFC"}) or not _is_byte_pairs(file.model):
        return None
    added = tokenizer.get_added_tokens_decoder()  # whose ids may be others than the file's
    if not _are_plain(added.values(), normalized=normalizer is not None):
        return None
    encoder = BytePairEncoder(
        **steps.rule._asdict(),
        alone=steps.alone,
        vocabulary=bytes(file.model.vocab),
        merges=bytes(file.model.merges),
        added=[(token.content, token_id) for token_id, token in added.items()],
        removed=steps.removed,
        ignore_merges=bool(file.model.ignore_merges),
        only_composed=normalizer is not None,
    )
    return encoder if _agree(encoder, tokenizer, [token.content for token in added.values()]) else None


class _Steps(NamedTuple):
    alone: int  # what the first step makes words of their own
    rule: _Rule
    removed: bytes  # by the last step


def _word_steps(pre_tokenizer: dict[str, Any] | None) -> _Steps | None:
    """The steps that cut a text into words; None if there are others."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    removed = b""
    if steps and steps[-1].get("behavior") == "Removed":
        *steps, last = steps
        if last["invert"] or not _CLASS.fullmatch(last["pattern"].get("Regex", "")):
            return None
        removed = removed_by(made_of([last]))
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    *cuts, byte_level = steps
    regexes: list[str | None] = [_isolated(step) for step in cuts]
    if byte_level.get("use_regex", True):
        regexes.append(_GPT2)
    alone = _ALONE.get(regexes[0] or "", 0) if len(regexes) == 2 else 0
    rule = _RULES.get(regexes[-1] or "") if len(regexes) == 1 + (alone > 0) else None
    return None if rule is None else _Steps(alone, rule, removed)


def _isolated(step: dict[str, Any]) -> str | None:
    """The regular expression whose matches become words, or _DIGITS_STEP; None if it is neither."""
    if step["type"] == "Digits" and step["individual_digits"]:
        return _DIGITS_STEP
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return None
    pattern: str | None = step["pattern"].get("Regex")
    return pattern


def _are_plain(added: Iterable[AddedToken], *, normalized: bool) -> bool:
    """Whether these tokens are found as they are, in one search, before a text is normalized."""
    searches = {token.normalized for token in added}
    return (len(searches) <= 1 and not (normalized and True in searches)) and not any(
        not token.content or token.lstrip or token.rstrip or token.single_word for token in added
    )


def _is_byte_pairs(model: _Model) -> bool:
    ends = (model.continuing_subword_prefix, model.end_of_word_suffix)
    others = (model.dropout, model.byte_fallback, model.unk_token is not None)
    return model.type == "BPE" and not any(ends + others)


def _agree(encoder: BytePairEncoder, tokenizer: Tokenizer, added: Sequence[str]) -> bool:
    for sample in (*_SAMPLES, " ".join(added)):
        ids = encoder.encode(sample, len(sample.encode()))
        if ids is not None and ids != tokenizer.encode(sample, add_special_tokens=False).ids:
            _log.warning(
                "This tokenizer.json is not what it seems; its texts are tokenized by the library, which takes longer"
            )
            return False
    return True
