"""The sequences whose output follows a grammar: their matchers and masks, made on threads of their own.

Owns these threads, the compiled grammars that are kept, and when a mask is ready. Does not know sequences, steps or
logits. Neither a compilation nor a mask ever keeps a step waiting that does not need it: llguidance works without
Python's lock.

Compilations are bounded before they get here: the server has compiled the same source in a process of its own, with
less of a stack.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rbee.errors import GrammarError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rbee.grammars.matcher import Matcher
    from rbee.grammars.vocabulary import Vocabulary
    from rbee.sampling_params import SamplingParams

_KEPT = 32  # compiled grammars
# Seconds of a processor for each mask and each token of an output: on average, and beyond that in all. An ambiguous
# grammar takes more and more of them the longer its output is, and what a token takes every sequence waits for.
_MASK_SECONDS = (0.015, 0.2)
_TOKEN_SECONDS = (0.0005, 0.02)
_TOO_SLOW = "it takes too much computing to follow"
_STACK = 64 << 20  # bytes of address space for each thread: llguidance recurses into deep grammars


class _Budget:
    """Seconds that one kind of work may take, each time on average, and beyond that in all."""

    def __init__(self, average: float, beyond: float) -> None:
        self._average, self._beyond = average, beyond
        self._used = 0.0  # of what is beyond

    def covers(self, seconds: float) -> bool:
        """Count another time; whether it is within the budget."""
        self._used = max(0.0, self._used + seconds - self._average)
        return self._used <= self._beyond


class Constraint:
    """What one sequence's grammar says. The engine's thread calls its methods, unless they say otherwise.

    Its life: being built -> built and ready -> a token is taken, its next mask being filled -> ready ...; and at any
    time failed, complete or abandoned, after which it does not change.
    """

    def __init__(self, end_ids: tuple[int, ...], fill: Callable[[Constraint], None]) -> None:
        self.mask: NDArray[np.uint32] = np.zeros(0, np.uint32)  # of the next token, once it is ready; see `sampler.Row`
        self.built = False  # or failed
        self.complete = False  # nothing may come next: the output is all that the grammar wants
        self.failure = ""  # why no mask can be had; completes a sentence
        self.abandoned = False  # its sequence has ended: nobody wants its masks
        self._matcher: Matcher | None = None
        self._masks, self._tokens = _Budget(*_MASK_SECONDS), _Budget(*_TOKEN_SECONDS)
        self._end_ids = end_ids
        self._fill = fill
        self._ready = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether the mask is that of the next token; or it never will be, as `complete` or `failure` say."""
        return self._ready.is_set()

    def wait(self, seconds: float | None) -> bool:
        """Wait so long until it is ready; whether it is."""
        return self._ready.wait(seconds)

    def take(self, token_id: int) -> None:
        """Go on behind a token that the mask allowed. Unless it is complete, or has failed, `ask` follows."""
        assert self._matcher is not None, "it is built"
        self._ready.clear()
        started = time.thread_time()
        try:
            self.complete = self._matcher.accept(token_id)
        except GrammarError as error:
            self.failure = str(error)
        if not self._tokens.covers(time.thread_time() - started) and not self.complete:
            self.failure = self.failure or _TOO_SLOW
        if self.complete or self.failure:
            self._ready.set()

    def ask(self) -> None:
        """Have the next mask filled."""
        self._fill(self)

    def begin(self, matcher: Matcher, mask: NDArray[np.uint32], *, may_end: bool) -> None:
        """Take the matcher of a grammar that was built, and its first mask; in any thread."""
        self._matcher = matcher
        self.mask = mask
        if may_end:
            self._allow_end()
        self._ready.set()
        self.built = True

    def fail(self, reason: str) -> None:
        """No mask can be had; in any thread."""
        self.failure = reason
        self._ready.set()
        self.built = True

    def fill(self) -> None:
        """Fill the next mask; in any thread, one at a time."""
        assert self._matcher is not None, "it is built"
        started = time.thread_time()
        try:
            if self._matcher.fill(self.mask):
                self._allow_end()
        except GrammarError as error:
            self.failure = str(error)
        if not self._masks.covers(time.thread_time() - started) and not self.complete:
            self.failure = self.failure or _TOO_SLOW
        self._ready.set()

    def _allow_end(self) -> None:
        if not self.mask.any():
            self.complete = True
            return
        for token_id in self._end_ids:
            word, bit = divmod(token_id, 32)
            if word < len(self.mask):
                self.mask[word] |= np.uint32(1 << bit)


class _Kept(NamedTuple):
    """A compiled grammar: what its outputs begin with, and do not change."""

    matcher: Matcher
    mask: NDArray[np.uint32]  # the first one
    may_end: bool


class _Build(NamedTuple):
    """A constraint to be built."""

    source: str
    constraint: Constraint


class Grammars:
    """Builds constraints and fills their masks, on a thread for the former and `threads` for the latter.

    The first constraint starts the threads and loads the vocabulary: an engine without grammars has neither.

    Args:
        load: makes the vocabulary, which takes a while; called once, in a thread. ModelError: there is none.
        threads: that fill masks.
    """

    def __init__(self, load: Callable[[], Vocabulary], *, threads: int = 1) -> None:
        self._load = load
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # by source; the builder's
        self._builds: queue.SimpleQueue[_Build | None] = queue.SimpleQueue()
        self._fills: queue.SimpleQueue[Constraint | None] = queue.SimpleQueue()
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # readable once a constraint is built
        self._num_fillers = threads
        self._threads: list[threading.Thread] = []

    def constrain(self, sampling: SamplingParams) -> Constraint:
        """The constraint of a sequence with a grammar; it is being built."""
        if not self._threads:
            self._threads = [_start(target) for target in (self._build_all, *[self._fill_all] * self._num_fillers)]
        constraint = Constraint(sampling.grammar_end_ids, self._fills.put)
        self._builds.put(_Build(sampling.grammar, constraint))
        return constraint

    def clear_descriptor(self) -> None:
        """Make it unreadable until another constraint is built."""
        if self._threads:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """End the threads, when they have done what they are at."""
        self._builds.put(None)
        for _ in self._threads[1:]:
            self._fills.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self.descriptor)

    def _build_all(self) -> None:
        vocabulary: Vocabulary | None = None
        problem = ""
        try:
            vocabulary = self._load()
        except ModelError as error:
            problem = str(error)
        while (build := self._builds.get()) is not None:
            source, constraint = build
            if constraint.abandoned:
                continue
            if vocabulary is None:
                constraint.fail(problem)
            else:
                self._build(source, constraint, vocabulary)
            os.eventfd_write(self.descriptor, 1)

    def _build(self, source: str, constraint: Constraint, vocabulary: Vocabulary) -> None:
        try:
            if source not in self._kept:
                self._kept[source] = _compiled(source, vocabulary)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(source)
            matcher, mask, may_end = self._kept[source]
            constraint.begin(matcher.copy(), mask.copy(), may_end=may_end)
        except GrammarError as error:
            constraint.fail(str(error))

    def _fill_all(self) -> None:
        while (constraint := self._fills.get()) is not None:
            if not constraint.abandoned:
                constraint.fill()


def _compiled(source: str, vocabulary: Vocabulary) -> _Kept:
    matcher = vocabulary.compile(source)
    mask = np.zeros(vocabulary.num_words, np.uint32)
    may_end = matcher.fill(mask)
    return _Kept(matcher, mask, may_end)


def _start(target: Callable[[], None]) -> threading.Thread:
    before = threading.stack_size(_STACK)
    try:
        thread = threading.Thread(target=target, name="grammars", daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    return thread
