"""What one request asks of the sampler: validated values, no behaviour.

Owns their meaning. Does not know the defaults and limits of a protocol.
"""

from __future__ import annotations

import msgspec


class ReasoningBudget(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens of an output may be reasoning; then its closing tag comes. The tags are not counted.

    Reasoning begins with the output if `is_open`, else with one of `begin_ids` among its first tokens.
    """

    tokens: int  # >= 0
    end_id: int  # the closing tag
    begin_ids: tuple[int, ...] = ()  # opening tags
    is_open: bool = False  # the prompt ends inside of the reasoning


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of one sequence.

    The distribution of a token is made from its logits in this order: grammar and allowed_token_ids, logit_bias,
    min_tokens, repetition_penalty, frequency_penalty and presence_penalty, temperature, top_k, top_p, min_p, typical_p;
    each of the last four looks at what the one before left, renormalised.
    """

    max_tokens: int  # to generate at most, >= 1; the last one ends the sequence with `length`
    min_tokens: int = 0  # to generate at least: until then none of stop_token_ids can be drawn
    temperature: float = 1.0  # logits are divided by it; 0 is greedy (the filters then change nothing)
    top_k: int = 0  # keep only the k most likely tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of most likely tokens whose probability reaches top_p; 1 keeps all
    min_p: float = 0.0  # drop tokens that are less likely than min_p times the most likely one; 0 keeps all
    typical_p: float = 1.0  # as top_p, of the tokens of most typical information content (Meister et al., TACL 2023)
    frequency_penalty: float = 0.0  # subtracted from a token's logit once for each time that it occurs in the output
    presence_penalty: float = 0.0  # subtracted once from the logit of each token that occurs in the output
    # Divides positive logits of tokens in prompt or output, multiplies negative ones (Keskar et al., 2019).
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}  # added to the logits of these tokens
    allowed_token_ids: tuple[int, ...] | None = None  # no other token can be drawn; None allows all
    seed: int = 0  # a draw is a function of (seed, position) only; the server picks one if the client did not
    # A sampled token among these ends the sequence with `stop`, and is published. End-of-sequence tokens are here too
    # (unless the client asked to ignore them): the engine has no vocabulary.
    stop_token_ids: tuple[int, ...] = ()
    # Each token comes with its own logprob and those of so many most likely tokens, under the model's own logits.
    num_logprobs: int | None = None  # None: no logprobs
    num_prompt_logprobs: int | None = None  # the same for the tokens of the prompt, the first excepted
    # Which outputs there can be, in the language of `rbee.grammars`; "" is all. One that is complete, so that nothing
    # more may come, ends with `stop` by itself, whatever min_tokens says.
    grammar: str = ""
    grammar_end_ids: tuple[int, ...] = ()  # of stop_token_ids those that may come where the grammar allows an end
    # Where it is spent, its end_id is the only token that can be drawn, as if it were the only one of
    # allowed_token_ids. None: reasoning takes as many tokens as any text.
    reasoning_budget: ReasoningBudget | None = None
