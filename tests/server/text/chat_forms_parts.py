"""Ten ways in which models mark the turns of a chat, each with a small tokenizer that has the tokens for it.

The forms are those of known families; their templates are written anew, with what real ones do: trimming, conditions on
roles and loops, a system turn of their own, an exception.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from rbee.models import synthetic


class ChatForm(NamedTuple):
    """How a family writes chats."""

    template: str
    tokens: list[str]  # special ones; the first two are bos_token and eos_token
    spaces: str = ""  # how its tokenizer puts a space before a text: "", "prepend", "first" or "always"

    @property
    def source(self) -> str:
        """Of the template."""
        return self.template

    @property
    def names(self) -> dict[str, str]:
        """The tokens that templates have by name."""
        return {"bos_token": self.tokens[0], "eos_token": self.tokens[1]}

    def tokenizer(self) -> Tokenizer:
        """Of bytes, and of these tokens."""
        made = _sentencepiece_like(self.spaces) if self.spaces else synthetic.tokenizer()
        made.add_special_tokens([AddedToken(token, special=True) for token in self.tokens])
        return made


def _sentencepiece_like(spaces: str) -> Tokenizer:
    words = ["<unk>", "▁", "a", "b", "▁a", "ab", "▁ab", "er", "us", "▁us", "user"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("▁", "a"), ("a", "b"), ("▁", "ab")]
    made = Tokenizer(models.BPE({w: n for n, w in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True))
    if spaces == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


CHAT_FORMS = {
    "im_start": ChatForm(
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|endoftext|>", "<|im_end|>", "<|im_start|>"],
    ),
    "header": ChatForm(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"],
    ),
    "inst of words": ChatForm(
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
        "{% else %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}{% endif %}{% endfor %}",
        ["<s>", "</s>"],
        "prepend",
    ),
    "inst of tokens": ChatForm(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% elif m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        ["<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
        "first",
    ),
    "turn": ChatForm(
        "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "<start_of_turn>{{ role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<pad>"],
        "always",
    ),
    "role tokens": ChatForm(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        ["<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"],
    ),
    "end of text": ChatForm(
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}\n{{ m.content ~ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["<s>", "</s>"],
        "prepend",
    ),
    "capitals": ChatForm(
        "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
        "{% if m.role == 'assistant' %}<|CHATBOT_TOKEN|>{% else %}<|{{ m.role | upper }}_TOKEN|>{% endif %}"
        "{{ m.content }}<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        [
            *("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>"),
            *("<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        ],
    ),
    "full width": ChatForm(
        "{% set ns = namespace(first='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.first = m.content %}{% endif %}{% endfor %}{{ bos_token + ns.first }}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
        "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
    ),
    "role between": ChatForm(
        "{% for m in messages %}<|start_of_role|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}<|end_of_role|>"
        "{{ m.content }}<|end_of_text|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        ["<|end_of_text|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"],
    ),
}
