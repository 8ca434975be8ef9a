"""What of rbee is installed: its packages, its native modules with the kernels' instruction set, its model cache.

Owns what has to be there. Imports nothing of it but the native modules, and these only to see whether they load.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import shutil
from importlib import metadata
from typing import TYPE_CHECKING

from rbee import __version__
from rbee.config import ServerConfig
from rbee.doctor.finding import Finding, size
from rbee.errors import RbeeError
from rbee.models.cache import cache_folder

if TYPE_CHECKING:
    from pathlib import Path

_SERVER_PACKAGES = ("uvloop", "uvicorn", "starlette", "httptools", "msgspec", "tokenizers", "jinja2", "numpy")
_MODEL_PACKAGES = ("torch", "transformers", "safetensors", "huggingface_hub")
_NATIVE_MODULES = (
    "rbee.transport._native",
    "rbee.engine._kernels",
    "rbee.models.gguf.tokenizer._merges",
    "rbee.server.text._byte_pairs",
)
_INSTRUCTION_SETS = ("avx512", "avx2", "portable")  # best first
_LITTLE_SPACE = 1 << 30


def packages() -> Finding:
    """The versions of rbee, Python and the libraries that compute and serve."""
    value: dict[str, str | None] = {"rbee": __version__, "python": platform.python_version()}
    for name in (*_MODEL_PACKAGES, *_SERVER_PACKAGES):
        try:
            value[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            value[name] = None
    shown = ("rbee", "python", "torch", "transformers", "uvloop")
    summary = ", ".join(f"{name} {value[name] or 'missing'}" for name in shown)
    missing = [name for name, version in value.items() if version is None]
    if missing:
        vital = any(name in _SERVER_PACKAGES for name in missing)
        effect = "No server can start" if vital else "Models that the native runner does not serve cannot run"
        advice = f"{effect} without {', '.join(missing)}. Install rbee again with its dependencies."
        return Finding(value, summary, "error" if vital else "warning", advice)
    return Finding(value, summary)


def native_modules() -> Finding:
    """Whether each of our own compiled modules loads; `value` has the reason for one that does not."""
    value: dict[str, str | None] = {}
    for name in _NATIVE_MODULES:
        value[name] = None
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever it is, no server can start
            value[name] = f"{type(error).__name__}: {error}"
    reasons = [reason for reason in value.values() if reason is not None]
    if reasons:
        advice = f"No server can start ({reasons[0]}). Install rbee again on this machine; it is compiled for it."
        return Finding(dict(value), f"{len(reasons)} of {len(value)} do not load", "error", advice)
    return Finding(dict(value), f"all {len(value)} load")


def instruction_set() -> Finding:
    """The one that the kernels take, and those that they could take."""
    try:
        from rbee.engine._kernels import choose_instruction_set  # noqa: PLC0415 - it may not load
    except ImportError:
        advice = "The kernels do not load; see the native modules."
        return Finding({"chosen": None, "available": [], "override": None}, "not known", "error", advice)
    available = []
    for name in _INSTRUCTION_SETS:
        with contextlib.suppress(ValueError):
            available.append(choose_instruction_set(name))
    override = os.environ.get("RBEE_INSTRUCTION_SET")
    value = {"chosen": None, "available": available, "override": override}
    try:
        value["chosen"] = chosen = choose_instruction_set("auto")
    except ValueError as error:
        return Finding(value, f"none: {override}", "error", str(error))
    if chosen == "portable":
        effect = "The kernels compute without vector instructions, many times slower."
        remedy = "Leave RBEE_INSTRUCTION_SET out." if override else "Take a machine with AVX2 or AVX-512 VNNI."
        return Finding(value, chosen, "warning", f"{effect} {remedy}")
    if chosen != available[0]:
        advice = f"RBEE_INSTRUCTION_SET is {override}, and {available[0]} is faster. Leave it out."
        return Finding(value, chosen, "note", advice)
    return Finding(value, chosen)


def arena_bytes() -> int | None:
    """The shared memory of a server with default options; None if the transport does not load."""
    try:
        from rbee.transport.arena import arena_size  # noqa: PLC0415 - it may not load
    except ImportError:
        return None
    options = ServerConfig()
    return arena_size(-(-options.max_requests // 64) * 64, options.ring_capacity)


def model_cache() -> Finding:
    """The folder, what it holds, the room on its disk, and whether it can be written. It is not made if missing."""
    try:
        folder = cache_folder()
    except RbeeError as error:
        value: dict[str, str | int | None] = {"path": None, "exists": False, "writable": False, "size": 0, "free": None}
        return Finding(value, "no folder", "warning", str(error))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    held = _size_of(folder)
    free = shutil.disk_usage(there).free
    value = {"path": str(folder), "exists": there == folder, "writable": writable, "size": held, "free": free}
    summary = f"{folder}: {size(held)}, {size(free)} free"
    if not writable:
        return Finding(
            value,
            summary,
            "warning",
            f"{there} cannot be written, so that no model can be made ready. Set RBEE_CACHE to a folder that can be.",
        )
    if free < _LITTLE_SPACE:
        advice = "A model may not fit on this disk. Free some space, or set RBEE_CACHE to a folder on another disk."
        return Finding(value, summary, "warning", advice)
    return Finding(value, summary)


def _size_of(folder: Path) -> int:
    """Bytes of all files below it."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - a path costs more than the call
    return total
