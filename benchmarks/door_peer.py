"""A plain uvicorn and starlette app with the routes that bench_door.py asks: the peer of rbee's door.

    python benchmarks/door_peer.py httptools|h11 STEP_MS

GET /health; POST /v1/completions, which reads its whole body, and streams a frame each STEP_MS or answers after one.
It does what a short program with these libraries does, with their defaults and uvloop; it writes no access log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

_BACKLOG = 2048  # as rbee


def _chunk(answer_id: int, finish: str | None) -> dict[str, Any]:
    """As large as rbee's for one token."""
    return {
        "id": f"cmpl-{answer_id:032x}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": "synthetic",
        "choices": [{"index": 0, "text": "x", "logprobs": None, "finish_reason": finish}],
    }


def make_app(step: float) -> Starlette:
    """The app; `step` is in seconds."""

    async def health(request: Request) -> Response:  # noqa: ARG001 - starlette's signature
        return JSONResponse({"status": "ok"})

    async def completions(request: Request) -> Response:
        asked = json.loads(await request.body())

        async def frames() -> AsyncIterator[str]:
            for number in range(asked["max_tokens"]):
                await asyncio.sleep(step)
                finish = "length" if number + 1 == asked["max_tokens"] else None
                yield f"data: {json.dumps(_chunk(id(asked), finish))}\n\n"
            yield "data: [DONE]\n\n"

        if asked.get("stream"):
            return StreamingResponse(frames(), media_type="text/event-stream")
        await asyncio.sleep(step)
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": 1}
        return JSONResponse(_chunk(id(asked), "length") | {"usage": usage})

    return Starlette(
        routes=[Route("/health", health), Route("/v1/completions", completions, methods=["POST"])],
    )


def main() -> None:
    """Serve until a signal."""
    parser, step_ms = sys.argv[1:]
    config = uvicorn.Config(
        make_app(float(step_ms) / 1e3),
        http=parser,
        loop="uvloop",
        log_level="critical",
        access_log=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=1,
    )
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener, contextlib.suppress(KeyboardInterrupt):
        print("listening on http://{}:{}".format(*listener.getsockname()), flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
