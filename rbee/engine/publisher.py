"""Gathers what a step has to say and hands it to the transport in one commit.

Owns the arrays of a commit. Does not know why a sequence ended or how a ring works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbee.messages import FinishReason
    from rbee.transport import Producer

_NO_RINGS = np.empty(0, np.uint32)
_NO_LOGPROBS = np.empty(0, np.float32)


class Publisher:
    """The engine's end of the rings, seen from the step."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._finished: dict[int, FinishReason] = {}

    def finish(self, ring: int, reason: FinishReason) -> None:
        """With the next commit, `ring` ends with `reason`, after its last token."""
        assert ring not in self._finished, "a ring ends once"
        self._finished[ring] = reason

    def commit(
        self,
        rings: NDArray[np.uint32] = _NO_RINGS,
        tokens: NDArray[np.uint32] = _NO_RINGS,
        logprobs: NDArray[np.float32] = _NO_LOGPROBS,
    ) -> bool:
        """Publish a step: tokens [n] with logprobs [n] for rings [n], and all pending ends. False: there was nothing.

        Raises:
            TransportError: a ring that is not open, or has no space; nothing was published then.
        """
        if len(rings) == 0 and not self._finished:
            return False
        if self._finished:
            finished = np.fromiter(self._finished.keys(), np.uint32, len(self._finished))
            reasons = np.fromiter(self._finished.values(), np.uint8, len(self._finished))
            self._producer.commit(rings, tokens, logprobs, finished, reasons)
            self._finished.clear()
        else:
            self._producer.commit(rings, tokens, logprobs)
        return True
