"""The server process: HTTP in, tokens out.

    process ── starts, signals, exit code            app ── routes, errors, keys, request ids
      ├─ supervisor ── the engine's life               ├─ openai_api ── /v1/...
      │    └─ engine_client ── the one drain loop      └─ operations_api ── /health /ready /version
      └─ http_protocol ── a direct way to the socket

    exchange ── one request's response, from submit to end     resumption ── streams that outlive their connection

    served_model ── name, tokenizer, chat_template, end-of-sequence ids: read once at start
    schemas, validation ── bytes -> checked request      replies ── tokens -> SSE frames (sse) or one JSON body,
    body ── reads and bounds a request's body                       through detokenizer and stop_strings

Never imports torch or transformers: they live in the engine process (`rbee.engine`), which this one starts by name.
"""
