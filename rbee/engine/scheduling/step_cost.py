"""How many prompt tokens a step can take before the streams beside them notice, learnt from the steps themselves.

Owns two estimates, of seconds for a step that only decodes and of seconds that each prompt token adds, and the limits
that follow. Does not know who runs (`scheduler`), what computes or which clock measures.

The model: a step takes decode(n) + per_token * p seconds for n decoding sequences and p prompt tokens, where decode
grows ever more slowly with n, and both change slowly. Only steps without prompt tokens teach decode(n); while prompts
keep coming, a step now and then is limited to a single prompt token, which costs what a decode does, so that the
estimate is never old. A step that does not obey the model puts the limits off until the next ones correct them.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

_DECODE_MEMORY = 8
"""Decode steps of one batch size that an estimate looks back on."""
_PROMPT_MEMORY = 512
"""Prompt tokens that the cost of one looks back on: by tokens, because a short chunk shows hardly more than noise."""
_LOOK_EVERY = 64
"""Steps with prompt tokens after which the time of one without is looked at again."""
_OUTLIER = 2.0
"""A step that takes longer than so many times what was expected counts as one that took just that."""
_RAMP = 4
"""A budget is at most so many times the largest chunk seen: the model is not trusted much further than it was tried."""


class _Mean(NamedTuple):
    """What a decode-only step of some bucket takes, lately."""

    num_decodes: float
    seconds: float
    num_seen: int


class StepCost:
    """Sees how long each step took, and says how many prompt tokens the next one may have."""

    def __init__(self, max_slowdown: float, *, first_budget: int = 32, min_budget: int = 4) -> None:
        """Start without any knowledge.

        A step with prompt tokens shall take at most `max_slowdown` (> 1) times as long as one without. It may have
        `first_budget` prompt tokens while nothing is known, and `min_budget` at any cost.
        """
        assert max_slowdown > 1
        assert first_budget >= min_budget >= 1
        self._max_slowdown = max_slowdown
        self._first_budget = first_budget
        self._min_budget = min_budget
        # Decode-only steps by batch size, in buckets 0: 1, 1: 2, 2: 3 to 4, 3: 5 to 8 and so on.
        self._decodes: dict[int, _Mean] = {}
        # By the same buckets: steps with prompt tokens since one without.
        self._age: dict[int, int] = {}
        self._looked_at = 0  # the decodes that the coming step has beside its one prompt token
        # Sums over the last _PROMPT_MEMORY tokens or so: seconds above what the decodes alone take, and tokens.
        self._prompt_seconds = 0.0
        self._prompt_tokens = 0.0
        self._largest_chunk = 0

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learn from a step of so many seconds: sequences with one token to go, and the tokens of all others."""
        looked_at, self._looked_at = self._looked_at, 0
        if num_prompt_tokens == 0:
            if looked_at and num_decodes == looked_at + 1:  # a single token of a prompt looks like one more decode
                num_decodes = looked_at
            if num_decodes:
                self._observe_decodes(num_decodes, seconds)
            return
        bucket = _bucket(num_decodes)
        if num_decodes and bucket in self._age:
            self._age[bucket] += 1
        # A step has its fixed cost without any decode too: then one of the prompt's tokens stands for it.
        decode = self._decode_seconds(max(num_decodes, 1))
        if decode is None:
            if num_decodes:
                return  # the parts of the two cannot be separated yet
            decode = 0.0
        per_token = self._per_token()
        if per_token is not None:
            seconds = _clip(seconds, decode + per_token * num_prompt_tokens)
        forget = math.exp(-num_prompt_tokens / _PROMPT_MEMORY)
        self._prompt_seconds = forget * self._prompt_seconds + seconds - decode
        self._prompt_tokens = forget * self._prompt_tokens + num_prompt_tokens
        self._largest_chunk = max(self._largest_chunk, num_prompt_tokens)

    def prompt_budget(self, num_decodes: int, num_prompts: int = 1) -> int:
        """Prompt tokens that a step may have beside `num_decodes` decoding sequences.

        At least `min_budget`, or 1 to measure what the decodes take alone; sys.maxsize when nothing decodes. When more
        sequences wait for their prompts (`num_prompts`) than decode, the step may take longer in proportion.
        """
        if num_decodes == 0:
            return sys.maxsize
        if self._age.get(_bucket(num_decodes), _LOOK_EVERY) >= _LOOK_EVERY:
            self._looked_at = num_decodes
            return 1
        decode, per_token = self._decode_seconds(num_decodes), self._per_token()
        if decode is None or per_token is None:
            return self._first_budget
        ramp = max(self._first_budget, _RAMP * self._largest_chunk)
        room = (self._max_slowdown - 1) * decode * max(1.0, num_prompts / num_decodes)
        # Not written as a division: a token may cost nothing.
        if ramp * per_token <= room:
            return ramp
        return max(self._min_budget, int(room / per_token))

    def _observe_decodes(self, num_decodes: int, seconds: float) -> None:
        bucket = _bucket(num_decodes)
        self._age[bucket] = 0
        mean = self._decodes.get(bucket, _Mean(0.0, 0.0, 0))
        seconds = _clip(seconds, mean.seconds)
        num_seen = min(mean.num_seen + 1, _DECODE_MEMORY)
        self._decodes[bucket] = _Mean(
            mean.num_decodes + (num_decodes - mean.num_decodes) / num_seen,
            mean.seconds + (seconds - mean.seconds) / num_seen,
            num_seen,
        )

    def _decode_seconds(self, num_decodes: int) -> float | None:
        """Seconds of a step that only decodes; None if no such step was seen yet.

        Sizes not seen lie on the line between their neighbours, (0, 0) being one: below the flattening curve, so
        rather too
        quick than too slow. Those beyond the largest take as long as the largest.
        """
        size = seconds = 0.0
        for _, mean in sorted(self._decodes.items()):
            if mean.num_decodes >= num_decodes:
                return seconds + (mean.seconds - seconds) * (num_decodes - size) / (mean.num_decodes - size)
            size, seconds, _ = mean
        return seconds if size else None

    def _per_token(self) -> float | None:
        """Seconds that a prompt token adds, at least 0; None if none was seen yet."""
        if self._prompt_tokens == 0:
            return None
        return max(0.0, self._prompt_seconds / self._prompt_tokens)


def _bucket(num_decodes: int) -> int:
    """0: up to 1, 1: 2, 2: 3 to 4, 3: 5 to 8 and so on."""
    return max(num_decodes - 1, 0).bit_length()


def _clip(seconds: float, expected: float) -> float:
    return min(seconds, _OUTLIER * expected) if expected > 0 else seconds
