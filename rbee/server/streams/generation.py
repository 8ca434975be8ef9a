"""A checked request, ready to be submitted.

Owns nothing: a protocol's reader hands it to `rbee.server.streams`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbee.sampling_params import SamplingParams
    from rbee.server.text.token_text import Echo


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the engine is asked for, and what of it is shown."""

    received_ns: int  # when the server had the whole request, CLOCK_MONOTONIC
    prompt: list[int]  # token ids
    sampling: SamplingParams  # of choice 0; the seed of choice i is i more
    stops: list[str]  # stop strings
    n: int = 1  # choices
    echo: Echo | None = None  # the prompt, if it comes before the completion
    show_output: bool = True  # False for max_tokens 0: sampling.max_tokens is 1 then, and the token is dropped
    priority: int = 0  # smaller runs earlier
    deadline_ns: int = 0  # when it ends at the latest, CLOCK_MONOTONIC; 0 is never
    cache_salt: str = ""  # only requests with the same salt share cached prefixes
    timings: bool = False  # the answer says how long it took
    keep_text: bool = False  # the end of its stream repeats all of the text

    @property
    def has_logprobs(self) -> bool:
        return self.sampling.num_logprobs is not None or self.sampling.num_prompt_logprobs is not None
