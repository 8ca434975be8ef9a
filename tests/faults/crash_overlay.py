"""Gives a server and its engine the transport that has crash points, and crash points in Python.

`crash_parts` copies this file into a folder as sitecustomize.py, beside the plans; PYTHONPATH leads child processes
there. A point in Python is the return of a function: `module/qualified.name`. Everything else in a plan is a point of
native/include/rbee/crash_points.h. Does not know which points there are.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from importlib.abc import MetaPathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_NATIVE = "rbee.transport._native"


class _Overlay(MetaPathFinder):
    """Finds the other native module, and modules with a point as they are found without it."""

    def __init__(self, native: str, orders: list[str]) -> None:
        self._native = native
        self._orders = [order.split(":") for order in orders]

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == _NATIVE:
            return spec_from_file_location(name, self._native)
        orders = [order for order in self._orders if order[0].partition("/")[0] == name]
        if not orders:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(found for finder in others if (found := finder.find_spec(name, path, target)))
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_place(module: ModuleType) -> None:
            execute(module)
            for point, passage, number in orders:
                _place(module, point, int(passage), int(number))

        spec.loader.exec_module = execute_and_place  # type: ignore[method-assign] # of this one object
        return spec


def _place(module: ModuleType, point: str, passage: int, number: int) -> None:
    """Let the function of a point send this process a signal at one of its returns."""
    *path, name = point.partition("/")[2].split(".")
    holder = functools.reduce(getattr, path, module)
    function: Callable[..., Any] = getattr(holder, name)
    passages = 0

    @functools.wraps(function)
    def passing(*args: Any, **named: Any) -> Any:
        nonlocal passages
        result = function(*args, **named)
        passages += 1
        if passages == passage:
            os.write(2, f"crash point {point}:{passage}\n".encode())
            signal.raise_signal(number)
        return result

    setattr(holder, name, passing)


def _install() -> None:
    folder = Path(__file__).parent
    process = {"rbee.engine": "engine", "rbee.cli": "server"}
    names = [process[word] for word in sys.orig_argv if word in process]
    if names:
        orders = (folder / f"{names[0]}.plan").read_text().split()
        os.environ["RBEE_CRASH"] = " ".join(order for order in orders if "/" not in order)
        sys.meta_path.insert(0, _Overlay((folder / "native").read_text(), [order for order in orders if "/" in order]))


if Path(__file__).name == "sitecustomize.py":
    _install()
