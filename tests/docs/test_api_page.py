"""docs/api.md: its tables are the code's, its routes are served, and its examples run."""

from __future__ import annotations

import contextlib
import io
import json
import re
from typing import Any

import httpx
import pytest

from rbee.server.protocols.meanings import MEANINGS
from rbee.server.protocols.openai import schemas
from tests.docs import api_table

PAGE = api_table.PART.page
EXAMPLE = re.compile(
    r"^```sh\ncurl (?:-N )?http://127\.0\.0\.1:8000(\S+) .*?-d '(.*?)'\n```$", re.MULTILINE | re.DOTALL
)
PROGRAM = re.compile(r"^```python\n(.*?)```$", re.MULTILINE | re.DOTALL)


def test_tables_are_fresh():
    """If this fails: `python -m tests.docs.api_table` writes them anew."""
    assert api_table.PART.page.read_text() == api_table.PART.filled(api_table.section())


def test_every_parameter_has_its_line():
    """And no other name has one."""
    fields = {*schemas.ChatRequest.__struct_fields__, *schemas.CompletionRequest.__struct_fields__}
    assert set(MEANINGS) == fields
    options = set(schemas.StreamOptions.__struct_fields__)
    assert options <= set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))


def test_there_are_examples():
    """Of both kinds."""
    assert len(EXAMPLE.findall(PAGE.read_text())) == PAGE.read_text().count("```sh") == 3
    assert len(PROGRAM.findall(PAGE.read_text())) == 1


@pytest.mark.parametrize(("path", "body"), EXAMPLE.findall(PAGE.read_text()))
def test_examples_are_answered(synthetic_server, path, body):
    """As they stand there."""
    answer = httpx.post(synthetic_server.url + path, json=json.loads(body), timeout=60)
    assert answer.status_code == 200, answer.text
    assert "warning" not in answer.headers


def test_the_program_runs(synthetic_server):
    """With another port."""
    [program] = PROGRAM.findall(PAGE.read_text())
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        names: dict[str, Any] = {}
        exec(program.replace("http://127.0.0.1:8000", synthetic_server.url), names)
        names["client"].close()
        names["stream"].close()
    assert len(printed.getvalue()) == 50


def test_routes_are_served(synthetic_server):
    """None of them is unknown; those for streams and models have names of their own."""
    for method, path in re.findall(r"`(GET|POST) (/[^`]*)`", PAGE.read_text().partition("\n## ")[0]):
        answer = httpx.request(method, synthetic_server.url + path.replace("{name}", "synthetic"), timeout=60)
        assert answer.status_code in ({200} if method == "GET" and "{id}" not in path else {410, 415})
