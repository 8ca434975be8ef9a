"""Anthropic's protocol: Messages and their token counts, its events, and its envelope of errors."""
