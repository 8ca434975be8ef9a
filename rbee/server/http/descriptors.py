"""File descriptors of the server process: how many it needs.

Owns the rule and the limit that the process sets itself. Does not know connections.
"""

from __future__ import annotations

import resource

from rbee.errors import ConfigError

SPARE_DESCRIPTORS = 64  # beside one for each connection: files, pipes, the engine's channels, refused connections


def descriptors_for(connections: int) -> int:
    """How many a server with so many connections needs."""
    return connections + SPARE_DESCRIPTORS


def allow_descriptors(connections: int, option: str) -> None:
    """Let this process open so many connections, as `option` has it; ConfigError if its hard limit is lower."""
    needed = descriptors_for(connections)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{option} {connections} needs {needed} file descriptors, but this process may open only {hard}: "
            "raise the limit (ulimit -Hn) or lower the option."
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        # Connections in the backlog need descriptors too: take what there is, up to twice the need.
        most = 2 * needed if hard == resource.RLIM_INFINITY else min(hard, 2 * needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
