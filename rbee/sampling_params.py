"""What one request asks of the sampler: validated values, no behaviour.

The server fills it from whatever protocol the client speaks, the engine obeys it. Neither defaults nor limits of a
protocol are known here.
"""

from __future__ import annotations

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of one sequence.

    The distribution of a token is made from its logits in this order: allowed_token_ids, logit_bias, min_tokens,
    repetition_penalty, frequency_penalty and presence_penalty, temperature, top_k, top_p, min_p, typical_p; each of
    the last four looks at what the one before left, renormalised.

    Attributes:
        typical_p: keep the smallest set of tokens of most typical information content whose probability reaches
            typical_p (locally typical sampling: Meister et al., TACL 2023); 1 keeps all.
        repetition_penalty: logits of tokens that occur in prompt or output are divided by it if positive, multiplied
            by it if negative (Keskar et al., 2019); 1 changes nothing.
        seed: the draw for a token is a function of (seed, its position) and of nothing else that runs. The server
            picks one when the client did not.
        stop_token_ids: a sampled token among these ends the sequence with `stop`. End-of-sequence tokens are in
            here too (unless the client asked to ignore them): the engine knows no vocabulary. The stop token itself
            is published.
        num_logprobs: None: no logprobs. Otherwise each token comes with its own and those of the so many most likely
            tokens, all under the model's own logits.
    """

    max_tokens: int  # tokens to generate at most, >= 1; the last one ends the sequence with `length`
    min_tokens: int = 0  # tokens to generate at least: until then none of stop_token_ids can be drawn
    temperature: float = 1.0  # 0 is greedy (the filters then change nothing), otherwise logits are divided by it
    top_k: int = 0  # keep only the k most likely tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of most likely tokens whose probability reaches top_p; 1 keeps all
    min_p: float = 0.0  # drop tokens that are less likely than min_p times the most likely one; 0 keeps all
    typical_p: float = 1.0
    frequency_penalty: float = 0.0  # subtracted from a token's logit once for each time that it occurs in the output
    presence_penalty: float = 0.0  # subtracted once from the logit of each token that occurs in the output
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}  # added to the logits of these tokens
    allowed_token_ids: tuple[int, ...] | None = None  # no other token can be drawn; None allows all
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None  # the same for the tokens of the prompt, the first excepted
