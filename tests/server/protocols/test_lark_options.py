"""What a Lark grammar says beside its texts: followed, or refused by name; nothing is ignored."""

from __future__ import annotations

import contextlib

import pytest

from rbee.errors import GrammarError
from rbee.server.errors import Refusal
from rbee.server.protocols.lark_options import check_lark
from rbee.server.protocols.output_form import of_grammar
from tests.server.protocols.forms_parts import allows

REFUSED = [
    ("start[temperature=0.5]: /a+/", "temperature", "set that of the request"),
    ("start: x\nx[ lazy , temperature=1 ]  : /a/", "temperature", "set that of the request"),
    ("start: x\n?x[max_tokens=3, temperature=1]: /a/", "temperature", "set that of the request"),
    ("start: x\n!_x[temperature=1]: /a/\nx: _x", "temperature", "set that of the request"),
    ("\r\n \t start[temperature=1]: /a/ // [\n", "temperature", "set that of the request"),
    ('start: "\\"" /[:"]/ // "\nx[temperature=1]: /a/', "temperature", "set that of the request"),
    ('start: /[#]/ # "\nx[temperature=1]: /a/', "temperature", "set that of the request"),
    ('start: %json {"a": "\\"}"}\nx[temperature=1]: /a/', "temperature", "set that of the request"),
    ("start: %lark {\n start[temperature=0.3]: /a/\n}", "temperature", "set that of the request"),
    ("start: x::0\nx::_[temperature=1] : /a/", "temperature", "set that of the request"),
    ("start[capture]: /a+/", "capture", "no captures"),
    ('start[capture="x"]: /a+/', "capture", "no captures"),
    ('start: x\nx[suffix="a", stop_capture="x"]: /a+/', "stop_capture", "no captures"),
    ('start: x "b"\nx[stop="c"]: /a*/', "stop", "write suffix, or lazy"),
    ('start: x "b"\nx[stop=""]: /a*/', "stop", "write suffix, or lazy"),
    ('%llguidance {"allow_initial_skip": true}\nstart: /a*/', "%llguidance allow_initial_skip", "begin the rule start"),
    ('%llguidance {"allow_invalid_utf8": true}\nstart: /a*/', "%llguidance allow_invalid_utf8", "outputs are texts"),
    ('start: /a*/\n%llguidance {"no_forcing": false}', "%llguidance no_forcing", "leave it out"),
    ('start: %lark {\n%llguidance {"whatever": 1}\nstart: /a/\n}', "%llguidance whatever", "leave it out"),
]


@pytest.mark.parametrize(("source", "name", "remedy"), REFUSED)
def test_what_would_be_ignored_is_refused(source, name, remedy):
    """With its name, and with what to do instead."""
    with pytest.raises(Refusal) as caught:
        of_grammar(source, "guided_grammar")
    assert (caught.value.param, caught.value.code) == ("guided_grammar", "invalid_grammar")
    assert caught.value.message.startswith(f"guided_grammar has {name!r}, which is not supported: ")
    assert remedy in caught.value.message


FOLLOWED = [
    ("start[max_tokens=2]: /a+/", "aa", "aaa"),
    ('start: x "b"\nx[max_tokens=2]: /a*/', "aab", "aaab"),
    ('start: x "b"\nx[suffix="c"]: /a*/', "aacb", "aab"),
    ('start: x "b"\nx[lazy]: /a*c/', "aacb", "aab"),
    ('%llguidance {}\nstart: "a"', "a", "b"),
    ('%llguidance {"no_forcing": true}\nstart: "a"', "a", "b"),
    ('start: x [temperature]\nx: "a"\ntemperature: "b"', "ab", "b"),
    ('start: x\n| [capture] "c"\nx: "a"\ncapture: "b"', "bc", "b"),
    ('start: "x[stop=1]:" /y[capture]:?/', "x[stop=1]:yc", "x"),
    ("start: /a/ // x[temperature=1]: y\n# x[stop=1]: y\n", "a", "b"),
    ('start: %json {"const": "\\nx[temperature=1]:"}', '"\\nx[temperature=1]:"', "x"),
    ("TEMPERATURE: /a/\nstart: TEMPERATURE [TEMPERATURE]", "aa", "b"),
]


@pytest.mark.parametrize(("source", "text", "no_text"), FOLLOWED)
def test_what_is_taken_is_followed(source, text, no_text):
    """In a grammar, and in one that is a part of another. Texts and comments may look like attributes."""
    form = of_grammar(source, "grammar")
    assert form is not None
    for whole in (form.source, f"start: {form.rule}"):
        assert [allows(whole, one) for one in (text, no_text)] == [True, False]


@pytest.mark.parametrize("source", ["start[foo=1]: /a/", "X[lazy]: /a/\nstart: X", "start: %json {", "start[lazy", "["])
def test_what_llguidance_refuses_is_left_to_it(source):
    """It says what is wrong."""
    form = of_grammar(source, "grammar")
    assert form is not None
    with pytest.raises(GrammarError):
        allows(form.source, "a")


@pytest.mark.parametrize("piece", ['"\\', "/\\", "_", "x[a,", '%lark "', "%json ", ":: ", '"a" '])
def test_a_grammar_of_any_length_is_read_in_linear_time(piece):
    """Else each of these would stop the event loop for minutes."""
    with contextlib.suppress(Refusal):
        check_lark(piece * 200_000, "grammar")
