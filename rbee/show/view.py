"""Shows the facts of a model on a terminal, or as plain text where there is none. Does not know where they are from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rbee.show.facts import ModelFacts

_PLAIN_WIDTH = 1000  # of text that goes elsewhere than to a terminal: lines stay whole


def render(facts: ModelFacts) -> None:
    """Print `facts` to stdout."""
    console = Console()
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    console.print(Group(_summary(facts), Text(), _tensors(facts), Text(), _files(facts)))


def _summary(facts: ModelFacts) -> Table:
    vocabulary, memory = facts.vocabulary, facts.memory
    split = f", split {vocabulary.split}" if vocabulary.split else ""
    lines = {
        "model": facts.name,
        "folder": facts.path,
        "format": facts.format,
        "architecture": facts.architecture or "not named",
        "parameters": _count(facts.parameters),
        "context": f"{facts.context_length} tokens" if facts.context_length else "not named",
        "vocabulary": f"{vocabulary.size} tokens, {vocabulary.kind}{split}",
        "special tokens": _listed(
            f"{name.removesuffix('_token')} {text}" for name, text in facts.special_tokens.items()
        ),
        "chat templates": _listed(f"{name} ({len(text)} characters)" for name, text in facts.chat_templates.items()),
        "sampling": _listed(f"{name} {value:g}" for name, value in facts.sampling_defaults.items()),
        "runner": facts.runner or f"none: {facts.reason}",
        "memory": f"{_bytes(memory.weights)} of weights",
    }
    if facts.runner and facts.reason:
        lines["runner"] += f": the native one cannot serve it, because {facts.reason}"
    if memory.kv_cache is not None and memory.kv_cache_per_token is not None:
        tokens = memory.kv_cache // memory.kv_cache_per_token
        lines["memory"] += f" and {_bytes(memory.kv_cache)} of KV cache, for {tokens} tokens in all"
    table = Table.grid(padding=(0, 2))
    for label, value in lines.items():
        table.add_row(Text(label, style="bold"), Text(value))
    return table


def _tensors(facts: ModelFacts) -> Table:
    table = Table("type", box=None, padding=(0, 2, 0, 0))
    for column in ("tensors", "parameters", "size", "bits each"):
        table.add_column(column, justify="right")
    for kind in facts.tensors:
        bits = f"{8 * kind.bytes / kind.parameters:.2f}" if kind.parameters else ""
        table.add_row(kind.type, str(kind.count), _count(kind.parameters), _bytes(kind.bytes), bits)
    return table


def _files(facts: ModelFacts) -> Table:
    table = Table("file", box=None, padding=(0, 2, 0, 0))
    table.add_column("size", justify="right")
    for path, size in facts.files.items():
        table.add_row(Text(path), _bytes(size))
    return table


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"


def _count(number: int) -> str:
    for unit, factor in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{number / factor:.4g} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} B"
