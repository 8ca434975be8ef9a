"""What the native drain and Python write of the other protocols' streams together equals what Python writes alone."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rbee.messages import FinishReason
from rbee.server.text.detokenizer import detokenizers
from tests.batches import batch
from tests.server.protocols.dialects_parts import (
    OF_MESSAGES,
    OF_RESPONSES,
    make_messages_dialect,
    make_responses_dialect,
    parse_events,
)
from tests.server.streams.direct_parts import SocketWriter, token_batches
from tests.server.streams.streams_parts import StreamedCase, make_direct, make_direct_outlet
from tests.server.text.text_parts import SENTENCEPIECE, SYNTHETIC

pytestmark = pytest.mark.anyio

DIALECTS = [(OF_MESSAGES, make_messages_dialect), (OF_RESPONSES, make_responses_dialect)]
CACHED_TOKENS = 3


@pytest.fixture(scope="session")
def vocabularies(default_model):
    """The default model's and some small ones, each with its detokenizers, and whether it decodes all at once alike."""
    default = Tokenizer.from_file(str(default_model.path / "tokenizer.json"))
    return [
        (tokenizer, detokenizers(tokenizer), bytewise)
        for tokenizer, bytewise in [
            (default, True),
            (SYNTHETIC, True),
            (SENTENCEPIECE[False], False),  # a byte that is no character takes the others of its word with it
            (SENTENCEPIECE[True], False),
        ]
    ]


@pytest.mark.parametrize(("words", "make_dialect"), DIALECTS, ids=["messages", "responses"])
@given(data=st.data(), which=st.integers(0, 3), reason=st.sampled_from(FinishReason))
async def test_both_ways_write_the_same_bytes(words, make_dialect, vocabularies, pipe, data, which, reason):  # noqa: PLR0917
    """Any tokens, in any batches, with any end; and their text is what decoding all of them at once gives.

    Left out is 0xED, for the bytes after which Python's decoder waits in vain.
    """
    tokenizer, make_detokenizer, bytewise = vocabularies[which]
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    batches = data.draw(token_batches(make_detokenizer.token_bytes, size - 1))
    all_tokens = list(itertools.chain(*batches))
    stop_token_ids = data.draw(st.lists(st.sampled_from([*all_tokens, 5]), max_size=2))

    dialect = make_dialect()
    by_token = StreamedCase(
        dialect=dialect, new_detokenizer=make_detokenizer, stop_token_ids=stop_token_ids, keep_text=True
    )
    writer = SocketWriter(pipe.server.fileno())
    outlet = make_direct_outlet(writer, make_detokenizer.table, dialect, stop_token_ids=stop_token_ids, keep_text=True)
    direct = make_direct(writer, outlet, dialect)
    begun = list(writer.written)
    ring, generation = pipe.consumer.assign()
    pipe.producer.open(ring, generation)
    pipe.consumer.attach(ring, outlet)
    for number, token_ids in enumerate(batches):
        end = int(reason) if number == len(batches) - 1 else 0
        if not token_ids and not end:
            continue
        pipe.commit(ring, token_ids, end | CACHED_TOKENS << 8 if end else 0)
        by_token.choices[0].deliver(batch(token_ids, end, CACHED_TOKENS))
        for _, finish in pipe.consumer.drain().ended:
            direct.on_finish(finish & 0xFF, finish >> 8)
    assert by_token.reply.done.done()
    assert direct.done.done()
    written = b"".join([*begun, pipe.received(), *writer.written[len(begun) :]])
    assert written == by_token.written()

    events = parse_events(written)
    shown = [token_id for token_id in all_tokens if token_id not in stop_token_ids]
    if bytewise:
        assert words.text(events) == tokenizer.decode(shown, skip_special_tokens=True)
    if words is OF_RESPONSES:
        assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
        repeated = [event.data["text"] for event in events if event.name == "response.output_text.done"]
        assert repeated == [words.text(events)] * (events[-1].name != words.failed)
