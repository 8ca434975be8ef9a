"""The synthetic model's tokenizer and its deterministic answers."""

from __future__ import annotations

import string
import subprocess
import sys

import jinja2
from hypothesis import given
from hypothesis import strategies as st

from rbee.models import synthetic

TOKENIZER = synthetic.tokenizer()


@given(st.text())
def test_token_ids_are_the_bytes_of_the_text_and_decode_to_it(text: str):
    """Any text encodes to its UTF-8 bytes and comes back unchanged, whatever is in it."""
    ids = TOKENIZER.encode(text).ids
    assert bytes(ids) == text.encode()
    assert TOKENIZER.decode(ids) == text


def test_every_byte_value_is_a_token():
    """The vocabulary is complete: 256 tokens, ids 0 to 255, also those that no UTF-8 text contains."""
    assert TOKENIZER.get_vocab_size() == synthetic.VOCAB_SIZE
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(synthetic.VOCAB_SIZE))


def test_bytes_of_a_character_cut_in_half_decode_to_replacement_characters():
    """An incomplete character decodes as the server's detokenizer expects it from any byte-level tokenizer."""
    assert TOKENIZER.decode(list("é".encode())[:1]) == "\ufffd"


def test_answers_are_pinned():
    """The sequence never changes: engines, tests and recorded benchmarks of different versions agree on it."""
    assert bytes(synthetic.expected_tokens([], 16)) == b"ELcR3lZREvUBSC5w"
    assert bytes(synthetic.expected_tokens([1, 2, 70000], 16)) == b"IlEd6mA9gsFUCVk3"


@given(st.lists(st.integers(0, 2**32 - 1)), st.integers(0, 64))
def test_answers_are_letters_and_digits_chosen_by_prompt_and_index(prompt: list[int], count: int):
    """An answer is printable ASCII, a longer one begins with the shorter one, and each token is a pure function."""
    tokens = synthetic.expected_tokens(prompt, count)
    assert len(tokens) == count
    assert {chr(token) for token in tokens} <= set(string.ascii_letters + string.digits)
    assert synthetic.expected_tokens(prompt, count + 1)[:count] == tokens
    hashed = synthetic.prompt_hash(prompt)
    assert tokens == [synthetic.sequence_token(hashed, index) for index in range(count)]


def test_near_prompts_have_different_answers():
    """Prompts that differ in one token, in order or in length are told apart by a few tokens of their answers."""
    prompts = [[n] for n in range(500)] + [[1, 2], [2, 1], [1, 2, 0], [0, 1, 2], []]
    answers = {tuple(synthetic.expected_tokens(prompt, 12)) for prompt in prompts}
    assert len(answers) == len(prompts)


def test_an_answer_uses_the_whole_alphabet_and_does_not_repeat_itself():
    """A long answer has no short period, so a lost or repeated token cannot go unseen."""
    tokens = bytes(synthetic.expected_tokens([7], synthetic.MAX_MODEL_LEN))
    assert len(set(tokens)) == 62
    windows = {tokens[i : i + 8] for i in range(len(tokens) - 7)}
    assert len(windows) == len(tokens) - 7


def test_the_chat_template_renders_the_messages_in_order():
    """The template writes each message on a line and opens the assistant's turn when asked to."""
    template = jinja2.Environment(autoescape=False).from_string(synthetic.CHAT_TEMPLATE)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    rendered = template.render(messages=messages, add_generation_prompt=True)
    assert rendered == "system: Be brief.\nuser: Hi?\nassistant: "
    assert template.render(messages=messages, add_generation_prompt=False) == "system: Be brief.\nuser: Hi?\n"


def test_importing_it_brings_neither_torch_nor_transformers():
    """The server imports this module, so it must stay light."""
    program = "import sys, rbee.models.synthetic; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
