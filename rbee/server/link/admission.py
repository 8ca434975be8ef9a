"""Which requests are taken, of those that the engine could run.

Owns the limits of a server. Does not know rings, or how a request is refused.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Admission:
    """How many sequences run at once, and how many may wait beside them; 0: as many as there are rings."""

    max_num_seqs: int = 0
    max_queued_requests: int = 0
