"""What an account makes of the times that the drain has taken."""

import asyncio

import pytest

from rbee.messages import FinishReason
from rbee.sampling_params import SamplingParams
from rbee.server.streams.account import GenerationAccount
from rbee.server.streams.generation import Generation
from tests.batches import batch
from tests.server.streams.streams_parts import make_collected

pytestmark = pytest.mark.anyio


def make_account(n=1, *, timings=False):
    """Of a prompt with five tokens, received at 100."""
    sampling = SamplingParams(max_tokens=9)
    generation = Generation(received_ns=100, prompt=[1] * 5, sampling=sampling, stops=[], n=n, timings=timings)
    return GenerationAccount(generation, "id")


async def test_figures_of_several_choices():
    """The first start and token, the last token, all tokens, the mean gap within the choices, and how each ended."""
    account = make_account(3)
    account.take(0, (110, 130, 190, 4), 2)
    account.end(0, FinishReason.LENGTH)
    account.take(1, (120, 125, 165, 3), 0)
    account.end(1, FinishReason.STOP)
    account.take(2, (0, 0, 0, 0), None)
    account.end(2, FinishReason.LENGTH)
    figures = account.figures()
    assert (figures.queue_ns, figures.prefill_ns, figures.ttft_ns, figures.decode_ns) == (10, 15, 25, 65)
    assert (figures.prompt_tokens, figures.completion_tokens, figures.cached_tokens) == (5, 7, 2)
    assert (figures.gap_ns, figures.finish) == (20, "length,stop")


async def test_generation_that_never_ran():
    """Nothing is known but the prompt and the end."""
    account = make_account()
    account.take(0, (0, 0, 0, 0), None)
    account.end(0, FinishReason.ABORT)
    figures = account.figures()
    assert (figures.queue_ns, figures.prefill_ns, figures.ttft_ns, figures.gap_ns) == (None, None, None, None)
    assert (figures.cached_tokens, figures.completion_tokens, figures.finish) == (None, 0, "abort")


async def test_tokens_count_as_the_client_counts_them():
    """Those behind a stop string do not."""
    account = make_account()
    account.take(0, (110, 120, 150, 4), 0)
    account.show(0, 2, 3)
    account.end(0, FinishReason.STOP)
    assert (account.figures().completion_tokens, account.figures().cached_tokens) == (2, 3)


async def test_report_waits_for_the_last_choice():
    """And for what its sink has to say; afterwards it comes at once."""
    account, called = make_account(2), asyncio.Event()
    account.when_ended(called.set)
    account.end(0, FinishReason.STOP)
    await asyncio.sleep(0)
    assert not called.is_set()
    account.end(1, FinishReason.ERROR)
    assert not called.is_set()
    account.refusal = "engine_died"
    await called.wait()
    again = asyncio.Event()
    account.when_ended(again.set)
    assert again.is_set()


async def test_choice_tells_what_its_client_counts():
    """Of tokens that come together, those up to the stop string."""
    account = make_account()
    _, [choice] = make_collected(1, stops=["B"])
    choice.account = account
    account.take(0, (110, 120, 120, 4), None)
    choice.deliver(batch([*b"ABCD"]))
    account.end(0, FinishReason.STOP)
    assert (account.figures().completion_tokens, account.figures().finish) == (2, "stop")
