"""The bounds of options, which the command line and every config share."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rbee.cli import _Serve
from rbee.config import Config, EngineConfig, ServerConfig
from rbee.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"ring_capacity": 1000}, "a power of two, for example 1024"),
        ({"ring_capacity": 1}, "at least 2"),
        ({"ring_capacity": 2**21}, "at most 1048576"),
        ({"max_requests": 0}, "at least 1"),
        ({"max_body_mib": 0}, "at least 1"),
        ({"replay_window": 0}, "at least 1"),
        ({"port": 65536}, "at most 65535"),
        ({"slow_reader_timeout": 0.0}, "at least 0.001"),
    ],
)
def test_server_options_that_cannot_work(options: dict[str, Any], rule: str) -> None:
    """The message names the option, its value and the rule."""
    [(name, value)] = options.items()
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is {value}; it must be {rule}."):
        Config(engine=EngineConfig(), server=ServerConfig(**options))


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens", "block_size"])
def test_engine_options_that_cannot_work(name: str) -> None:
    """The same for the engine's options."""
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is 0; it must be at least 1."):
        Config(engine=EngineConfig(**options), server=ServerConfig())


def test_defaults_are_within_their_bounds() -> None:
    """A config that says nothing is valid."""
    assert Config(engine=EngineConfig(), server=ServerConfig()).debug is False


def test_command_line_has_the_same_bounds() -> None:
    """Each bound of a field is the bound of its option."""
    options = {parameter.name: parameter for parameter in _Serve().params}
    bounded = [
        field
        for kind in (EngineConfig, ServerConfig)
        for field in dataclasses.fields(kind)
        if "minimum" in field.metadata
    ]
    assert len(bounded) > 10
    for field in bounded:
        kind: Any = options[field.name].type
        assert (kind.min, kind.max) == (field.metadata["minimum"], field.metadata.get("maximum"))
