"""The prompt budget of a step, learnt from simulated machines."""

from __future__ import annotations

import itertools
import random
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from rbee.engine.scheduling.step_cost import StepCost

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_NUM_BATCHED_TOKENS = 2048
MAX_SLOWDOWN = 2.0


@dataclass
class Machine:
    """Steps with a fixed cost, one for each decode and one for each prompt token, all but for some noise; in ms."""

    fixed: float = 10.0
    per_decode: float = 0.5
    per_token: float = 0.4
    noise: float = 0.1
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def decode(self, num_decodes: int) -> float:
        """Milliseconds of a decode-only step, without noise."""
        return self.fixed + self.per_decode * num_decodes

    def step(self, num_decodes: int, num_prompt_tokens: int) -> float:
        """Seconds of one step."""
        exact = self.decode(num_decodes) + self.per_token * num_prompt_tokens
        return 1e-3 * exact * max(0.2, self.random.gauss(1, self.noise))

    def slowdown(self, num_decodes: int, budget: int) -> float:
        """How many times longer a step with so many prompt tokens takes, without noise."""
        return 1 + self.per_token * budget / self.decode(num_decodes)


def decode_only(cost: StepCost, machine: Machine, num_decodes: int, num_steps: int) -> None:
    """Take steps without a prompt."""
    for _ in range(num_steps):
        cost.observe(num_decodes, 0, machine.step(num_decodes, 0))


def prompt_beside(cost: StepCost, machine: Machine, num_decodes: int, num_tokens: int) -> Iterator[int]:
    """Take a prompt through the machine in the chunks that the budget allows; yields them."""
    while num_tokens:
        chunk = min(num_tokens, cost.prompt_budget(num_decodes), MAX_NUM_BATCHED_TOKENS)
        assert chunk >= 1
        if chunk == 1:  # which is what a decode is
            cost.observe(num_decodes + 1, 0, machine.step(num_decodes + 1, 0))
        else:
            cost.observe(num_decodes, chunk, machine.step(num_decodes, chunk))
        num_tokens -= chunk
        yield chunk


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("per_token", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("num_decodes", [1, 8, 32])
def test_budget_converges_to_the_allowed_slowdown(num_decodes, per_token, noise):
    """After some decode steps and a prompt, a full budget makes a step about as slow as it may be."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(per_token=per_token, noise=noise)
    decode_only(cost, machine, num_decodes, 30)
    list(prompt_beside(cost, machine, num_decodes, 8000))
    decode_only(cost, machine, num_decodes, 30)
    tolerance = 0.02 + 1.5 * noise
    assert machine.slowdown(num_decodes, cost.prompt_budget(num_decodes)) == pytest.approx(MAX_SLOWDOWN, rel=tolerance)


def test_no_step_is_much_too_slow_while_the_cost_is_learnt():
    """The budget starts small and grows by a bounded factor, so that it need not be learnt from a stall."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(per_token=0.1)
    decode_only(cost, machine, 8, 10)
    chunks = list(prompt_beside(cost, machine, 8, 8000))
    assert chunks[0] == 32
    assert all(after <= 4 * max(chunks[:number]) for number, after in enumerate(chunks[1:], 1))
    assert max(machine.slowdown(8, chunk) for chunk in chunks) < 1.5 * MAX_SLOWDOWN


def test_budget_follows_the_context_of_a_prompt():
    """When each further token of a long prompt costs more, the chunks shrink and the slowdown stays."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(per_token=0.05)
    decode_only(cost, machine, 8, 10)
    slowdowns = []
    for chunk in prompt_beside(cost, machine, 8, 30_000):
        slowdowns.append(machine.slowdown(8, chunk))
        machine.per_token += 1e-5 * chunk  # sevenfold in the end
    assert max(slowdowns) < 1.25 * MAX_SLOWDOWN
    assert sum(slowdowns) / len(slowdowns) == pytest.approx(MAX_SLOWDOWN, rel=0.1)


def test_budget_follows_the_machine():
    """When decode steps become three times as long or as short the budget does too."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(noise=0.05)
    decode_only(cost, machine, 8, 20)
    list(prompt_beside(cost, machine, 8, 4000))
    for fixed in (38, 10):
        machine.fixed = fixed
        decode_only(cost, machine, 8, 40)
        assert machine.slowdown(8, cost.prompt_budget(8)) == pytest.approx(MAX_SLOWDOWN, rel=0.15)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("prompt", [300, 20_000])
def test_prompt_tokens_that_cost_nothing_are_not_limited(noise, prompt):
    """At a fixed cadence the budget soon exceeds what a step can take, even when only short prompts come."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(per_token=0, noise=noise)
    for _ in range(20):
        decode_only(cost, machine, 8, 10)
        list(prompt_beside(cost, machine, 8, prompt))
    chunks = list(prompt_beside(cost, machine, 8, 20_000))
    assert min(chunks[2:-1]) == MAX_NUM_BATCHED_TOKENS


@pytest.mark.parametrize("num_prompt_tokens", [0, 40])
def test_one_outlier_hardly_matters(num_prompt_tokens):
    """A step that takes ten times as long changes the budget by less than a quarter; the first few may be worse."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(noise=0)
    decode_only(cost, machine, 8, 20)
    list(prompt_beside(cost, machine, 8, 2000))
    before = cost.prompt_budget(8)
    cost.observe(8, num_prompt_tokens, 10 * machine.step(8, num_prompt_tokens))
    assert cost.prompt_budget(8) == pytest.approx(before, rel=0.25)


def test_slow_first_steps_are_forgotten():
    """Warming up takes long, once; after some tens of steps nothing is left of it."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(noise=0)
    cost.observe(0, 100, 10.0)
    cost.observe(8, 0, 1.0)
    decode_only(cost, machine, 8, 50)
    list(prompt_beside(cost, machine, 8, 4000))
    assert machine.slowdown(8, cost.prompt_budget(8)) == pytest.approx(MAX_SLOWDOWN, rel=0.05)


def test_short_chunks_do_not_drown_the_cost_in_noise():
    """Hundreds of chunks of two tokens, each less than the noise of its step, leave the budget about where it was."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(per_token=0.2)
    decode_only(cost, machine, 8, 30)
    for _ in range(300):
        decode_only(cost, machine, 8, 3)
        list(prompt_beside(cost, machine, 8, 2))
    assert machine.slowdown(8, cost.prompt_budget(8)) == pytest.approx(MAX_SLOWDOWN, rel=0.5)


@pytest.mark.parametrize("prompt", [40, 1000])
def test_cost_of_a_prompt_alone_counts(prompt):
    """Prompts that ran beside nothing tell the cost of their tokens, apart from what any step costs."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(per_token=0.1, noise=0)
    decode_only(cost, machine, 1, 10)
    for _ in range(20):
        cost.observe(0, prompt, machine.step(0, prompt))
    assert machine.slowdown(1, cost.prompt_budget(1)) == pytest.approx(MAX_SLOWDOWN, rel=0.1)


def test_batch_sizes_not_seen_are_looked_at():
    """A step with one prompt token shows what the decodes take; then the slowdown is kept within its bounds."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(noise=0)
    cost.observe(0, 1000, machine.step(0, 1000))
    for num_decodes in (1, 2, 4, 8, 16, 32, 64, 128, 5, 100):
        first, *others = prompt_beside(cost, machine, num_decodes, 3000)
        assert first == 1 or num_decodes > 1  # then the rest of an earlier prompt may have shown enough
        assert machine.slowdown(num_decodes, max(others)) <= 1.05 * MAX_SLOWDOWN
        assert max(others) >= 8  # and the prompt gets on


def test_decodes_are_looked_at_again_while_prompts_keep_coming():
    """Contexts that have shrunk are noticed, although no step is without prompt tokens any more."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(noise=0, fixed=40.0)
    decode_only(cost, machine, 8, 20)
    list(prompt_beside(cost, machine, 8, 4000))
    machine.fixed = 10.0
    chunks = list(prompt_beside(cost, machine, 8, 200_000))
    looks = [number for number, chunk in enumerate(chunks) if chunk == 1]
    assert len(looks) >= 8
    assert max(b - a for a, b in itertools.pairwise(looks)) == 65
    assert machine.slowdown(8, chunks[looks[-1] - 1]) == pytest.approx(MAX_SLOWDOWN, rel=0.1)


@pytest.mark.parametrize("num_prompts", [1, 8, 16, 80])
def test_a_crowd_of_prompts_gets_its_share(num_prompts):
    """When more sequences wait for their prompts than decode, a step may be longer in proportion."""
    cost, machine = StepCost(MAX_SLOWDOWN), Machine(noise=0, per_token=0.1)
    decode_only(cost, machine, 8, 20)
    list(prompt_beside(cost, machine, 8, 20_000))
    alone, crowd = cost.prompt_budget(8), cost.prompt_budget(8, num_prompts)
    assert crowd == pytest.approx(alone * min(max(1, num_prompts / 8), 4), rel=0.01)  # 4: the ramp


def test_budgets_before_anything_is_known():
    """A careful start beside decodes, no limit without any, and no number of seconds breaks anything."""
    cost = StepCost(MAX_SLOWDOWN, first_budget=24, min_budget=8)
    assert cost.prompt_budget(1) == 1
    assert cost.prompt_budget(0) == sys.maxsize
    cost.observe(0, 0, 0.0)
    cost.observe(3, 5, 1.0)
    assert cost.prompt_budget(3) == 1, "nothing follows from a mixed step alone"
    cost.observe(4, 0, 0.0)
    assert cost.prompt_budget(3) == 24
    cost.observe(3, 5, 0.0)
    assert cost.prompt_budget(3) == 24, "the ramp"
    cost.observe(3, 5, 1.0)
    assert cost.prompt_budget(3) == 8, "decodes that take no time leave the least"
    cost.observe(3, 0, 1.0)
    assert cost.prompt_budget(3) >= 8
