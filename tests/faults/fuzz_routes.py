"""The valid requests that the fuzzing of the door begins with: every route, with what it answers.

Owns these. Does not know what is changed in them (`tests.faults.fuzz_requests`).
"""

from __future__ import annotations

from typing import Any

from tests.raw_client import CHAT, COMPLETIONS

ROUTES: tuple[tuple[str, str, dict[str, Any] | None, int], ...] = (  # method, target, body, status
    ("GET", "/health", None, 200),
    ("HEAD", "/health", None, 200),
    ("GET", "/ready", None, 200),
    ("GET", "/version", None, 200),
    ("GET", "/metrics", None, 200),
    ("GET", "/v1/models", None, 200),
    ("GET", "/v1/models/synthetic", None, 200),
    ("GET", "/v1/models/other%2fone", None, 404),
    ("GET", "/v1/streams/cmpl-0", None, 410),
    ("GET", "/health?a=b", None, 200),
    ("OPTIONS", "/v1/models", None, 405),
    ("DELETE", "/v1/streams/x", None, 405),
    ("GET", "/nowhere", None, 404),
    ("POST", "/tokenize", {"prompt": "a \u00fc\U0001f41d", "return_token_strs": True}, 200),
    ("POST", "/tokenize", {"messages": [{"role": "user", "content": "hi"}], "add_special_tokens": False}, 200),
    ("POST", "/detokenize", {"tokens": [104, 105]}, 200),
    ("POST", "/detokenize", {"tokens": "104"}, 400),
    ("POST", "/apply-template", {"messages": [{"role": "user", "content": "hi"}]}, 200),
    ("POST", "/apply-template", {"messages": "hi"}, 400),
    ("POST", COMPLETIONS, {"prompt": "hi", "max_tokens": 2, "stream": True}, 200),
    ("POST", COMPLETIONS, {"prompt": "left", "max_tokens": 90, "ignore_eos": True, "stream": True}, 200),
    ("POST", COMPLETIONS, {"prompt": [104, 105], "max_tokens": 3, "logprobs": 1, "echo": True}, 200),
    ("POST", COMPLETIONS, {"prompt": "hi", "n": 2, "max_tokens": 2, "stop": ["zz"], "stream": True}, 200),
    ("POST", COMPLETIONS, {"prompt": "hi" * 600, "max_tokens": 1}, 400),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}, 200),
    ("POST", COMPLETIONS, {"prompt": ["hi", [104]], "n": 2, "max_tokens": 2, "prompt_logprobs": 1}, 200),
    ("POST", "/v1/responses", {"input": "hi", "max_output_tokens": 2, "stream": True}, 200),
    (
        "POST",
        "/v1/responses",
        {"input": [{"role": "user", "content": "hi"}], "store": False, "max_output_tokens": 90},
        200,
    ),
    (
        "POST",
        "/v1/messages",
        {"messages": [{"role": "user", "content": "hi"}], "system": "x", "max_tokens": 2, "stream": True},
        200,
    ),
    ("POST", "/v1/messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, 400),
    ("POST", "/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}]}, 200),
    ("POST", "/v1/embeddings", {"input": ["hi", "there"], "encoding_format": "base64"}, 200),
    ("POST", "/v1/jobs", {"prompt": "hi", "max_tokens": 2, "stop": ["zz"]}, 200),
    ("POST", "/v1/inference", {"prompt": "", "max_tokens": 5000, "temperature": 3}, 400),
    ("POST", "/v1/cancel", {"job_id": "job-0"}, 202),
    ("DELETE", "/v1/jobs/job-0", None, 200),
    ("DELETE", "/v1/inference/job-0", None, 204),
    ("GET", "/v1/jobs/job-0/stream", None, 404),
    ("GET", "/v1/loading/progress", None, 200),
    ("GET", "/openapi.json", None, 200),
    ("GET", "/docs", None, 200),
    (
        "POST",
        CHAT,
        {
            "messages": [
                {"role": "system", "content": "x"},
                {"role": "user", "content": [{"type": "text", "text": ""}]},
            ],
            "max_completion_tokens": 3,
            "stream": True,
            "stream_options": {"include_usage": True, "resumable": True},
            "logprobs": True,
            "top_logprobs": 2,
            "temperature": 0.5,
            "seed": 1,
        },
        200,
    ),
)
