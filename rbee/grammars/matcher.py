"""One output as its grammar sees it: which tokens may come next.

Owns all calls of llguidance for an output; they run without Python's lock. Does not know sources, or threads: a matcher
is used by one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rbee.errors import GrammarError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbee.grammars.library import Tokenizer

_OF_SCHEMA = "at 1(8): failed to compile JSON schema: "  # where a source is nothing else
_REASONS = {"NoExtensionBias": "it allows no output at all"}


class Matcher:
    """Follows one output, token by token; after a GrammarError no further.

    Args:
        handle: an LlgMatcher, in any state; this object frees it.
        tokenizer: what it was made with.

    Raises:
        GrammarError: it is in a state of error.
    """

    def __init__(self, handle: int, tokenizer: Tokenizer) -> None:
        self._handle = handle
        self._tokenizer = tokenizer
        self._library = tokenizer.library
        self._check()

    @classmethod
    def compile(cls, lark: str, tokenizer: Tokenizer) -> Matcher:
        """That of an output that is still empty."""
        return cls(tokenizer.new_matcher(lark), tokenizer)

    def __del__(self) -> None:
        self._library.llg_free_matcher(self._handle)

    def copy(self) -> Matcher:
        """One in the same state, which shares nothing that changes: each may be in a thread of its own.

        Takes 10 to 200 us, and a millisecond where the grammar is large: what this one has learned of it is copied.
        """
        return Matcher(self._library.llg_clone_matcher(self._handle), self._tokenizer)

    def fill(self, mask: NDArray[np.uint32]) -> bool:
        """Set the bits of the tokens that may come next, and no others; True: the output may end here.

        Args:
            mask: uint32 [num_words of the vocabulary].

        Raises:
            GrammarError: no token may come, or none is found within the limits.
        """
        if failed := self._library.llg_matcher_compute_mask_into(self._handle, mask.ctypes.data, mask.nbytes):
            self._check()
        assert not failed, "the mask has another size"  # which is no error of the matcher's
        word, bit = divmod(self._tokenizer.end, 32)
        may_end = bool(mask[word] >> np.uint32(bit) & 1)
        if may_end:
            mask[word] &= np.uint32(~(1 << bit) & 0xFFFF_FFFF)
        return may_end

    def accept(self, token_id: int) -> bool:
        """Go on behind a token that the mask allowed; True: the output is complete, and nothing more may come.

        Raises:
            GrammarError: the token is not allowed, or beyond the limits.
        """
        if self._library.llg_matcher_consume_token(self._handle, token_id):
            self._check()
        return bool(self._library.llg_matcher_is_stopped(self._handle))

    def _check(self) -> None:
        error = self._library.llg_matcher_get_error(self._handle)
        if error is not None:
            raise GrammarError(_reason(error.decode(errors="replace")))


def _reason(message: str) -> str:
    """What llguidance says, on one line, without the state and the source that it shows."""
    first, *others = message.partition("\n<")[0].strip().split("\n")
    reason = " ".join([first.removeprefix(_OF_SCHEMA), *(line for line in others if line.startswith("error: "))])
    return _REASONS.get(reason, reason).rstrip(".")
