"""llguidance's C interface (its llguidance.h), in the library that its Python package brings.

Owns the form of its structs and functions. Their calls run without Python's lock, which is why these are not the
package's classes: the one for a tokenizer would keep the lock for a tenth of a second (49,152 tokens) or a whole one
(262,144), and steps wait. Does not know grammars or models.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_bool,
    c_char_p,
    c_int32,
    c_size_t,
    c_ubyte,
    c_uint32,
    c_uint64,
    c_void_p,
    create_string_buffer,
    sizeof,
)
from pathlib import Path
from typing import Any

import numpy as np

from rbee.errors import GrammarError

SPECIAL = b"\xff"  # in front of a token's bytes; no text has this byte
_LONGEST_ERROR = 1024  # bytes
_LATER_FIELDS = 256  # bytes of zeros behind a struct without a size: the defaults of fields that later versions append


class _TokenizerInit(Structure):
    """LlgTokenizerInitV2."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("vocab_size", c_uint32),
        ("tok_eos", c_uint32),
        ("token_lens", c_void_p),
        ("token_bytes", c_char_p),
        ("tokenizer_json", c_char_p),
        ("tokenize_assumes_string", c_bool),
        ("tokenize_fn", c_void_p),
        ("use_approximate_greedy_tokenize_fn", c_bool),
        ("tokenize_user_data", c_void_p),
        ("slices", c_void_p),
        ("tok_eos_extra", c_void_p),
        ("tok_eos_extra_count", c_uint32),
    )


class _Limits(Structure):
    """LlgParserLimits; 0 is the default."""

    _fields_ = (
        ("max_items_in_row", c_size_t),
        ("initial_lexer_fuel", c_uint64),
        ("step_lexer_fuel", c_uint64),
        ("step_max_items", c_size_t),
        ("max_lexer_states", c_size_t),
        ("max_grammar_size", c_size_t),
        ("precompute_large_lexemes", c_bool),
        ("verbose_errors", c_bool),
    )


class _MatcherInit(Structure):
    """LlgConstraintInit."""

    _fields_ = (
        ("tokenizer", c_void_p),
        ("log_buffer_level", c_uint32),
        ("log_stderr_level", c_uint32),
        ("ff_tokens_ok", c_bool),
        ("backtrack_ok", c_bool),
        ("limits", _Limits),
        ("later", c_ubyte * _LATER_FIELDS),
    )


_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # what each returns, and takes
    "llg_new_tokenizer_v2": (c_void_p, POINTER(_TokenizerInit), c_char_p, c_size_t),
    "llg_free_tokenizer": (None, c_void_p),
    "llg_constraint_init_set_defaults": (None, POINTER(_MatcherInit), c_void_p),
    "llg_new_matcher": (c_void_p, POINTER(_MatcherInit), c_char_p, c_char_p),
    "llg_clone_matcher": (c_void_p, c_void_p),
    "llg_free_matcher": (None, c_void_p),
    "llg_matcher_compute_mask_into": (c_int32, c_void_p, c_void_p, c_size_t),
    "llg_matcher_consume_token": (c_int32, c_void_p, c_uint32),
    "llg_matcher_is_stopped": (c_bool, c_void_p),
    "llg_matcher_get_error": (c_char_p, c_void_p),
}


@functools.cache
def load() -> ctypes.CDLL:
    """The one that is loaded; its Python package is not imported, which takes a tenth of a second."""
    spec = importlib.util.find_spec("llguidance")
    assert spec is not None, "it is among our requirements"
    [path] = [file for folder in spec.submodule_search_locations or () for file in Path(folder).glob("_lib.*so")]
    library = ctypes.CDLL(str(path))
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Tokenizer:
    """Tokens that grammars can be compiled for; then `handle` is an LlgTokenizer.

    Args:
        tokens: their bytes, by id; with `SPECIAL` in front it is a name, which no text has. Behind them comes `end`.

    Raises:
        GrammarError: llguidance cannot take them.
    """

    handle: int | None = None

    def __init__(self, tokens: list[bytes]) -> None:
        self.library = load()
        self.end = len(tokens)  # stands for the end of an output
        sizes = np.fromiter(map(len, (*tokens, b"")), np.uint32)
        init = _TokenizerInit(
            struct_size=sizeof(_TokenizerInit),
            vocab_size=len(sizes),
            tok_eos=self.end,
            token_lens=sizes.ctypes.data,
            token_bytes=b"".join(tokens),
            use_approximate_greedy_tokenize_fn=True,  # for texts that a grammar forces, which none of ours does
        )
        error = create_string_buffer(_LONGEST_ERROR)
        self.handle = self.library.llg_new_tokenizer_v2(byref(init), error, len(error))
        if not self.handle:
            raise GrammarError(error.value.decode(errors="replace"))

    def __del__(self) -> None:
        if self.handle:
            self.library.llg_free_tokenizer(self.handle)

    def new_matcher(self, lark: str) -> int:
        """An LlgMatcher, perhaps in a state of error. It has to be freed before this tokenizer is.

        Raises:
            GrammarError: the source is no text that C has.
        """
        try:
            source = lark.encode()
        except UnicodeEncodeError as error:
            raise GrammarError(f"it has U+{ord(lark[error.start]):04X}, which is half a character") from error
        if b"\0" in source:
            raise GrammarError("it has U+0000")
        init = _MatcherInit()
        self.library.llg_constraint_init_set_defaults(byref(init), self.handle)
        init.log_stderr_level = 0
        init.limits.verbose_errors = False  # they would repeat the whole grammar
        return int(self.library.llg_new_matcher(byref(init), b"lark", source))
