"""What the frames of a drain look like, and which templates there can be."""

from __future__ import annotations

import pytest

from rbee.messages import FinishReason
from rbee.transport import FrameTemplate, LastFrames, Slot, _native  # noqa: TID251 - what observers see is tested here too
from tests.transport.delivery_parts import (
    DEADLINE,
    ERROR,
    LENGTH,
    STOP,
    TEMPLATE,
    chunk,
    make_outlet,
    receive,
)


@pytest.mark.parametrize(("reason", "after"), [(STOP, b"S"), (LENGTH, b"L"), (DEADLINE, b"T")])
def test_ordinary_ends_count_tokens_and_what_was_cached(sides, connect, reason, after):
    """The last frame says why it is the last; the usage behind it has the finish's detail as the cached tokens."""
    ring = sides.start()
    server, client = connect()
    template = TEMPLATE._replace(end=b"U%b,%b,%bD" % (Slot.NUM_TOKENS, Slot.TOTAL_TOKENS, Slot.CACHED_TOKENS))
    sides.consumer.attach(ring, make_outlet(server.fileno(), template=template))
    finish = reason | 0xABCDEF << 8
    sides.commit([(ring, ord("a"))], {ring: finish})
    assert sides.consumer.drain().ended == [(ring, finish)]
    expected = chunk(b'F"a"%b\n\nU1,4,%dD' % (after, 0xABCDEF))
    assert receive(client, len(expected)) == expected


def test_stream_without_text_has_one_frame(sides, connect):
    """It is `empty`, not the first text frame with no text."""
    ring = sides.start()
    server, client = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno(), stop_token_ids=(9,)))
    sides.commit([(ring, 9)], {ring: STOP})
    sides.consumer.drain()
    expected = chunk(b'F""S\n\nD')
    assert receive(client, len(expected)) == expected


def test_slots_have_the_numbers_of_their_frame(sides, connect):
    """Frames are counted apart from tokens; what is about a token is left out behind a batch that has none."""
    ring = sides.start()
    server, client = connect()
    numbers = b"%b/%b/%b" % (Slot.INDEX, Slot.NUM_TOKENS, Slot.TOTAL_TOKENS)
    token = Slot.TOKEN_BEGIN + b"@" + Slot.COMMITTED_NS + Slot.TOKEN_END
    frame = b"(%b %b%b)" % (Slot.TEXT, numbers, token)
    last = LastFrames(b"first" + frame, b"next" + frame, b"last(%b%b)" % (numbers, token), b"empty")
    end = b"end(%b %b%b)" % (numbers, Slot.CACHED_TOKENS, token)
    template = FrameTemplate(b"first" + frame, b"next" + frame, last, last, last, end)
    sides.consumer.attach(ring, make_outlet(server.fileno(), stop_token_ids=(9,), template=template))
    # The first byte of a character shows nothing.
    earlier = sides.commit([(ring, ord("a")), (ring, 0xC3)])
    sides.consumer.drain()
    later = sides.commit([(ring, 0xA9), (ring, 9)])
    sides.consumer.drain()
    sides.commit([], {ring: LENGTH | 2 << 8})
    sides.consumer.drain()
    expected = (
        chunk(b'first("a" 0/1/4@%d)' % earlier)
        + chunk(b'next("\xc3\xa9" 1/3/6@%d)' % later)
        + chunk(b"last(2/4/7)end(2/4/7 2)")
    )
    assert receive(client, len(expected)) == expected


def test_an_index_may_begin_anywhere(sides, connect):
    """Where other events of the stream are numbered before the first text; frames are counted from 0 all the same."""
    ring = sides.start()
    server, client = connect()
    frame = b"%b%b." % (Slot.INDEX, Slot.TEXT)
    last = LastFrames(frame, frame, b"%b." % Slot.INDEX, b"")
    template = FrameTemplate(frame, frame, last, last, last, end=b"%b!" % Slot.INDEX, first_index=2**32 - 1)
    outlet = make_outlet(server.fileno(), template=template)
    sides.consumer.attach(ring, outlet)
    sides.commit([(ring, ord("a")), (ring, ord("b"))], {ring: STOP})
    sides.consumer.drain()
    expected = chunk(b'4294967295"a".4294967296"b".4294967297!')
    assert receive(client, len(expected)) == expected
    assert outlet.num_frames == 2


@pytest.mark.parametrize("reason", [STOP, ERROR])
def test_the_text_is_kept_if_it_is_wanted(sides, connect, reason):
    """As a JSON string; the characters that only the end completes are in it."""
    server, client = connect()
    for keep_text, kept in [(True, '"\\"\\n\ufffd"'), (False, '""')]:
        ring = sides.start()
        outlet = make_outlet(server.fileno(), stop_token_ids=(9,), keep_text=keep_text)
        assert outlet.text == b'""'
        sides.consumer.attach(ring, outlet)
        sides.commit([(ring, ord('"')), (ring, 9)])
        sides.consumer.drain()
        sides.commit([(ring, ord("\n")), (ring, 0xC3)], {ring: reason})
        sides.consumer.drain()
        assert outlet.text.decode() == kept
        assert outlet.num_frames == 3
    assert client.recv(1)


def test_an_end_may_be_left_to_the_caller(sides, connect):
    """A template without one says so, and last frames without text may be none at all."""
    ring = sides.start()
    server, client = connect()
    last = LastFrames(b"F%b" % Slot.TEXT, b"N%b" % Slot.TEXT, b"", b"")
    template = TEMPLATE._replace(stop=last, length=last, deadline=last, end=b"")
    outlet = make_outlet(server.fileno(), stop_token_ids=(9,), template=template)
    assert (outlet.has_end, make_outlet(server.fileno()).has_end) == (False, True)
    sides.consumer.attach(ring, outlet)
    sides.commit([(ring, 9)], {ring: STOP})
    assert sides.consumer.drain().ended == [(ring, STOP)]
    server.close()
    assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"first": b"\0"}, "control byte 0, which is no slot"),
        ({"next": b"\x1f"}, "control byte 31, which is no slot"),
        ({"end": b"\x0b"}, "control byte 11, which is no slot"),
        ({"first": Slot.TOKEN_BEGIN}, "TOKEN_BEGIN without a TOKEN_END"),
        ({"first": Slot.TOKEN_END}, "TOKEN_END without a TOKEN_BEGIN"),
        ({"first": Slot.TOKEN_BEGIN * 2 + Slot.TOKEN_END}, "TOKEN_BEGIN inside of another"),
        ({"end": Slot.TEXT}, "TEXT in a frame that has no text"),
        ({"length": TEMPLATE.length._replace(last=Slot.TEXT)}, "TEXT in a frame that has no text"),
        ({"stop": TEMPLATE.stop._replace(empty=Slot.TEXT)}, "TEXT in a frame that has no text"),
        ({"next": Slot.CACHED_TOKENS}, "CACHED_TOKENS in a frame that is not the last"),
    ],
)
def test_unsound_templates_are_refused(changed, sentence):
    """Before anything is written with them."""
    with pytest.raises(ValueError, match=sentence):
        make_outlet(0, template=TEMPLATE._replace(**changed))


def test_slots_are_control_bytes_that_no_frame_has():
    """One byte each, all different, none of them a line end or a tab."""
    slots = {name: value for name, value in vars(Slot).items() if name.isupper()}
    assert len(set(slots.values())) == len(slots)
    assert all(len(slot) == 1 and slot < b" " and slot not in b"\t\n\r" for slot in slots.values())


def test_deadline_before_the_first_token_is_not_an_ordinary_end(sides, connect):
    """Nothing is written: the caller says why."""
    ring = sides.start()
    server, client = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno()))
    sides.commit([], {ring: DEADLINE})
    assert sides.consumer.drain().ended == [(ring, DEADLINE)]
    server.close()
    assert client.recv(1) == b""


def test_failure_shows_all_text_and_leaves_the_end_to_the_caller(sides, connect):
    """A finish that is no ordinary one is not written: its words are not the drain's business."""
    ring = sides.start()
    server, client = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno()))
    sides.commit([(ring, ord("a")), (ring, 0xC3)], {ring: ERROR})
    assert sides.consumer.drain().ended == [(ring, ERROR)]
    expected = chunk(b'F"a"A\n\nN"\xef\xbf\xbd"A\n\n')
    assert receive(client, len(expected)) == expected


def test_stop_token_is_counted_and_not_shown(sides, connect):
    """The frame that ends the stream has no text then."""
    ring = sides.start()
    server, client = connect()
    outlet = make_outlet(server.fileno(), stop_token_ids=(9,))
    sides.consumer.attach(ring, outlet)
    sides.commit([(ring, ord("a")), (ring, 9)], {ring: STOP})
    sides.consumer.drain()
    expected = chunk(b'F"a"A\n\nES\n\nD')
    assert receive(client, len(expected)) == expected
    assert outlet.num_tokens == 2
    assert outlet.written_ns > 0


def test_finish_codes_are_the_same_on_both_sides():
    """C++ and `FinishReason` agree about the ordinary ends."""
    assert {name: FinishReason[name] for name in _native.ORDINARY_FINISHES} == _native.ORDINARY_FINISHES
    assert set(FrameTemplate._fields[2:5]) == {name.lower() for name in _native.ORDINARY_FINISHES}
