"""Grammars that an output must follow, as llguidance takes them: which tokens they allow, next to a model's vocabulary.

A source is Lark in llguidance's dialect, or llama.cpp's GBNF behind `GBNF_LINE`. Lark in front of that line has the
GBNF as its rule `GBNF_NAME`. Server and engine compile the same source. Does not know requests or sequences.
"""

GBNF_LINE = "%gbnf\n"
GBNF_NAME = "gbnf"


def is_name(token: str, *, special: bool) -> bool:
    """Whether no text has this token, whose name stands for it: a special one, or one in angle brackets."""
    return special or (token.startswith("<") and token.endswith(">"))
