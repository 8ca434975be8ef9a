"""What SSE responses have in common: headers, the end that OpenAI's clients wait for, a comment. Knows no event."""

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n"  # without a blank line, which is an event to clients that have seen an id
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
