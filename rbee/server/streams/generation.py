"""A checked request, ready to be submitted.

Owns nothing: it is what a protocol's reader hands to `rbee.server.streams`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbee.sampling_params import SamplingParams
    from rbee.server.text.token_text import Echo


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the engine is asked for, and what of it is shown.

    Attributes:
        received_ns: when the server had the whole request, CLOCK_MONOTONIC.
        prompt: token ids.
        sampling: of choice 0; the seed of choice i is i more.
        stops: stop strings.
        n: choices to make, >= 1.
        echo: the prompt, if it comes before the completion.
        show_output: False if the prompt is all that the client wants (max_tokens 0); sampling.max_tokens is 1 then, and
            the token is dropped.
        priority: smaller runs earlier.
        deadline_ns: when it ends at the latest, CLOCK_MONOTONIC; 0 is never.
        cache_salt: only requests with the same salt share cached prefixes.
    """

    received_ns: int
    prompt: list[int]
    sampling: SamplingParams
    stops: list[str]
    n: int = 1
    echo: Echo | None = None
    show_output: bool = True
    priority: int = 0
    deadline_ns: int = 0
    cache_salt: str = ""

    @property
    def has_logprobs(self) -> bool:
        """Whether the answer lists its tokens."""
        return self.sampling.num_logprobs is not None or self.sampling.num_prompt_logprobs is not None
