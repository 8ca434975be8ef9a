"""Recorded outputs of each format say what they say, however they are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.server.text.output.all_recorded_parts import RECORDED

if TYPE_CHECKING:
    from tests.server.text.output.recorded_parts import Recorded


@pytest.fixture(params=RECORDED, ids=lambda output: f"{output.reasoning_parser}-{output.tool_parser}-{output.what}")
def recorded(request: pytest.FixtureRequest) -> Recorded:
    """One output."""
    output: Recorded = request.param
    return output


def test_whole(recorded):
    """In one piece."""
    assert recorded.read([recorded.text]) == recorded.said


def test_cut_at_every_character(recorded):
    """Character by character."""
    assert recorded.read(recorded.text) == recorded.said


def test_cut_in_two(recorded):
    """In two pieces, at each place."""
    for place in range(1, len(recorded.text)):
        assert recorded.read([recorded.text[:place], recorded.text[place:]]) == recorded.said
