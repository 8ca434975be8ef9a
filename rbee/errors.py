"""The errors that rbee raises on purpose. Each message is a sentence that names the input and the remedy.

Owns the types only. The edge that catches one decides its effect: `rbee.cli` an exit code, `rbee.server` an answer.
"""

from __future__ import annotations


class RbeeError(Exception):
    """Base of every error that is meant to be read by a user; `str(error)` is the whole message."""


class ConfigError(RbeeError):
    """An option, or a combination of options, that cannot work."""


class ModelError(RbeeError):
    """A model that cannot be found, fetched, verified, read or loaded."""


class GrammarError(RbeeError):
    """A grammar that cannot be compiled, or not be followed any further; the message completes a sentence."""


class TransportError(RbeeError):
    """Shared memory, its doorbell or the control channel cannot be set up, or what is in it is not ours."""


class EngineUnavailableError(RbeeError):
    """No engine can take the request now: it is still loading, has died or is shutting down."""
