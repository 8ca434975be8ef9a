"""What a request asks of the engine besides its prompt: the range of each parameter, and what it means there.

Owns the limits of parameters, and every refusal that depends on the model or on the server's options. What a parameter
does stands in `rbee.sampling_params`. Does not know which protocol a request uses.
"""

from __future__ import annotations

import random
import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

from rbee.models.sampling_defaults import BOUNDS
from rbee.sampling_params import SamplingParams
from rbee.server.errors import deadline_passed, invalid

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from rbee.server.errors import Refusal

DEADLINE_HEADER = "X-Request-Deadline"
MAX_CHOICES = 128  # of all prompts together: they are submitted at once, and other streams wait that long
MAX_LOGIT_BIASES = 1024  # OpenAI has 300
MAX_STOP_TOKEN_IDS = 256
MAX_STOP_STRINGS = 64  # OpenAI has 4; each costs time for each character of the output
MAX_STOP_BYTES = 1000

MOST_TOKENS = 2**31 - 1
RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (0, MOST_TOKENS),
    "max_completion_tokens": (1, MOST_TOKENS),
    "min_tokens": (0, MOST_TOKENS),
    "thinking_token_budget": (-1, MOST_TOKENS),
    "temperature": (0, 1000),  # OpenAI has 2; of much more than that any token is as likely as any other
    "top_p": (0, 1),
    "top_k": (-1, MOST_TOKENS),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "repetition_penalty": (0.01, 10),  # logits are divided by it: 0 has no meaning, and a tiny one no finite result
    "seed": (-(2**63), 2**63 - 1),
    "n": (1, MAX_CHOICES),
    "logprobs": (0, 20),  # vLLM's limit; OpenAI has 5. A chat's are true or false, which Python takes for 1 and 0
    "top_logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
    "priority": (-100, 100),
}
# Fields of peers' servers that cannot change what an answer is: every protocol takes them as advisory.
ADVISORY_OF_PEERS = frozenset({"cache_prompt", "id_slot", "request_id", "timings_per_token"})
_MAX_BIAS = 100
_MAX_SALT_CHARACTERS = 256
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,17}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_NS = 10 * 366 * 24 * 3600 * 10**9  # of a deadline: ten years are for ever, and fit 64 bits


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters that every request for a generation has; a protocol's request is a subclass that adds its prompt.

    Names are OpenAI's; where it has none, vLLM's. Most values go to `rbee.sampling_params` as they are.
    """

    prompt_field: ClassVar[str] = "prompt"  # to blame for a prompt that is too long
    own_ranges: ClassVar[dict[str, tuple[float, float]]] = {}  # in place of RANGES

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] = {}
    allowed_token_ids: list[int] | None = None
    seed: int | None = None
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    n: int = 1
    best_of: int | None = None  # completions to choose the best n of; only n itself
    priority: int = 0  # smaller runs earlier
    deadline: str | None = None  # ISO 8601 with a time zone; also the header X-Request-Deadline
    cache_salt: str = ""  # only requests with the same salt share cached prefixes
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    timings: bool = False  # the answer, or a stream's last chunk, says how long it took
    user: str | None = None  # a label, which changes nothing, as the next one
    metadata: dict[str, Any] | None = None

    @property
    def echoes(self) -> bool:
        """Whether the prompt comes before the completion."""
        return False

    @property
    def asked_logprobs(self) -> tuple[str, int | None]:
        """The field that asks for logprobs, and for how many of the most likely tokens; None for no logprobs."""
        return "logprobs", None

    @property
    def asked_prompt_logprobs(self) -> int | None:
        """The same number for the tokens of the prompt, where the answer lists them apart; None: it does not."""
        return None


class Parameters(NamedTuple):
    """What the parameters of a request mean."""

    sampling: SamplingParams  # of the first choice
    stops: list[str]  # stop strings
    deadline_ns: int  # when the request ends at the latest, CLOCK_MONOTONIC; 0 is never


class Limits(NamedTuple):
    """What the model and the server allow."""

    max_model_len: int  # prompt plus output, in tokens
    vocab_size: int  # token ids are below it
    num_rings: int  # sequences that there can be at once
    ring_capacity: int  # records that a sequence's ring holds


def defaults_in_force(recommended: Mapping[str, float]) -> dict[str, float]:
    """The sampling parameters of a request that sets none, for a model that recommends these."""
    neutral = {field.name: field.default for field in msgspec.structs.fields(GenerationRequest)}
    return {name: recommended.get(name, neutral[name]) for name in BOUNDS}


def check_parameters(request: GenerationRequest) -> None:
    """Raise the first of `parameter_refusals`."""
    for refusal in parameter_refusals(request):
        raise refusal


def parameter_refusals(request: GenerationRequest) -> Iterator[Refusal]:
    """A refusal for each value that no model and no server could take, for protocols that list all of them."""
    for name, (low, high) in (RANGES | request.own_ranges).items():
        value = getattr(request, name, None)  # None: absent, or not on this route
        if value is not None and not low <= value <= high:
            yield invalid(name, f"{name} must be from {low} to {high}, not {_shown(value)}.")
    if request.typical_p == 0:
        yield invalid("typical_p", "typical_p must be above 0; 1 keeps all tokens.")
    if request.max_tokens == 0 and not request.echoes:
        yield invalid("max_tokens", "max_tokens must be at least 1; 0 is for completions with echo.")
    if request.best_of is not None and request.best_of != request.n:
        yield invalid(
            "best_of",
            f"best_of is {_shown(request.best_of)}, but n is {request.n}: all choices are returned, none are chosen "
            "among. Leave best_of out.",
        )
    if len(request.cache_salt) > _MAX_SALT_CHARACTERS:
        yield invalid("cache_salt", f"cache_salt may have at most {_MAX_SALT_CHARACTERS} characters.")


def check_token_ids(token_ids: Collection[int], param: str, vocab_size: int) -> None:
    """Raise Refusal unless every id exists."""
    for extreme in (min(token_ids), max(token_ids)) if token_ids else ():
        if not 0 <= extreme < vocab_size:
            raise invalid(
                param,
                f"{param} holds the token id {_shown(extreme)}, and this model's ids are 0 to {vocab_size - 1}.",
            )


def check_choices(request: GenerationRequest, num_prompts: int, num_rings: int) -> None:
    """Raise Refusal unless a request may have n choices of each prompt, and the server can hold them at once."""
    if request.n > num_rings:
        raise invalid("n", f"n is {request.n}, but this server holds {num_rings} choices (--max-requests).")
    choices = request.n * num_prompts
    if choices > min(MAX_CHOICES, num_rings):
        bound = f"a request may have {MAX_CHOICES}"
        if num_rings < MAX_CHOICES:
            bound = f"this server holds {num_rings} (--max-requests)"
        raise invalid(
            request.prompt_field,
            f"{request.prompt_field} holds {num_prompts} prompts, and with n {request.n} these are {choices} choices, "
            f"but {bound}. Send them in several requests.",
        )


def read_parameters(
    request: GenerationRequest,
    *,
    max_tokens: int | None,
    prompt_tokens: int,
    limits: Limits,
    end_token_ids: Iterable[int],
    deadlines: Sequence[str],
    num_prompts: int = 1,
) -> Parameters:
    """What the parameters of a request, which `check_parameters` has let pass, mean for the engine.

    `max_tokens` is as asked for; None takes what the model's length leaves. `prompt_tokens` are those of the longest of
    `num_prompts`. `end_token_ids` stop the output, unless the request ignores them. `deadlines` are the values of its
    X-Request-Deadline headers.

    Raises:
        Refusal: a parameter that this model or this server cannot follow.
    """
    check_choices(request, num_prompts, limits.num_rings)
    sampling = _sampling_params(
        request, max_tokens=max_tokens, prompt_tokens=prompt_tokens, limits=limits, end_token_ids=end_token_ids
    )
    deadline_ns = read_deadline(request.deadline, deadlines, wall_ns=time.time_ns(), monotonic_ns=time.monotonic_ns())
    return Parameters(sampling, stop_strings(request), deadline_ns)


def _sampling_params(
    request: GenerationRequest,
    *,
    max_tokens: int | None,
    prompt_tokens: int,
    limits: Limits,
    end_token_ids: Iterable[int],
) -> SamplingParams:
    """For the first choice. max_tokens 0 becomes 1, as the engine has no other end; that token is not shown."""
    if prompt_tokens == 0:
        raise invalid("prompt", "The prompt has no tokens; send at least one.")
    room = limits.max_model_len - prompt_tokens
    wanted = max_tokens or 1
    if room < wanted:
        raise invalid(
            request.prompt_field,
            f"This model's maximum context length is {limits.max_model_len} tokens, but {prompt_tokens + wanted} were "
            f"requested ({prompt_tokens} in the prompt, {wanted} in the output). "
            "Shorten the prompt or lower max_tokens.",
            code="context_length_exceeded",
        )
    longest = room if max_tokens is None else max_tokens
    if request.min_tokens > longest:
        raise invalid("min_tokens", f"min_tokens is {request.min_tokens}, but there are at most {longest} tokens.")
    num_logprobs = _num_logprobs(request, limits)
    stop_token_ids = _stop_token_ids(request, limits.vocab_size, () if request.ignore_eos else end_token_ids)
    allowed_token_ids = _allowed_token_ids(request, limits.vocab_size)
    if request.min_tokens and stop_token_ids.issuperset(allowed_token_ids or range(limits.vocab_size)):
        raise invalid("min_tokens", "min_tokens cannot be reached: every token that may be drawn ends the output.")
    return SamplingParams(
        max_tokens=room if max_tokens is None else wanted,
        min_tokens=request.min_tokens,
        temperature=request.temperature if request.top_p else 0,  # the most likely token alone reaches a top_p of 0
        top_k=max(request.top_k, 0),
        top_p=request.top_p,
        min_p=request.min_p,
        typical_p=request.typical_p,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=_logit_bias(request.logit_bias, limits.vocab_size),
        allowed_token_ids=allowed_token_ids,
        seed=random.getrandbits(63) if request.seed is None else request.seed,
        stop_token_ids=tuple(sorted(stop_token_ids)),
        num_logprobs=num_logprobs,
        num_prompt_logprobs=_num_prompt_logprobs(request, num_logprobs, limits),
    )


def read_deadline(field: str | None, headers: Sequence[str], *, wall_ns: int, monotonic_ns: int) -> int:
    """When a request ends at the latest, CLOCK_MONOTONIC in ns; 0 is never.

    It is converted once, when the request is read: a wall clock that is set afterwards moves no deadline. `field` is
    the request's `deadline`, `headers` its X-Request-Deadline; the two clocks are now, in ns.

    Raises:
        Refusal: one of them is not a time, they differ, or it has passed.
    """
    given = [] if field is None else [("deadline", field)]
    given += [(DEADLINE_HEADER, value) for value in headers]
    if not given:
        return 0
    instants = {_unix_ns(value, param) for param, value in given}
    if len(instants) > 1:
        raise invalid("deadline", f"deadline and {DEADLINE_HEADER} give different times; send one of them.")
    left = instants.pop() - wall_ns
    if left <= 0:
        raise deadline_passed()
    return monotonic_ns + left if left < _LONGEST_NS else 0


def _unix_ns(value: str, param: str) -> int:
    """UNIX time in ns of an ISO 8601 time with a zone."""
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise invalid(
            param,
            f"{param} must be a time in ISO 8601 with its time zone, such as 2030-01-31T12:00:00Z, not {value[:64]!r}.",
        )
    return (when - _EPOCH) // timedelta(microseconds=1) * 1000


def _num_logprobs(request: GenerationRequest, limits: Limits) -> int | None:
    """As SamplingParams has it. A token and its side records are published together and must fit a ring."""
    name, number = request.asked_logprobs
    if number is None:
        return None
    # As the engine counts them: a token of the output, one of a scored prompt, and the number of cached tokens.
    lists = 2 if request.echoes else 1
    others = 1 + bool(request.stop)
    if others + lists * number > limits.ring_capacity:
        raise _too_many_logprobs(
            name, number, others + lists * number, (limits.ring_capacity - others) // lists, limits
        )
    return min(number, limits.vocab_size)


def _num_prompt_logprobs(request: GenerationRequest, num_logprobs: int | None, limits: Limits) -> int | None:
    """The same for the prompt: of an echo with logprobs, and of those that the answer lists apart."""
    asked = request.asked_prompt_logprobs
    if asked is None:
        return num_logprobs if request.echoes else None
    others = 1 + bool(request.stop) + (num_logprobs or 0)
    if others + asked > limits.ring_capacity:
        most = limits.ring_capacity - others
        raise _too_many_logprobs("prompt_logprobs", asked, others + asked, most, limits)
    echoed = num_logprobs if request.echoes and num_logprobs is not None else 0
    return max(min(asked, limits.vocab_size), echoed)


def _too_many_logprobs(name: str, number: int, needed: int, most: int, limits: Limits) -> Refusal:
    return invalid(
        name,
        f"{name} is {number}, and so many need {needed} entries of a ring, which has {limits.ring_capacity} "
        f"(--ring-capacity). At most {most} is possible.",
    )


def stop_strings(request: GenerationRequest) -> list[str]:
    """The stop strings as a list, or a Refusal."""
    stops = [request.stop] if isinstance(request.stop, str) else request.stop
    if len(stops) > MAX_STOP_STRINGS:
        raise invalid("stop", f"stop holds {len(stops)} strings; at most {MAX_STOP_STRINGS} are possible.")
    for stop in stops:
        if not 1 <= len(stop.encode(errors="surrogatepass")) <= MAX_STOP_BYTES:
            raise invalid("stop", f"Each stop string must have 1 to {MAX_STOP_BYTES} bytes.")
    return stops


def _stop_token_ids(request: GenerationRequest, vocab_size: int, end_token_ids: Iterable[int]) -> set[int]:
    check_token_ids(request.stop_token_ids, "stop_token_ids", vocab_size)
    if len(request.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise invalid("stop_token_ids", f"stop_token_ids may hold at most {MAX_STOP_TOKEN_IDS} ids.")
    return {*request.stop_token_ids, *end_token_ids}


def _allowed_token_ids(request: GenerationRequest, vocab_size: int) -> tuple[int, ...] | None:
    if request.allowed_token_ids is None:
        return None
    if not request.allowed_token_ids:
        raise invalid("allowed_token_ids", "allowed_token_ids must hold at least one id; leave it out to allow all.")
    check_token_ids(request.allowed_token_ids, "allowed_token_ids", vocab_size)
    return tuple(sorted(set(request.allowed_token_ids)))


def _logit_bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    if len(given) > MAX_LOGIT_BIASES:
        raise invalid("logit_bias", f"logit_bias has {len(given)} entries; at most {MAX_LOGIT_BIASES} are possible.")
    biases: dict[int, float] = {}
    for token_id, bias in given.items():
        if not _TOKEN_ID.fullmatch(token_id):
            raise invalid("logit_bias", f"logit_bias has the key {token_id[:64]!r}; its keys must be token ids.")
        if not -_MAX_BIAS <= bias <= _MAX_BIAS:
            raise invalid("logit_bias", f"logit_bias[{token_id}] must be from -{_MAX_BIAS} to {_MAX_BIAS}, not {bias}.")
        biases[int(token_id)] = bias
    check_token_ids(biases, "logit_bias", vocab_size)
    return biases


def _shown(value: Any) -> str:
    """A number in a message, cut: JSON integers can have thousands of digits."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
