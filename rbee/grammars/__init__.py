"""Grammars that an output must follow, as llguidance takes them: which tokens they allow, next to a model's vocabulary.

A source is Lark in llguidance's dialect. Server and engine compile the same source with the same limits. Does not know
requests or sequences.
"""
