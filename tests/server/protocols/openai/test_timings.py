"""`timings` in answers of a running server, compared with the commit times of their chunks."""

import itertools
import math

import httpx
import pytest

from tests.raw_client import CHAT, COMPLETIONS, read_stream
from tests.server.server_parts import PATIENCE

pytestmark = pytest.mark.anyio

PROMPT = {"prompt": "abc", "max_tokens": 40}
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 40}
MEMBERS = ["cache_n", "prompt_n", "queue_ms", "prompt_ms", "ttft_ms", "predicted_n", "predicted_ms"]
MEMBERS += ["predicted_per_second", "itl_p50_ms", "itl_p99_ms"]


def nearest_rank(gaps, q):
    """The quantile in ms, as it is rounded."""
    return round(sorted(gaps)[math.ceil(q * len(gaps)) - 1] / 1e6, 3)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (COMPLETIONS, {}),
        (CHAT, {}),
        (COMPLETIONS, {"stop": ["no such text"]}),
        (COMPLETIONS, {"logprobs": 1}),
        (COMPLETIONS, {"stream_options": {"include_timing": True, "resumable": True}}),
        (COMPLETIONS, {"n": 2}),
    ],
    ids=str,
)
async def test_timings_of_a_stream(path, fields, synthetic_server):
    """The last chunk has them, from the very commits of the other chunks, whether Python writes the stream or not."""
    options = {"stream_options": {"include_timing": True}}
    body = (HI if path == CHAT else PROMPT) | options | fields
    if "resumable" in body["stream_options"]:
        async with httpx.AsyncClient(base_url=synthetic_server.url, timeout=PATIENCE) as client:
            text = (await client.post(path, json=body | {"stream": True})).text
        assert text.count('"timings"') == 1
        return
    *chunks, last, done = await read_stream(synthetic_server.address, path, body)
    timings, choices = last["timings"], fields.get("n", 1)
    assert (done, last["choices"], list(timings)) == ("[DONE]", [], MEMBERS)
    assert not any("timings" in chunk for chunk in chunks)
    commits: list[list[int]] = [[] for _ in range(choices)]
    for chunk in chunks:
        commits[chunk["choices"][0]["index"]].append(chunk["timing"]["committed_ns"])
    assert [len(times) for times in commits] == [40] * choices
    gaps = [after - before for times in commits for before, after in itertools.pairwise(times)]
    first, end = min(times[0] for times in commits), max(times[-1] for times in commits)
    assert timings["itl_p50_ms"] == nearest_rank(gaps, 0.5)
    assert timings["itl_p99_ms"] == nearest_rank(gaps, 0.99)
    assert timings["predicted_ms"] == round((end - first) / 1e6, 3)
    assert timings["predicted_per_second"] == round(1e9 * len(gaps) / (end - first), 3)
    assert timings["predicted_n"] == 40 * choices
    assert timings["ttft_ms"] == pytest.approx(timings["queue_ms"] + timings["prompt_ms"], abs=0.002)
    assert min(timings["queue_ms"], timings["prompt_ms"]) >= 0


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"logprobs": 2}], ids=str)
async def test_timings_of_an_answer(fields, synthetic_server):
    """The same object beside the usage, and none for who does not ask."""
    async with httpx.AsyncClient(base_url=synthetic_server.url, timeout=PATIENCE) as client:
        answer = (await client.post(COMPLETIONS, json=PROMPT | fields | {"timings": True})).json()
        assert "timings" not in (await client.post(COMPLETIONS, json=PROMPT | fields)).json()
    timings, usage = answer["timings"], answer["usage"]
    assert list(timings) == MEMBERS
    assert timings["predicted_n"] == usage["completion_tokens"]
    assert timings["cache_n"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert timings["cache_n"] + timings["prompt_n"] == usage["prompt_tokens"]


@pytest.mark.parametrize("asked", [{"timings": True}, {"stream_options": {"include_timing": True}}], ids=str)
async def test_with_usage_there_is_one_last_chunk(asked, synthetic_server):
    """Both are in it, however the timings are asked for."""
    options = asked.get("stream_options", {}) | {"include_usage": True}
    body = PROMPT | asked | {"stream_options": options}
    *chunks, last, _ = await read_stream(synthetic_server.address, COMPLETIONS, body)
    assert (last["usage"]["completion_tokens"], last["timings"]["predicted_n"], last["choices"]) == (40, 40, [])
    assert all(chunk["choices"] for chunk in chunks)


async def test_one_token_has_no_gaps(synthetic_server):
    """What is not known is left out."""
    body = PROMPT | {"max_tokens": 1, "timings": True}
    *_, last, _ = await read_stream(synthetic_server.address, COMPLETIONS, body)
    assert list(last["timings"]) == MEMBERS[:-3]
