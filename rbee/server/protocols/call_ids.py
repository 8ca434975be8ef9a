"""The ids of tool calls: no other client can guess them, and a frame that is rendered again has the same."""

from __future__ import annotations

import hashlib


def call_id(prefix: str, answer_id: str, choice: int, call: int) -> str:
    """Of a choice's tool call, counted from 0, in the answer with this id, which no other client can guess."""
    digest = hashlib.blake2b(f"{answer_id}/{choice}/{call}".encode(), digest_size=12)
    return prefix + digest.hexdigest()
