"""Fake grammars: their masks come when the test says so, and fail or take long where their source says so."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from rbee.errors import GrammarError
from tests.engine.engine_parts import PATIENCE, InProcessEngine, synthetic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FakeMatcher:
    """Allows the digit 1 for ever, and fails where its source says.

    It is used by one thread at a time, or fails, where a real one is undefined. A copy is another one.
    """

    def __init__(self, source: str, vocabulary: FakeVocabulary, number: int = 0, filled: int = 0) -> None:
        self.number = number  # of a copy, from 1
        self._source, self._vocabulary = source, vocabulary
        self._working = threading.Lock()
        self._filled, self._num_copies = filled, 0

    def copy(self) -> FakeMatcher:
        self._num_copies += 1
        return FakeMatcher(self._source, self._vocabulary, self._num_copies, self._filled)

    def fill(self, mask: NDArray[np.uint32]) -> bool:
        with self._working:
            breaks_in_one = self._source == "breaks in one" and (self.number, self._filled) == (1, 2)
            if self._source == "breaks in a mask" or breaks_in_one:
                raise GrammarError(self._source)
            if not self._filled:
                self._vocabulary.begun.append(self._source)
            elif self.number == self._vocabulary.whose and self._vocabulary.late is not None:
                assert self._vocabulary.late.wait(PATIENCE)
            elif self._source == "slow in masks":
                _compute(0.25)
            self._filled += 1
            mask[:] = 0
            mask[ord("1") // 32] = 1 << ord("1") % 32
            return False

    def accept(self, token_id: int) -> bool:
        assert token_id == ord("1")
        assert not self._working.locked(), "a mask is filled"
        if self._source == "breaks at a token":
            raise GrammarError(self._source)
        if self._source == "slow at tokens":
            _compute(0.03)
        return False


class FakeVocabulary:
    """Compiles fake matchers, once `before` is set. Masks of copy `whose`, but its first, wait for `late`."""

    num_words = 8

    def __init__(
        self, *, before: threading.Event | None = None, late: threading.Event | None = None, whose: int = 1
    ) -> None:
        self.compiled: list[str] = []
        self.begun: list[str] = []  # whose first mask was filled
        self.started = threading.Event()  # the first compilation
        self.late, self.whose = late, whose
        self._before = before

    def compile(self, source: str) -> FakeMatcher:
        self.compiled.append(source)
        self.started.set()
        if self._before is not None:
            assert self._before.wait(PATIENCE)
        if source == "broken":
            raise GrammarError(source)
        return FakeMatcher(source, self)


def _compute(seconds: float) -> None:
    """Take so much of a processor."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def engine_with(vocabulary: FakeVocabulary, **options: Any) -> InProcessEngine:
    """An engine whose grammars are these."""
    return InProcessEngine(synthetic(), load_vocabulary=lambda: vocabulary, **options)  # type: ignore[arg-type,return-value]
