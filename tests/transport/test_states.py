"""The states that both processes write into the arena."""

from __future__ import annotations

import pytest

from rbee.transport import EngineState, ServerState


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (EngineState, ["starting", "loading", "idle", "stepping"]),
        (ServerState, ["starting", "loading", "ready", "draining", "dead"]),
    ],
)
def test_codes_and_labels(kind: type[EngineState | ServerState], labels: list[str]) -> None:
    """The codes are part of the arena's format: they count from 0, in this order."""
    assert [(int(state), state.label) for state in kind] == list(enumerate(labels))
