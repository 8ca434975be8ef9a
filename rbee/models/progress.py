"""The progress of slow work. Owns the interface and its rendering on a console. Does not know what the work is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from rbee.standard_streams import say

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    import rich.progress


class Progress(Protocol):
    """Called by the work, from one thread."""

    def stage(self, name: str, total: int = 0) -> None:
        """A stage begins, and the one before it has ended; `total` is its size in bytes, 0 if unknown."""

    def done(self, amount: int) -> None:
        """`amount` bytes of the stage's total are done by now."""

    def note(self, text: str) -> None: ...


class ConsoleProgress:
    """Shows bars on a terminal, elsewhere a line on stderr per stage; leaving the context ends the last bar.

    `check` is called at each report, and may end the work with an exception.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._bars: rich.progress.Progress | None = None
        self._current: rich.progress.TaskID | None = None
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bars is not None:
            self._finish_current(succeeded=kind is None)
            self._bars.stop()

    def stage(self, name: str, total: int = 0) -> None:
        self._check()
        if not self._terminal:
            self._print(f"{name} ({total / 1e6:.0f} MB)" if total >= 1_000_000 else name)
            return
        if self._bars is None:
            self._bars = _start_bars()
        self._finish_current(succeeded=True)
        self._current = self._bars.add_task(name, total=total or None)

    def done(self, amount: int) -> None:
        self._check()
        if self._bars is not None and self._current is not None:
            self._bars.update(self._current, completed=amount)

    def note(self, text: str) -> None:
        self._check()
        if self._bars is not None:
            self._bars.console.print(f"rbee: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        say(f"rbee: {text}", as_error=True)

    def _finish_current(self, *, succeeded: bool) -> None:
        if self._bars is None or self._current is None:
            return
        if succeeded:
            total = self._bars.tasks[self._current].total or 1
            self._bars.update(self._current, total=total, completed=total)
        self._bars.stop_task(self._current)
        self._current = None


def _start_bars() -> rich.progress.Progress:
    from rich.console import Console  # noqa: PLC0415 - slow
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    bars = Progress(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    bars.start()
    return bars
