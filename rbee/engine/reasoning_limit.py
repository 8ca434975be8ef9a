"""The end of an output's reasoning when it has as many tokens as its request allows.

Owns the count, and the mask that leaves the closing tag alone. It looks at the tokens of the sequence, so that a
preemption changes nothing. Does not know sampling, grammars or steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rbee.engine.sampler import Row
    from rbee.engine.scheduling.sequence import Sequence
    from rbee.sampling_params import ReasoningBudget

_LATEST_OPENER = 4  # tokens of an output among which reasoning begins: white space may come before its tag


class ReasoningLimit:
    """Follows one sequence."""

    def __init__(self, budget: ReasoningBudget, sequence: Sequence) -> None:
        self._budget = budget
        self._sequence = sequence
        self._next = sequence.num_prompt_tokens  # the index of the first token that has not been looked at
        self._inside = budget.is_open
        self._over = False  # the reasoning has ended, or there is none
        self._num_left = budget.tokens
        word, bit = divmod(budget.end_id, 32)
        self._mask = np.zeros(word + 1, np.uint32)
        self._mask[word] = 1 << bit

    def applied(self, row: Row) -> Row:
        """The row of the next token: only the closing tag may come if the budget is spent.

        A grammar that does not allow it here, in the middle of a character, is heeded: it comes when it may.
        """
        self._catch_up()
        if self._over or not self._inside or self._num_left:
            return row
        if row.mask is not None and not (row.mask[len(self._mask) - 1] & self._mask[-1]):
            return row
        return row._replace(mask=self._mask)

    def _catch_up(self) -> None:
        """Look at the tokens that have come."""
        budget, sequence = self._budget, self._sequence
        while self._next < sequence.num_tokens and not self._over:
            token = sequence.token_ids[self._next]
            self._next += 1
            if self._inside:
                self._over = token == budget.end_id
                self._num_left = max(0, self._num_left - 1)
            elif token in budget.begin_ids:
                self._inside = True
            else:
                self._over = self._next - sequence.num_prompt_tokens >= _LATEST_OPENER
