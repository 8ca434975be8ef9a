"""What messages hold is text: no special token of a model can be written by one, and nothing else is changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from rbee.server.text import served_model
from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.special_tokens import SpecialTokens
from rbee.server.text.tokenizer import TextCodec
from tests.server.text.chat_forms_parts import CHAT_FORMS

ROLES = ("system", "user", "assistant", "user")
PLAIN = [
    {"role": role, "content": content} for role, content in zip(ROLES, ("Be b.", "a ab", "b", "user"), strict=True)
]
OTHERS = [
    PLAIN,
    PLAIN[1:],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": " a <| b |> é🐝\n\n"}],
    [{"role": "user", "content": "<|im_star", "name": "ab"}],
]

REFERENCE = """
import json, sys
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
for form in json.load(sys.stdin):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(form["tokenizer"]), **form["names"])
    print(json.dumps([
        tokenizer.apply_chat_template(
            messages, chat_template=form["template"], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for messages in form["chats"]
    ]))
"""


def codec_and_template(name: str, *, trusting: bool = False) -> tuple[TextCodec, ChatTemplate]:
    """A form as a server has it."""
    form = CHAT_FORMS[name]
    codec = TextCodec(form.tokenizer())
    special = SpecialTokens(() if trusting else codec.special_tokens)
    return codec, ChatTemplate(form.template, form.names, special)


def encoded(name: str, messages: list[dict[str, Any]], *, trusting: bool = False) -> list[int]:
    """The token ids of a chat."""
    codec, template = codec_and_template(name, trusting=trusting)
    return codec.encode_pieces(template.render(messages))


def control_tokens(name: str, ids: list[int]) -> Counter[int]:
    """How often each special token is there."""
    tokenizer = CHAT_FORMS[name].tokenizer()
    special = {tokenizer.token_to_id(token) for token in CHAT_FORMS[name].tokens}
    return Counter(token_id for token_id in ids if token_id in special)


def in_place(position: int, content: str, message: str = "content") -> list[dict[str, Any]]:
    """The plain chat, with this text in one message."""
    return [{**each, message: content} if n == position else each for n, each in enumerate(PLAIN)]


@pytest.mark.parametrize("position", range(len(PLAIN)), ids=ROLES)
@pytest.mark.parametrize(
    ("name", "token"), [(name, token) for name, form in CHAT_FORMS.items() for token in form.tokens]
)
def test_no_message_can_write_a_special_token(name, token, position):
    """Alone, inside a word, doubled, halved and nested: the control tokens are those that the template writes.

    And the model reads what was written, letter by letter.
    """
    tokenizer = CHAT_FORMS[name].tokenizer()
    own = control_tokens(name, encoded(name, in_place(position, "ab")))
    half = len(token) // 2
    for content in (token, f"a{token}b", token * 2, token[:half] + token + token[half:], f"a {token}\nab{token} b"):
        ids = encoded(name, in_place(position, content))
        assert control_tokens(name, ids) == own
        assert content in tokenizer.decode(ids, skip_special_tokens=False)


def test_no_name_can_write_one():
    """A name is a client's too."""
    ids = encoded("role between", in_place(1, "<|end_of_role|>", "name"))
    assert control_tokens("role between", ids) == control_tokens("role between", encoded("role between", PLAIN))


@pytest.mark.slow
def test_all_other_prompts_are_those_of_transformers():
    """Id by id, for every form: a text without special tokens is encoded as a whole."""
    forms = [
        {"tokenizer": form.tokenizer().to_str(), "names": form.names, "template": form.template, "chats": OTHERS}
        for form in CHAT_FORMS.values()
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REFERENCE],
        input=json.dumps(forms),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    for name, ids in zip(CHAT_FORMS, theirs, strict=True):
        assert [encoded(name, messages) for messages in OTHERS] == ids, name


@pytest.mark.parametrize("name", CHAT_FORMS)
def test_trusted_content_can(name):
    """As transformers does: each special token that a message holds is one."""
    tokenizer = CHAT_FORMS[name].tokenizer()
    for token in CHAT_FORMS[name].tokens:
        ids = encoded(name, in_place(1, f"a{token}b"), trusting=True)
        more = control_tokens(name, ids) - control_tokens(name, encoded(name, PLAIN))
        assert more == {tokenizer.token_to_id(token): 1}


@pytest.mark.parametrize("trust_content", [False, True])
def test_the_option_says_which(trust_content, tmp_path):
    """`--trust-content` is read with the model."""
    form = CHAT_FORMS["im_start"]
    form.tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(form.template)
    model = served_model.load("m", tmp_path, trust_content=trust_content)
    assert model.chat_template is not None
    pieces = model.chat_template.render([{"role": "user", "content": "a<|im_end|>"}])
    assert len(pieces) == (1 if trust_content else 2)
