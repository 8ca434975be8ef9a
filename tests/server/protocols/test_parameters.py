"""Parameters as they are read: which values are taken and what they mean, which are refused and what is named."""

import pytest

from rbee.sampling_params import SamplingParams
from rbee.server.http.refusals import status_of
from rbee.server.protocols.openai.schemas import SYNONYMS
from tests.raw_client import CHAT, COMPLETIONS
from tests.server.protocols.parameters_parts import BOTH, HI_TOKENS, PARAMETERS, read, refusal

# ---- what is refused -------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 1000.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"typical_p": 0}, "typical_p"),
        ({"typical_p": 1.1}, "typical_p"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 10.1}, "repetition_penalty"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias"),
        ({"logit_bias": {"5": -101}}, "logit_bias"),
        ({"logit_bias": {"256": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"\u0665": 1}}, "logit_bias"),
        ({"logit_bias": {"5": "1"}}, "logit_bias"),
        ({"logit_bias": {"5": None}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [256]}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"allowed_token_ids": ["5"]}, "allowed_token_ids[0]"),
        ({"stop_token_ids": [256]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [10**30]}, "stop_token_ids"),
        ({"stop_token_ids": ["1"]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [1] * 257}, "stop_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"n": 3, "best_of": 1}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"n_predict": -2}, "n_predict"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"min_tokens": 100}, "min_tokens"),
        ({"min_tokens": 1, "allowed_token_ids": [7, 9], "stop_token_ids": [9]}, "min_tokens"),
        ({"min_tokens": 1, "stop_token_ids": [*range(256)]}, "min_tokens"),
        ({"priority": 101}, "priority"),
        ({"priority": -101}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"deadline": "tomorrow"}, "deadline"),
        ({"deadline": ""}, "deadline"),
        ({"deadline": "2030-01-31T12:00:00"}, "deadline"),
        ({"deadline": 1.5}, "deadline"),
        ({"logprobs": "yes"}, "logprobs"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(route, fields, param):
    """Each value that is out of its range or of a wrong type is a 400 whose param and message name the field."""
    error = refusal(route, fields)
    assert (status_of(error), error.param) == (400, param)
    assert param.partition("[")[0] in error.message
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"logprobs": 3}, "logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": True}, "top_logprobs"),
        (CHAT, {"top_logprobs": 1}, "top_logprobs"),
        (CHAT, {"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        (COMPLETIONS, {"logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"logprobs": -1}, "logprobs"),
        (COMPLETIONS, {"logprobs": True}, "logprobs"),
        (COMPLETIONS, {"echo": 1}, "echo"),
        (CHAT, {"prompt_logprobs": 21}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt_logprobs": -1}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        (COMPLETIONS, {"echo": False, "max_tokens": 0}, "max_tokens"),
        (COMPLETIONS, {"echo": True, "max_tokens": 0, "min_tokens": 1}, "min_tokens"),
        (COMPLETIONS, {"min_tokens": 17}, "min_tokens"),  # by default there are 16
    ],
)
def test_refusals_of_one_route(route, fields, param):
    """The same for what only one of the routes has, or has in another shape."""
    error = refusal(route, fields)
    assert (status_of(error), error.param) == (400, param)
    assert param in error.message


@pytest.mark.parametrize(("route", "field"), [(CHAT, "top_logprobs"), (COMPLETIONS, "logprobs")])
def test_logprobs_have_to_fit_the_ring(route, field):
    """A token and its notes are published at once: what can never fit is refused with the option's name."""
    asked = {"logprobs": True} if route == CHAT else {}
    assert read(route, asked | {field: 3}, ring_capacity=4).sampling.num_logprobs == 3
    error = refusal(route, asked | {field: 4}, ring_capacity=4)
    assert (status_of(error), error.param) == (400, field)
    assert "--ring-capacity" in error.message
    assert read(route, asked | {field: 3, "stop": "x"}, ring_capacity=5).sampling.num_logprobs == 3
    assert refusal(route, asked | {field: 3, "stop": "x"}, ring_capacity=4).param == field
    if route == COMPLETIONS:
        assert read(route, {field: 3, "echo": True}, ring_capacity=7).sampling.num_prompt_logprobs == 3
        assert "At most 2 is possible" in refusal(route, {field: 3, "echo": True}, ring_capacity=6).message
    error = refusal(route, asked | {field: 2, "prompt_logprobs": 2}, ring_capacity=4)
    assert (error.param, "At most 1 is possible" in error.message) == ("prompt_logprobs", True)


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "wanted"), [(10, 91, 101), (100, 1, 101), (100, 0, 101), (5000, 10, 5010)]
)
def test_too_long_says_both_numbers(prompt_tokens, max_tokens, wanted):
    """A context that cannot fit is refused with the model's length and with what was asked for."""
    error = refusal(COMPLETIONS, {"prompt": [1] * prompt_tokens, "max_tokens": max_tokens, "echo": True})
    assert (status_of(error), error.code, error.param) == (400, "context_length_exceeded", "prompt")
    assert "100 tokens" in error.message
    assert str(wanted) in error.message
    long_chat = [{"role": "user", "content": "x" * 200}]
    assert refusal(CHAT, {"messages": long_chat}).param == "messages"


@pytest.mark.parametrize("prompt", ["", []])
def test_empty_prompt_is_refused(prompt):
    """There is nothing to continue."""
    assert refusal(COMPLETIONS, {"prompt": prompt}).param == "prompt"
    assert refusal(COMPLETIONS, {"prompt": ["x", prompt]}).param == "prompt[1]"


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids", "allowed_token_ids", "prompt"])
def test_a_token_id_that_does_not_exist_is_named(field):
    """Beside the ids that there are."""
    error = refusal(COMPLETIONS, {field: {"5": 1, "300": 1} if field == "logit_bias" else [5, 300]})
    assert error.param == field
    assert "300" in error.message
    assert "0 to 255" in error.message


# ---- what is taken ---------------------------------------------------------------------------------------------


@BOTH
def test_null_means_absent(route):
    """A client that sends every parameter as null gets the defaults, which ask for nothing but tokens."""
    generation = read(route, dict.fromkeys(PARAMETERS[route]))
    plain = SamplingParams(
        max_tokens=16 if route == COMPLETIONS else 100 - HI_TOKENS,
        seed=generation.sampling.seed,
        stop_token_ids=(7, 8),
    )
    assert generation.sampling == plain
    assert (generation.n, generation.echo, generation.show_output) == (1, None, True)
    assert (generation.priority, generation.deadline_ns, generation.cache_salt) == (0, 0, "")


@BOTH
@pytest.mark.parametrize("name", ["max_tokens", "n_predict"])
def test_no_limit(route, name):
    """-1 takes all that the context leaves, also in completions, whose default is a limit."""
    prompt_tokens = 2 if route == COMPLETIONS else HI_TOKENS
    for value in (-1, -1.0):
        assert read(route, {name: value}).sampling.max_tokens == 100 - prompt_tokens


def test_no_limit_beside_others():
    """Several prompts have what the longest leaves; a chat's other field says the limit."""
    generation = read(COMPLETIONS, {"prompt": ["a", "long", "bcd"], "max_tokens": -1})
    assert generation.sampling.max_tokens == 96
    assert read(CHAT, {"max_tokens": -1, "max_completion_tokens": 7}).sampling.max_tokens == 7
    assert read(COMPLETIONS, {"max_tokens": -1, "min_tokens": 98}).sampling.min_tokens == 98


@BOTH
@pytest.mark.parametrize(
    ("field", "lowest", "highest"),
    [
        ("temperature", 0, 1000),
        ("top_p", 0, 1),
        ("top_k", 1, 2**31 - 1),
        ("min_p", 0, 1),
        ("typical_p", 1e-9, 1),
        ("frequency_penalty", -2, 2),
        ("presence_penalty", -2, 2),
        ("repetition_penalty", 0.01, 10),
        ("seed", -(2**63), 2**63 - 1),
        ("min_tokens", 0, 16),
        ("max_tokens", 1, 80),
    ],
)
def test_ends_of_the_ranges(route, field, lowest, highest):
    """The smallest and the largest value are taken, and go to the engine as they are."""
    for value in (lowest, highest):
        assert getattr(read(route, {field: value}).sampling, field) == value


@BOTH
def test_sizes_at_their_limit(route):
    """So many choices, biases, stop ids and characters of a salt are possible."""
    biases = {str(token_id): -100 for token_id in range(1024)}
    generation = read(
        route,
        {"n": 64, "logit_bias": biases, "stop_token_ids": [1] * 256, "cache_salt": "x" * 256, "priority": -100},
        vocab_size=1024,
    )
    assert generation.n == 64
    assert generation.sampling.logit_bias == dict.fromkeys(range(1024), -100.0)
    assert (generation.cache_salt, generation.priority) == ("x" * 256, -100)


@BOTH
def test_sizes_above_their_limit(route):
    """One more is refused, also by a server that has room for more."""
    biases = {str(token_id): -100 for token_id in range(1025)}
    assert "at most 1024" in refusal(route, {"logit_bias": biases}, vocab_size=1025).message
    assert read(route, {"n": 128}, num_rings=192).n == 128
    assert "from 1 to 128" in refusal(route, {"n": 129}, num_rings=192).message
    assert read(route, {"stop": ["x"] * 64}).stops == ["x"] * 64
    assert "at most 64" in refusal(route, {"stop": ["x"] * 65}).message


@BOTH
def test_top_p_of_0_is_the_most_likely_token(route):
    """OpenAI's range begins there: no other token is needed to reach it."""
    assert read(route, {"top_p": 0, "temperature": 1.5}).sampling.temperature == 0


@BOTH
def test_whole_floats_are_integers(route):
    """Some languages have no others; a list may hold them too."""
    sampling = read(route, {"max_tokens": 3.0, "seed": -1.0, "top_k": 5e0, "stop_token_ids": [9.0, 3]}).sampling
    assert (sampling.max_tokens, sampling.seed, sampling.top_k) == (3, -1, 5)
    assert sampling.stop_token_ids == (3, 7, 8, 9)
    if route == COMPLETIONS:
        assert read(route, {"prompt": [[104.0, 105], [1.0]]}).prompt == [104, 105]


@BOTH
def test_llama_cpps_spellings(route):
    """n_predict is max_tokens and repeat_penalty repetition_penalty; with both, they have to agree."""
    sampling = read(route, {"n_predict": 3, "repeat_penalty": 1.2}).sampling
    assert (sampling.max_tokens, sampling.repetition_penalty) == (3, 1.2)
    assert read(route, {"n_predict": 3, "max_tokens": 3, "repeat_penalty": None}).sampling.max_tokens == 3
    error = refusal(route, {"n_predict": 3, "max_tokens": 4})
    assert (error.param, "max_tokens" in error.message) == ("n_predict", True)


@pytest.mark.parametrize("name", SYNONYMS)
@pytest.mark.parametrize("value", [{"a": 1}, -2, 2**40], ids=["a wrong type", "too small", "too large"])
@BOTH
def test_a_refusal_names_the_field_that_was_sent(route, name, value):
    """Whatever its usual name is; both names are the usual one's matter."""
    usual = SYNONYMS[name]
    error = refusal(route, {name: value})
    assert (error.param, error.message.count(name), usual in error.message) == (name, 1, False)
    assert refusal(route, {name: value, usual: None}).message == error.message
    both = refusal(route, {name: value, usual: value})
    assert both.param == usual
    assert both.message == error.message.replace(name, usual)


@BOTH
def test_the_remedy_of_a_refusal_names_the_field_that_was_sent(route):
    """Where another field is to blame, too; what is quoted of the request stays as it is."""
    error = refusal(route, {"n_predict": 200})
    assert error.code == "context_length_exceeded"
    assert error.message.endswith("Shorten the prompt or lower n_predict.")
    error = refusal(route, {"n_predict": 5, "model": "max_tokens"})
    assert "The model 'max_tokens' is not served here" in error.message
    error = refusal(route, {"n_predict": 5, "temperature": -1})
    assert (error.param, error.message) == ("temperature", "temperature must be from 0 to 1000, not -1.0.")
    if route == CHAT:
        error = refusal(route, {"n_predict": 5, "max_completion_tokens": 6})
        assert error.message.startswith("n_predict and max_completion_tokens differ;")


@BOTH
def test_other_spellings(route):
    """A top_k of -1 keeps all, as 0 does; end-of-sequence ids join the client's, unless they are to be ignored."""
    assert read(route, {"top_k": -1}).sampling.top_k == 0
    assert read(route, {"stop_token_ids": [9, 3]}).sampling.stop_token_ids == (3, 7, 8, 9)
    assert read(route, {"stop_token_ids": [9, 3], "ignore_eos": True}).sampling.stop_token_ids == (3, 9)
    assert read(route, {"best_of": 3, "n": 3}).n == 3


@BOTH
def test_without_a_seed_the_server_picks_one(route):
    """Two requests do not draw the same numbers by default."""
    assert read(route, {}).sampling.seed != read(route, {}).sampling.seed


def test_logprobs():
    """A chat says whether and how many, a completion says how many; the prompt has some only where it is echoed."""

    def numbers(route, **fields):
        sampling = read(route, fields).sampling
        return sampling.num_logprobs, sampling.num_prompt_logprobs

    assert numbers(CHAT, logprobs=False, top_logprobs=0) == (None, None)
    assert numbers(CHAT, logprobs=True) == (0, None)
    assert numbers(CHAT, logprobs=True, top_logprobs=20) == (20, None)
    assert numbers(COMPLETIONS, logprobs=0) == (0, None)
    assert numbers(COMPLETIONS, logprobs=20) == (20, None)
    assert numbers(COMPLETIONS, logprobs=0, echo=True) == (0, 0)
    assert numbers(COMPLETIONS, echo=True) == (None, None)
    assert numbers(COMPLETIONS, prompt_logprobs=3) == (None, 3)
    assert numbers(COMPLETIONS, prompt_logprobs=3, logprobs=5) == (5, 3)
    assert numbers(COMPLETIONS, prompt_logprobs=3, logprobs=5, echo=True) == (5, 5)
    assert numbers(CHAT, prompt_logprobs=0) == (None, 0)
    assert read(COMPLETIONS, {"logprobs": 20}, vocab_size=12).sampling.num_logprobs == 12, "there are no more tokens"


@pytest.mark.parametrize("prompt", ["hi", [104, 105]])
def test_echo_without_output(prompt):
    """A client may ask for its prompt alone: the one token that the engine has to make is not to be shown."""
    generation = read(COMPLETIONS, {"prompt": prompt, "echo": True, "max_tokens": 0})
    assert generation.echo is not None
    assert (generation.show_output, generation.sampling.max_tokens) == (False, 1)
    assert generation.echo.text == "hi"
    assert read(COMPLETIONS, {"echo": True, "max_tokens": 1}).show_output
