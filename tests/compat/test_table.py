"""The rows of `make compat`: what is wrong is never shown as right. The clients run in `make compat` only."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.compat.clients.observing import calls_of
from tests.compat.running import BUILT, CLIENTS, Client, Seen
from tests.compat.table import PART, rows_of
from tests.docs.generated_part import ROOT

if TYPE_CHECKING:
    from tests.compat.expected import Facts

CLIENT = Client("some", "some client", "some.py", {"chat", "unknown model"})
EXPECTED: dict[str, Facts] = {
    "chat": {"text": "Honey", "end": "stop"},
    "unknown model": {"status": 404, "message": "no 'x' here."},
}
CHAT = {"kind": "chat", "call": "ask", "saw": {"text": "Honey", "end": "stop"}}
REFUSED = {"kind": "unknown model", "call": "ask wrongly", "saw": {"status": 404, "message": "Error: no 'x' here."}}


def results(seen, client=CLIENT):
    """What its rows say, and whether that is good."""
    return [(row.result, row.is_good) for row in rows_of(client, seen, EXPECTED)]


def test_a_client_that_sees_the_same_is_right():
    """It may leave facts out, and wrap an error's message."""
    only_text = {"kind": "chat", "call": "ask", "saw": {"text": "Honey"}}
    assert results(Seen("1.0", [CHAT, only_text, REFUSED], "")) == [("as expected", True)] * 3


@pytest.mark.parametrize(
    ("observation", "fact", "value"),
    [
        (CHAT, "text", "Hone"),
        (CHAT, "end", None),
        (CHAT, "tokens", 3),  # nothing is known of it
        (REFUSED, "status", 400),
        (REFUSED, "message", "no 'y' here."),
    ],
)
def test_another_fact_is_shown(observation, fact, value):
    """With both values, in one row; the other rows stay as they are."""
    changed = observation | {"saw": observation["saw"] | {fact: value}}
    others = [other for other in (CHAT, REFUSED) if other is not observation]
    wanted = EXPECTED[observation["kind"]].get(fact)
    assert results(Seen("1.0", [changed, *others], "")) == [
        (f"{fact} is {value!r}, not {wanted!r}", False),
        ("as expected", True),
    ]


def test_what_a_client_did_not_observe_is_a_failure():
    """An error that did not come, for example."""
    assert results(Seen("1.0", [CHAT], "")) == [("as expected", True), ("not seen: unknown model", False)]


def test_a_client_that_breaks_off_is_a_failure():
    """After what it saw before."""
    assert results(Seen("1.0", [CHAT, REFUSED], "ValueError"))[2:] == [("ValueError", False)]


def test_a_row_is_one_line_of_its_table():
    """Whatever a client says."""
    [row] = rows_of(CLIENT._replace(kinds=set()), Seen("1.0", [], "a | b\nc"), EXPECTED)
    assert str(row) == "| some client | 1.0 |  |  | a \\| b c |"


def test_the_page_has_the_versions_that_are_pinned():
    """If this fails: `make compat` writes it anew. What is only a tool or a provider of a client counts, too."""
    folder = ROOT / "tests" / "compat"
    pinned = [
        version for path in folder.glob("requirements*.txt") for version in re.findall(r"==(\S+)", path.read_text())
    ]
    pinned += json.loads((folder / "package.json").read_text())["dependencies"].values()
    page = PART.page.read_text()
    assert [version for version in pinned if version not in page] == []
    assert [client.title for client in CLIENTS if f"| {client.title} |" not in page] == []


def test_what_is_installed_for_clients_is_not_in_git():
    """Neither is what is copied beside it."""
    assert BUILT.relative_to(ROOT).parts[0] in (ROOT / ".gitignore").read_text().replace("/", "").splitlines()


def test_what_a_client_needs_is_there():
    """Its program, and a rule that makes its environment; no two have the same name."""
    made = (ROOT / "Makefile").read_text()
    for client in CLIENTS:
        assert (ROOT / "tests" / "compat" / "clients" / client.program).is_file()
        assert f"$(COMPAT)/{client.environment}/.installed:" in made
    names = [client.name for client in CLIENTS]
    assert len(set(names)) == len(names)


def test_calls_are_read():
    """From JSON or from what a client has read already."""
    assert calls_of([("1", "f", '{"a": 1}'), ("2", "f", {"a": 2})]) == [["f", {"a": 1}], ["f", {"a": 2}]]


@pytest.mark.parametrize("ids", [("1", "1"), ("1", ""), ("1", None)])
def test_each_call_has_an_id_of_its_own(ids):
    """A result could not be sent back otherwise."""
    with pytest.raises(AssertionError, match="id"):
        calls_of((identity, "f", "{}") for identity in ids)
