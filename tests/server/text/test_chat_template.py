"""Chat templates are rendered as transformers renders them, in a sandbox."""

import json
import subprocess
import sys

import pytest

from rbee.errors import ModelError
from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.text.chat_template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be <brief> & 'kind' \"é\"."},
    {"role": "user", "content": " Hello\n"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]

TEMPLATES = [
    """
{% for m in messages %}
    {% if m.role == 'system' %}
  [{{ m.content }}]
    {% else %}
{{ m.role }}: {{ m.content | trim }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}assistant:{% endif %}""",
    "{{ bos_token }}{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ eos_token }}",
    "{% for m in messages %}{% if loop.index == 3 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ tools }}",
    "{{ strftime_now('%Y') }}{{ documents is none }}{{ undefined_name }}{{ extra }}",
]

REFERENCE = """
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
templates, messages = json.load(sys.stdin)
print(json.dumps([
    render_jinja_template([messages], chat_template=template, add_generation_prompt=True,
                          bos_token="<s>", eos_token="</s>", extra="more")[0][0]
    for template in templates
]))
"""


def render(source, messages=MESSAGES, **options):
    """The text of `messages`, none of which has a special token."""
    [text] = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages, **options)
    return text


def test_equals_transformers(default_model):
    """What templates use (whitespace rules, loop controls, tojson, generation blocks ...) gives the same text."""
    default = (default_model.path / "chat_template.jinja").read_text()
    templates = [default, *TEMPLATES]
    reference = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REFERENCE],
        input=json.dumps([templates, MESSAGES]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert [render(template, variables={"extra": "more"}) for template in templates] == json.loads(reference.stdout)


def test_generation_prompt_can_be_left_out():
    """Without it the text ends with the last message."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    assert render(template).endswith("Bye>")
    assert render(template, add_generation_prompt=False).endswith("Bye")


def test_continue_final_message_ends_right_after_it():
    """Whatever the template writes after a message, or trims off it, the model goes on from the last character."""
    template = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}"
    messages = [{"role": "user", "content": "Hi "}, {"role": "assistant", "content": "Well, "}]
    assert render(template, messages, continue_final_message=True) == "<Hi><Well, "


_USER_AND_MODEL = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}" + _USER_AND_MODEL,
        _USER_AND_MODEL.replace("%}<", "if m.role != 'system' %}<", 1),
    ],
)
def test_a_template_without_system_messages_has_them_in_the_users(source):
    """One that fails on them and one that leaves them out; the user's words without a system message are unchanged."""
    system, *others = MESSAGES
    expected = "<user>Be <brief> & 'kind' \"é\".\n\n Hello\n<assistant>Hi<user>Bye"
    assert render(source) == expected
    assert render(source, [{**system, "role": "developer"}, *others]) == expected
    assert render(source, [system]) == "<user>Be <brief> & 'kind' \"é\"."
    assert render(source, others) == "<user> Hello\n<assistant>Hi<user>Bye"
    later = [*others, system, {"role": "user", "content": "Go"}]
    assert render(source, later).endswith("<user>Bye<user>Be <brief> & 'kind' \"é\".\n\nGo")


def test_developer_is_system_unless_the_template_knows_it():
    """OpenAI's newer role reaches templates that were written before it."""
    messages = [{"role": "developer", "content": "x"}]
    assert render("{{ messages[0].role }}", messages) == "system"
    assert render("{{ messages[0].role }}{# developer #}", messages) == "developer"


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
    ],
)
def test_template_that_fails_is_the_requests_error(template, word):
    """A refusal, a failure or an attempt to leave the sandbox is a 400 that says what the template said."""
    with pytest.raises(Refusal, match=word) as caught:
        render(template)
    assert status_of(caught.value) == 400
    assert caught.value.param == "messages"


def test_request_may_not_hide_what_the_server_sets():
    """chat_template_kwargs are further variables; they cannot replace the conversation."""
    with pytest.raises(Refusal, match="messages") as caught:
        render("{{ messages }}", variables={"messages": []})
    assert caught.value.param == "chat_template_kwargs"


def test_template_that_does_not_compile_is_the_models_error():
    """The reason is jinja's."""
    with pytest.raises(ModelError, match=r"does not compile: .* Correct the template\."):
        ChatTemplate("{% for %}", {})
