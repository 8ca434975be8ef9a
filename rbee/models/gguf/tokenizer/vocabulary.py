"""A GGUF file's vocabulary, checked: its tokens, what kind each is, and its special ids.

Owns the keys `tokenizer.ggml.*` except the merges, and llama.cpp's rules on which tokens are special and which end a
generation. Does not know how text is split or merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rbee.errors import ModelError
from rbee.models.gguf.tokenizer.splits import Split, split_of

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "tokenizer.ggml."

# What llama.cpp takes for a file that does not name them, by tokenizer.ggml.model.
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "gemma4": {},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103},
}
_ID_NAMES = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pad", "fim_rep", "fim_sep")

# Tokens that end a generation wherever they stand in a vocabulary.
_ENDS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "[e~[",
    }
)
# Texts of the tokens for fill-in-the-middle; those of the first three names only become special.
_FILL_IN = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_OLD_NAMES = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # gpt-oss needs them in its text


class Kind(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class SpecialTokenIds(NamedTuple):
    """None is a token that the vocabulary does not have."""

    bos: int | None
    eos: int | None
    ends: frozenset[int]  # each ends a generation; the EOS token among them


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id. Their texts differ, and every id in it is below their number."""

    model: str  # tokenizer.ggml.model
    split: Split | None  # of byte pairs
    tokens: list[str]
    ids: dict[str, int]
    kinds: list[int]
    ends: frozenset[int]
    special_ids: dict[str, int | None]

    @property
    def special(self) -> list[int]:
        """Tokens that text can name and that are not shown."""
        return [number for number, kind in enumerate(self.kinds) if kind in (Kind.CONTROL, Kind.UNKNOWN)]

    @property
    def user_defined(self) -> list[int]:
        """Tokens that text always contains whole."""
        return [number for number, kind in enumerate(self.kinds) if kind == Kind.USER_DEFINED]


def special_token_ids(metadata: Mapping[str, Any]) -> SpecialTokenIds:
    """The ids of the BOS and EOS tokens, and of all tokens that end a generation.

    Raises:
        ModelError: the metadata have no vocabulary that can be used.
    """
    vocabulary = read_vocabulary(metadata)
    return SpecialTokenIds(vocabulary.special_ids["bos"], vocabulary.special_ids["eos"], vocabulary.ends)


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary in `metadata`.

    Raises:
        ModelError: a key is missing, of another type, or too short; two tokens are the same.
    """
    model = text(metadata, "model")
    if model is None:
        raise ModelError(f"The GGUF file has no vocabulary: {PREFIX}model is missing. Convert the model again.")
    if model not in _DEFAULT_IDS:
        raise ModelError(
            f"The GGUF file's vocabulary is of the kind {model!r} ({PREFIX}model), and "
            f"{', '.join(_DEFAULT_IDS)} are supported. Use another model, or a server that supports this one."
        )
    split = None
    if model in ("gpt2", "gemma4"):
        split = split_of("gemma4" if model == "gemma4" else text(metadata, "pre"))
    tokens = strings(metadata, "tokens")
    if not tokens:
        raise ModelError(f"The GGUF file's vocabulary ({PREFIX}tokens) is missing or empty. Convert the model again.")
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        first = next(number for number, token in enumerate(tokens) if ids[token] != number)
        raise ModelError(
            f"The GGUF file's vocabulary has the token {tokens[first]!r} twice, as {first} and {ids[tokens[first]]}. "
            "Convert the model again."
        )
    types = numbers(metadata, "token_type", len(tokens), whole=True)
    kinds: list[int] = [Kind.NORMAL] * len(tokens) if types is None else types.astype(np.int64).tolist()
    special_ids = _special_ids(metadata, model, len(tokens), default_bos=split is None or split.default_bos)
    ends = _mark_specials(ids, kinds, special_ids)
    return Vocabulary(model, split, tokens, ids, kinds, ends, special_ids)


def text(metadata: Mapping[str, Any], name: str) -> str | None:
    """The text under tokenizer.ggml.`name`."""
    value = metadata.get(PREFIX + name)
    if value is not None and not isinstance(value, str):
        raise _wrong(name, value, "a text")
    return value


def flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:  # noqa: FBT001 - as dict.get has it
    """The truth value under tokenizer.ggml.`name`."""
    value = metadata.get(PREFIX + name, default)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def strings(metadata: Mapping[str, Any], name: str) -> list[str] | None:
    """The list of texts under tokenizer.ggml.`name`."""
    value = metadata.get(PREFIX + name)
    if value is not None and not (isinstance(value, list) and set(map(type, value)) <= {str}):
        raise _wrong(name, value, "a list of texts")
    return value


def numbers(metadata: Mapping[str, Any], name: str, count: int, *, whole: bool = False) -> np.ndarray | None:
    """The first `count` numbers of the array under tokenizer.ggml.`name`, `whole` or at least not infinite or NaN."""
    value = metadata.get(PREFIX + name)
    if value is None:
        return None
    kinds = "iu" if whole else "iuf"
    if not (isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in kinds):
        raise _wrong(name, value, "a list of whole numbers" if whole else "a list of numbers")
    if len(value) < count:
        raise ModelError(
            f"The GGUF file has {len(value)} values in {PREFIX}{name}, and its vocabulary has {count} tokens. "
            "Convert the model again."
        )
    if not np.isfinite(value[:count]).all():
        raise ModelError(f"The GGUF file has a value in {PREFIX}{name} that is no number. Convert the model again.")
    return value[:count]


def _wrong(name: str, value: object, expected: str) -> ModelError:
    return ModelError(
        f"The GGUF file's {PREFIX}{name} is {type(value).__name__}, and {expected} is expected. "
        "Convert the model again."
    )


def _special_ids(
    metadata: Mapping[str, Any], model: str, num_tokens: int, *, default_bos: bool
) -> dict[str, int | None]:
    """Ids by name. One that the file names wrongly, beyond its tokens, counts as not named."""
    result = {}
    for name in (*_ID_NAMES, *_OLD_NAMES, *_OLD_NAMES.values()):
        token_id: int | None = _DEFAULT_IDS[model].get(name)
        if name == "bos" and not default_bos:
            token_id = None
        named = metadata.get(f"{PREFIX}{name}_token_id")
        if named is not None:
            if isinstance(named, bool) or not isinstance(named, int):
                raise _wrong(f"{name}_token_id", named, "a token id")
            token_id = named if 0 <= named < num_tokens else token_id
        result[name] = token_id if token_id is not None and token_id < num_tokens else None
    for name, old in _OLD_NAMES.items():
        old_id = result.pop(old)
        result[name] = result[name] if old_id is None else old_id
    return result


def _mark_specials(ids: dict[str, int], kinds: list[int], special_ids: dict[str, int | None]) -> frozenset[int]:
    """Set the kind of tokens that are special by their text; returns those that end a generation."""
    for name, texts in _FILL_IN.items():
        if special_ids[name] is None:
            special_ids[name] = found = next((ids[token] for token in texts if token in ids), None)
            if found is not None:
                kinds[found] = Kind.CONTROL
    ends = {token_id for name in ("fim_pad", "fim_rep", "fim_sep") if (token_id := special_ids[name]) is not None}
    for token in _ENDS & ids.keys():
        ends.add(ids[token])
        kinds[ids[token]] = Kind.CONTROL
    for token in _ALWAYS_SHOWN:
        if token in ids:
            kinds[ids[token]] = Kind.USER_DEFINED
    ends |= {token_id for name in ("eos", "eot", "eom") if (token_id := special_ids[name]) is not None}

    def ending(*tokens: str) -> bool:
        return any(ids.get(token) in ends for token in tokens)

    # In the vocabularies of gpt-oss and solar-open this is the end of a message, not of a generation.
    if ending("<|end|>") and ending("<|call|>", "<|calls|>") and ending("<|return|>", "<|flush|>"):
        ends.discard(ids["<|end|>"])
        kinds[ids["<|end|>"]] = Kind.USER_DEFINED
    # These have an ordinary </s>.
    if ending("</s>") and ending("<|tool_response>", "<|plamo:eos|>"):
        ends.discard(ids["</s>"])
        kinds[ids["</s>"]] = Kind.NORMAL
    return frozenset(ends)
