"""The application under several ASGI servers, on loopback, with a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import hypercorn.asyncio
import hypercorn.config

from rbee.config import Config, EngineConfig, ServerConfig
from rbee.server.http.listener import HttpServer, listen
from rbee.server.text import served_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp

Address = tuple[str, int]


def synthetic_config(*, step_ms: float = 1.0, slow_reader_timeout: float = 60.0, ring_capacity: int = 1024) -> Config:
    """A server with the synthetic model."""
    return Config(
        engine=EngineConfig(model="synthetic", synthetic_step_ms=step_ms),
        server=ServerConfig(max_requests=64, ring_capacity=ring_capacity, slow_reader_timeout=slow_reader_timeout),
    )


def synthetic_model() -> served_model.ServedModel:
    """What such a server serves."""
    return served_model.load_synthetic("synthetic")


@contextlib.asynccontextmanager
async def under_our_server(app: ASGIApp) -> AsyncIterator[Address]:
    """Uvicorn with our protocol. The engine of `app` is the caller's to start."""
    server = HttpServer(app)
    with listen("127.0.0.1", 0) as sock:
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield sock.getsockname()
        finally:
            server.should_exit = True
            await serving


@contextlib.asynccontextmanager
async def under_hypercorn(app: ASGIApp) -> AsyncIterator[Address]:
    """hypercorn, which starts and stops the engine of `app` through its lifespan."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)  # a client that does not read is soon noticed
        config = hypercorn.config.Config()
        config.bind = [f"fd://{sock.fileno()}"]
        config.accesslog = config.errorlog = None
        config.graceful_timeout = 0.1
        address = sock.getsockname()
        stop = asyncio.Event()
        serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type] # hypercorn has stricter types for ASGI
        sock.detach()  # it is hypercorn's now
        try:
            yield address
        finally:
            stop.set()
            await serving
