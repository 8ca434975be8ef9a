"""One request's generation from submission to its one end: choices, replies, resumption.

Knows no protocol: what a client sees is rendered by a dialect.
"""
