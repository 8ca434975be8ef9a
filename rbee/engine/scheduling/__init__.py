"""Which sequences run next, for how many tokens, in which KV blocks. Imports neither torch nor numpy."""
