"""Who runs next, for how many tokens, in which KV blocks. Plain Python: neither torch nor numpy."""
