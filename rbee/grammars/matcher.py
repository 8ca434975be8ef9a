"""One output as its grammar sees it: which tokens may come next.

Owns all calls of llguidance for an output. Does not know sources, or threads: a matcher is used by one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import numpy as np

from rbee.errors import GrammarError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llguidance import LLMatcher
    from numpy.typing import NDArray

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")

_OF_SCHEMA = "at 1(8): failed to compile JSON schema: "  # where a source is nothing else
_REASONS = {"NoExtensionBias": "it allows no output at all"}


class Matcher:
    """Follows one output, token by token; after a GrammarError no further.

    Args:
        matcher: llguidance's, in any state.
        end: the token that stands for the end of the output.

    Raises:
        GrammarError: it is in a state of error.
    """

    def __init__(self, matcher: LLMatcher, end: int) -> None:
        self._matcher = matcher
        self._end = end
        self._check()

    def copy(self) -> Matcher:
        """Another one in the same state. What both learn of the grammar is shared. Takes some microseconds."""
        return Matcher(guarded(self._matcher.deep_copy), self._end)

    def fill(self, mask: NDArray[np.uint32]) -> bool:
        """Set the bits of the tokens that may come next, and no others; True: the output may end here.

        Runs without Python's lock.

        Args:
            mask: uint32 [num_words of the vocabulary].

        Raises:
            GrammarError: no token may come, or none is found within the limits.
        """
        guarded(self._matcher.unsafe_compute_mask_ptr, mask.ctypes.data, mask.nbytes)
        self._check()
        word, bit = divmod(self._end, 32)
        may_end = bool(mask[word] >> np.uint32(bit) & 1)
        if may_end:
            mask[word] &= np.uint32(~(1 << bit) & 0xFFFF_FFFF)
        return may_end

    def accept(self, token_id: int) -> bool:
        """Go on behind a token that the mask allowed; True: the output is complete, and nothing more may come.

        Raises:
            GrammarError: the token is not allowed, or beyond the limits.
        """
        guarded(self._matcher.consume_token, token_id)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(_reason(self._matcher.get_error()))


def guarded(call: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
    """What the call returns; GrammarError for whatever it raises: a panic of llguidance's is no Exception."""
    try:
        return call(*arguments)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise GrammarError(f"llguidance fails: {error}") from error


def _reason(message: str) -> str:
    """What llguidance says, on one line, without the state and the source that it shows."""
    first, *others = message.partition("\n<")[0].strip().split("\n")
    reason = " ".join([first.removeprefix(_OF_SCHEMA), *(line for line in others if line.startswith("error: "))])
    return _REASONS.get(reason, reason).rstrip(".")
