"""The whole report: every finding under its name.

Owns the names and their order. Does not know what a finding means.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from rbee import __version__
from rbee.doctor import installation, machine, memory
from rbee.doctor.finding import Finding

_ROOT = Path("/")


class Report(msgspec.Struct, frozen=True):
    """What `rbee doctor --json` prints."""

    version: str  # of rbee
    can_serve: bool  # no finding is an error
    findings: dict[str, Finding]


def examine(root: Path = _ROOT) -> Report:
    """Look at everything. Starts nothing and changes nothing. `root` is where /proc, /sys and /dev are."""
    findings = {
        "packages": installation.packages(),
        "native_modules": installation.native_modules(),
        "instruction_set": installation.instruction_set(),
        "kernel": machine.kernel(root),
        "processors": machine.processors(root),
        "numa": machine.numa(root),
        "clock": machine.clock(root),
        "virtualization": machine.virtualization(root),
        "memory": memory.memory(root),
        "swap": memory.swap(root),
        "huge_pages": memory.huge_pages(root),
        "locked_memory": memory.locked_memory(root),
        "shared_memory": memory.shared_memory(root, installation.arena_bytes()),
        "file_descriptors": memory.file_descriptors(root),
        "model_cache": installation.model_cache(),
    }
    can_serve = all(finding.status != "error" for finding in findings.values())
    return Report(__version__, can_serve, findings)
