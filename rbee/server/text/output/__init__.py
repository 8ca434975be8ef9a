"""What a model's output says: its answer, its reasoning and its tool calls, told apart while they come.

Owns the formats in which models write these, how they are recognized, and grammars that hold a model to them. Does not
know tokens, requests or protocols.
"""
