"""The `tokenizers` library's models, normalizers and decoders that do what llama.cpp does for each kind of vocabulary.

Owns how each kind is expressed. Does not know special tokens.

Byte pairs ("gpt2", "gemma4") come with their merges. SentencePiece's ("llama") come with a score for each token: two
neighbours merge if together they are a token, the highest score first, and of equal scores the leftmost. `tokenizers`
wants an order of pairs instead. Among equal scores the longer token comes first here: a run of spaces, which is where
vocabularies have equal scores, then grows from the left as it does in llama.cpp. Tokens of equal scores that overlap in
another way can merge in another order than in llama.cpp.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from rbee.errors import ModelError
from rbee.models.gguf.tokenizer._merges import merges_of
from rbee.models.gguf.tokenizer.vocabulary import PREFIX, Kind, flag, numbers, strings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rbee.models.gguf.tokenizer.splits import Split
    from rbee.models.gguf.tokenizer.vocabulary import Vocabulary

_SPACE = "\u2581"  # SentencePiece's mark for a space
_NO_LIMIT = 1 << 31
_COMMENT = "#version"  # begins a line of a merges.txt that is no merge


def byte_pairs(metadata: Mapping[str, Any], vocabulary: Vocabulary, split: Split) -> Tokenizer:
    """For tokenizer.ggml.model "gpt2" and "gemma4"."""
    model = models.BPE(
        vocabulary.ids,
        _merges(metadata),
        ignore_merges=split.ignore_merges,
        byte_fallback=not split.byte_level,
    )
    tokenizer = Tokenizer(model)
    words: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(regex), "isolated") for regex in split.regexes
    ]
    if split.byte_level:
        words.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        unknown = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.ids.keys())
        if unknown:  # dropped only now, so that what is beside it does not merge
            words.append(pre_tokenizers.Split(Regex(f"[{re.escape(''.join(unknown))}]"), "removed"))
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
        tokenizer.decoder = _spaces_and_bytes()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    return tokenizer


def sentence_pieces(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> Tokenizer:
    """For tokenizer.ggml.model "llama", without its merges. Text after a special token begins with a space too."""
    unknown = vocabulary.special_ids["unknown"]
    model = models.BPE(
        vocabulary.ids,
        [],
        byte_fallback=True,
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", _SPACE)
    prefix = flag(metadata, "add_space_prefix", default=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    tokenizer.decoder = _spaces_and_bytes()
    return tokenizer


def unigrams(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> Tokenizer:
    """For tokenizer.ggml.model "t5"."""
    scores = _scores(metadata, vocabulary)
    kinds = np.array(vocabulary.kinds)
    normal = scores[kinds == Kind.NORMAL]
    # The library takes the lowest score of all tokens for that of an unknown one, llama.cpp that of the normal ones.
    scores = np.maximum(scores, normal.min(initial=0.0))
    scores[kinds == Kind.USER_DEFINED] = 0.0
    unknown = vocabulary.special_ids["unknown"]
    if unknown is None:
        raise ModelError("The GGUF file's vocabulary has no token for unknown words. Convert the model again.")
    tokenizer = Tokenizer(
        models.Unigram(list(zip(vocabulary.tokens, scores.tolist(), strict=True)), unknown, byte_fallback=False)
    )
    steps: list[normalizers.Normalizer] = []
    charsmap = metadata.get(PREFIX + "precompiled_charsmap")
    if charsmap is not None:
        steps.append(normalizers.Precompiled(_charsmap(charsmap)))
    if flag(metadata, "remove_extra_whitespaces", default=False):
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex("^ | $"), "")]
        steps.append(normalizers.Prepend(" "))
    elif flag(metadata, "add_space_prefix", default=False):
        steps.append(normalizers.Prepend(" "))
    steps.append(normalizers.Replace(" ", _SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = _spaces_and_bytes()
    return tokenizer


def word_pieces(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> Tokenizer:
    """For tokenizer.ggml.model "bert", whose tokens that begin a word begin with the mark for a space."""
    unknown = vocabulary.special_ids["unknown"]
    if unknown is None:
        raise ModelError("The GGUF file's vocabulary has no token for unknown words. Convert the model again.")
    tokenizer = Tokenizer(
        models.WordPiece(
            vocabulary.ids,
            unk_token=vocabulary.tokens[unknown],
            continuing_subword_prefix="",
            max_input_chars_per_word=_NO_LIMIT,
        )
    )
    lowercase = flag(metadata, "normalizer.lowercase", default=True)
    strip_accents = flag(metadata, "normalizer.strip_accents", default=lowercase)
    steps: list[normalizers.Normalizer] = [normalizers.Replace(_SPACE, "\uffff")]  # the mark is for what is a space
    if strip_accents:  # llama.cpp then keeps only the first part of a Korean syllable
        steps += [
            normalizers.Replace(
                Regex(f"[{chr(0xAC00 + 588 * first)}-{chr(0xAC00 + 588 * first + 587)}]"), chr(0x1100 + first)
            )
            for first in range(19)
        ]
        steps += [normalizers.NFD(), normalizers.Replace(Regex(r"\p{M}"), "")]
    steps.append(normalizers.Replace(Regex(r"[[\p{Cc}\p{Cf}\p{Co}\uFFFD]&&\S]"), ""))
    if lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(rf"[\p{{P}}$+<=>^`|~{_CHINESE}]"), "isolated"),
            pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always", split=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.Fuse()])
    return tokenizer


_CHINESE = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f"
)


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs in the file, best first; of a pair that is there twice, the first one counts."""
    lines = strings(metadata, "merges")
    if lines is None:
        raise ModelError(f"The GGUF file has no {PREFIX}merges, which its vocabulary needs. Convert the model again.")
    pairs = [(left, right) for left, _, right in map(str.partition, lines, " " * len(lines))]
    if not all(right for _, right in pairs):
        line = next(line for line, (_, right) in zip(lines, pairs, strict=True) if not right)
        raise ModelError(f"The GGUF file's {PREFIX}merges has {line!r}, which is no pair. Convert the model again.")
    return pairs if len(set(lines)) == len(lines) else list(dict.fromkeys(pairs))


def merges_by_score(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[str] | list[list[str]]:
    """The merges of a "llama" vocabulary, best first, in one of the two forms that tokenizer.json can have.

    The form with a text per merge takes half the memory to read. The other one is for a vocabulary with a text that the
    library takes for a comment.
    """
    tokens = vocabulary.tokens
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    order = np.lexsort((-lengths, -_scores(metadata, vocabulary))).tolist()
    # In a text that is merged, every space has become the mark for one.
    merges = merges_of([token for token_id in order if " " not in (token := tokens[token_id])])
    if any(merge.startswith(_COMMENT) for merge in merges):
        return [merge.split(" ") for merge in merges]
    return merges


def _scores(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> np.ndarray:
    """A float64 for each token; 0 for all of them if the file has none."""
    scores = numbers(metadata, "scores", len(vocabulary.tokens))
    return np.zeros(len(vocabulary.tokens)) if scores is None else scores.astype(np.float64)


def _charsmap(value: object) -> bytes:
    """SentencePiece's compiled normalization, if no text can lead out of it.

    It is the size of a trie in bytes, the trie as a double array (darts-clone's units), and texts that end in NUL.
    """
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in (np.int8, np.uint8) and len(value) > 4:
        data = value.tobytes()
        [size] = struct.unpack_from("<I", data)
        texts = data[4 + size :]
        if size > 0 and size % 4 == 0 and _is_sound(np.frombuffer(data[4 : 4 + size], "<u4").astype(np.int64), texts):
            return data
    raise ModelError(f"The GGUF file's {PREFIX}precompiled_charsmap makes no sense. Convert the model again.")


def _is_sound(units: np.ndarray, texts: bytes) -> bool:
    """Whether every step from a unit ends at a unit, every leaf is a value, and every value the start of a text."""
    is_value = units >> 31 == 1
    children = np.arange(len(units)) ^ ((units >> 10) << ((units >> 6) & 8))
    if np.any((children | 255 >= len(units))[~is_value]):
        return False
    has_leaf = ~is_value & (units >> 8 & 1 == 1)
    starts = {0, *(np.flatnonzero(np.frombuffer(texts, np.uint8) == 0) + 1).tolist()}
    try:
        texts.decode()
    except UnicodeDecodeError:
        return False
    values = set((units[is_value] & 0x7FFFFFFF).tolist())
    return bool(is_value[children[has_leaf]].all()) and texts.endswith(b"\0") and values <= starts - {len(texts)}


def _spaces_and_bytes() -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
