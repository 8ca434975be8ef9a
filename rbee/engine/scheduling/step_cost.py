"""Limits the prompt tokens of a step, from measured step times, so that the streams beside them slow down little.

Owns two estimates: seconds of a decode-only step, and seconds per prompt token. Does not know queues or clocks.

The model: a step takes decode(n) + per_token * p seconds for n decoding sequences and p prompt tokens. decode(n) is
concave, and both change slowly. Only steps without prompt tokens update decode(n). While prompts keep coming, a step
now and then gets a single prompt token, which costs as much as a decode, so that the estimate is never old. A step
that does not fit the model distorts the limits until the next steps correct them.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

_DECODE_MEMORY = 8  # decode steps of one batch size that an estimate averages
_PROMPT_MEMORY = 512  # prompt tokens that the cost of one averages; tokens, because a short chunk is mostly noise
_LOOK_EVERY = 64  # steps with prompt tokens after which decode(n) is measured again
_OUTLIER = 2.0  # a step longer than this many times the expected time counts as this many times it
_RAMP = 4  # a budget is at most this many times the largest chunk measured: the model is only known near that


class _Mean(NamedTuple):
    """The recent decode-only steps of one bucket."""

    num_decodes: float
    seconds: float
    num_seen: int


class StepCost:
    """Keeps a step with prompt tokens within `max_slowdown` (> 1) times the duration of one without.

    The budget is `first_budget` prompt tokens before any measurement, and never below `min_budget`.
    """

    def __init__(self, max_slowdown: float, *, first_budget: int = 32, min_budget: int = 4) -> None:
        assert max_slowdown > 1
        assert first_budget >= min_budget >= 1
        self._max_slowdown = max_slowdown
        self._first_budget = first_budget
        self._min_budget = min_budget
        self._decodes: dict[int, _Mean] = {}  # decode-only steps by `_bucket` of their batch size
        self._age: dict[int, int] = {}  # by the same buckets: steps with prompt tokens since one without
        self._looked_at = 0  # the decodes that the coming step has beside its one prompt token
        self._prompt_seconds = 0.0  # beyond the decodes' time, over about the last _PROMPT_MEMORY prompt tokens
        self._prompt_tokens = 0.0  # how many those are
        self._largest_chunk = 0

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Update the estimates with a step: its sequences with one token to go, and the tokens of all others."""
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
        # A step without a decode has the fixed cost too: then one of the prompt's tokens stands for it.
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
        """Prompt tokens that a step may have beside `num_decodes` decoding sequences; sys.maxsize when none decodes.

        At least `min_budget`, or 1 to measure the decodes alone. When more sequences have prompts to compute
        (`num_prompts`) than decode, the step may take longer in proportion.
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
        """Seconds of a decode-only step; None if none was measured.

        Linear between measured sizes and (0, 0), so below the concave curve; constant beyond the largest size.
        """
        size = seconds = 0.0
        for _, mean in sorted(self._decodes.items()):
            if mean.num_decodes >= num_decodes:
                return seconds + (mean.seconds - seconds) * (num_decodes - size) / (mean.num_decodes - size)
            size, seconds, _ = mean
        return seconds if size else None

    def _per_token(self) -> float | None:
        """Seconds that a prompt token adds, at least 0; None if none was measured."""
        if self._prompt_tokens == 0:
            return None
        return max(0.0, self._prompt_seconds / self._prompt_tokens)


def _bucket(num_decodes: int) -> int:
    """0: up to 1, 1: 2, 2: 3 to 4, 3: 5 to 8 and so on."""
    return max(num_decodes - 1, 0).bit_length()


def _clip(seconds: float, expected: float) -> float:
    return min(seconds, _OUTLIER * expected) if expected > 0 else seconds
