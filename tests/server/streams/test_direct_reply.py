"""What the drain writes equals, byte for byte, what the server writes token by token."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rbee.messages import FinishReason
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.text.detokenizer import detokenizers
from tests.batches import batch
from tests.server.streams.direct_parts import SocketWriter, token_batches
from tests.server.streams.streams_parts import StreamedCase, make_dialect, make_direct, make_direct_outlet
from tests.server.text.text_parts import SENTENCEPIECE, SYNTHETIC, wordpiece

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def vocabularies(default_model):
    """The default model's and some small ones, each with its number of ids."""
    default = Tokenizer.from_file(str(default_model.path / "tokenizer.json"))
    return [
        (detokenizers(tokenizer), tokenizer.get_vocab_size(with_added_tokens=True))
        for tokenizer in (default, SYNTHETIC, SENTENCEPIECE[False], SENTENCEPIECE[True])
    ]


OPTIONS = st.builds(
    StreamOptions, include_usage=st.booleans(), continuous_usage_stats=st.booleans(), include_timing=st.booleans()
)
REASONS = st.sampled_from(FinishReason)
CACHED_TOKENS = 3


@settings(max_examples=400, deadline=None)
@given(data=st.data(), which=st.integers(0, 3), chat=st.booleans(), options=OPTIONS, reason=REASONS)
async def test_both_ways_write_the_same_bytes(vocabularies, pipe, data, which, chat, options, reason):  # noqa: PLR0917
    """Any tokens, in any batches, of any vocabulary that can be looked up, with any options and any end.

    A deadline is an ordinary end or an error, as there is a token or none.

    Except for one byte: after 0xED Python's decoder waits for a third byte even if the second has shown that this is no
    character. Here that byte's two replacement characters come at once.
    """
    make_detokenizer, size = vocabularies[which]
    batches = data.draw(token_batches(make_detokenizer.token_bytes, size + 2))
    all_tokens = list(itertools.chain(*batches))
    stop_token_ids = data.draw(st.lists(st.sampled_from([*all_tokens, 5]), max_size=2))

    dialect = make_dialect(chat=chat, options=options, prompt_tokens=7, model="mödel")
    by_token = StreamedCase(dialect=dialect, new_detokenizer=make_detokenizer, stop_token_ids=stop_token_ids)
    writer = SocketWriter(pipe.server.fileno())
    outlet = make_direct_outlet(writer, make_detokenizer.table, dialect, prompt_tokens=7, stop_token_ids=stop_token_ids)
    direct = make_direct(writer, outlet, dialect)
    ring, generation = pipe.consumer.assign()
    pipe.producer.open(ring, generation)
    pipe.consumer.attach(ring, outlet)
    for number, token_ids in enumerate(batches):
        end = int(reason) if number == len(batches) - 1 else 0
        if not token_ids and not end:
            continue
        committed_ns = pipe.commit(ring, token_ids, end | CACHED_TOKENS << 8 if end else 0)
        plain = batch(token_ids, end, CACHED_TOKENS)
        by_token.choices[0].deliver(plain._replace(commit_ns=[committed_ns] * len(token_ids)))
        drained = pipe.consumer.drain()
        assert drained.tokens == []
        for _, finish in drained.ended:
            direct.on_finish(finish & 0xFF, finish >> 8)
    assert by_token.reply.done.done()
    assert direct.done.done()
    assert outlet.num_tokens == len(all_tokens)
    assert pipe.received() + b"".join(writer.written) == by_token.written()


def test_other_vocabularies_have_no_table():
    """Tokens whose text depends on their neighbours go the other way; so do sockets that are not the response's."""
    dialect = make_dialect(chat=True)
    writer = SocketWriter(0)
    other = detokenizers(wordpiece()).table
    assert make_direct_outlet(writer, other, dialect) is None
    writer.descriptor = None
    table = detokenizers(SYNTHETIC).table
    assert make_direct_outlet(writer, table, dialect) is None


async def test_rest_is_written_by_the_event_loop():
    """The ring goes on at once if the event loop got rid of the rest at once, and else when it says so."""
    writer = SocketWriter(0)
    reply = make_direct(writer, None)
    reply.on_blocked(b"rest")
    assert (writer.written, reply.sequences.calls) == ([b"rest"], ["resume"])
    writer.paused = True
    reply.on_blocked(b"more")
    assert (writer.written, reply.sequences.calls) == ([b"rest", b"more"], ["resume"])
    reply.on_broken()
    assert writer.aborted


class CountingOutlet:
    """An outlet that has sent so many tokens, and the end of its stream."""

    has_end = True

    def __init__(self, num_tokens):
        self.num_tokens = self.num_frames = num_tokens


@pytest.mark.parametrize("num_tokens", [0, 1])
async def test_deadline(num_tokens):
    """With a token it is an ordinary end, which the drain has written; without any it is an error."""
    writer = SocketWriter(0)
    reply = make_direct(writer, CountingOutlet(num_tokens))
    reply.on_finish(FinishReason.DEADLINE, 0)
    assert reply.done.done()
    assert [b"REQUEST_TIMEOUT" in frames for frames in writer.written] == [True] * (1 - num_tokens)
