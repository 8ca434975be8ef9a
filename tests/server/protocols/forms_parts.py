"""Which texts are outputs of a grammar, for the synthetic model."""

from __future__ import annotations

import numpy as np

from rbee.config import SYNTHETIC
from rbee.grammars import vocabulary

VOCABULARY = vocabulary.load(SYNTHETIC)  # its tokens are bytes


def allows(source: str, text: str) -> bool:
    """Whether the text is an output of this grammar."""
    matcher, mask = VOCABULARY.compile(source), np.zeros(VOCABULARY.num_words, np.uint32)
    complete = False
    for byte in text.encode():
        matcher.fill(mask)
        if complete or not mask[byte // 32] >> np.uint32(byte % 32) & 1:
            return False
        complete = matcher.accept(byte)
    return complete or matcher.fill(mask)
