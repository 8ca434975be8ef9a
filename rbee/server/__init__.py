"""The server process: HTTP in, tokens out.

Never imports torch or transformers: they live in the engine process (`rbee.engine`). docs/architecture.md has the rooms
and the way of a request through them.
"""
