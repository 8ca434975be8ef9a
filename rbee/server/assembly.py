"""From a config and a model to the ASGI application and the supervisor of its engine.

Owns which part gets which value of the config. Starts nothing: `rbee.server.process` drives the supervisor in its own
order; under another ASGI server the application's lifespan starts and stops the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from rbee.server.http.app import build_app
from rbee.server.http.body import Bodies
from rbee.server.http.door import Door, allowed_hosts, allowed_origins
from rbee.server.http.keys import KeyRing
from rbee.server.link.admission import Admission
from rbee.server.link.engine_process import EngineSettings
from rbee.server.link.restarts import RestartBudget
from rbee.server.link.supervisor import Supervisor
from rbee.server.protocols.anthropic import errors as anthropic_errors
from rbee.server.protocols.anthropic.routes import PATH as ANTHROPIC_PATH
from rbee.server.protocols.anthropic.routes import AnthropicApi
from rbee.server.protocols.jobs.registry import Jobs
from rbee.server.protocols.jobs.routes import PROGRESS, JobsApi
from rbee.server.protocols.models import PATH as MODELS_PATH
from rbee.server.protocols.models import ModelsApi
from rbee.server.protocols.models import refuse as refuse_models
from rbee.server.protocols.openai.answers import RESUMABLE
from rbee.server.protocols.openai.routes import OpenAiApi
from rbee.server.protocols.openapi import OpenApi
from rbee.server.protocols.operations import OperationsApi
from rbee.server.protocols.responses.routes import ResponsesApi
from rbee.server.protocols.resume import Resuming
from rbee.server.reports import request_log
from rbee.server.streams.exchange import Backend
from rbee.server.streams.live import ReplyWatch
from rbee.server.streams.resumption import ResumableStreams
from rbee.server.text.grammars import GrammarChecks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rbee.config import Config, ServerConfig
    from rbee.server.http.app import AnswerCounts, App
    from rbee.server.protocols.metrics import Metrics
    from rbee.server.reports.traces import Traces
    from rbee.server.text.served_model import ServedModel

ENGINE_PATIENCE = 5.0  # seconds the engine may take to stop
_LONGEST_PERIOD, _SHORTEST_PERIOD = 5.0, 0.05  # seconds between two checks of all streams


class Assembly(NamedTuple):
    """The parts of a server that its process or ASGI server drives."""

    app: App
    supervisor: Supervisor


def build(config: Config, model: ServedModel) -> Assembly:
    """The application that serves `model`, and the supervisor that runs its engine. Needs no event loop."""
    supervisor = make_supervisor(config)
    server = config.server
    return Assembly(assemble(server, model, supervisor, make_door(server), make_traces(server)), supervisor)


def make_supervisor(config: Config) -> Supervisor:
    """The supervisor, for those who start the engine before there is an application. Needs no event loop."""
    restarts = RestartBudget(config.server.max_restarts, config.server.restart_window)
    return Supervisor(engine_settings(config), restarts)


def engine_settings(config: Config) -> EngineSettings:
    """The part of the config that the engine's process and its client need."""
    server = config.server
    return EngineSettings(
        config=config.engine,
        slow_reader_timeout=server.slow_reader_timeout,
        num_rings=-(-server.max_requests // 64) * 64,
        ring_capacity=server.ring_capacity,
        admission=Admission(
            max_num_seqs=config.engine.max_num_seqs,
            max_queued_requests=server.max_queued_requests,
            max_queued_tokens=server.max_queued_tokens,
            max_requests_per_key=server.max_requests_per_key,
        ),
        busy_poll=server.busy_poll,
        retry_unstarted=server.retry_unstarted,
        hang_timeout=server.hang_timeout,
        log_format=config.log_format,
        debug=config.debug,
    )


def make_traces(config: ServerConfig) -> Traces | None:
    """Where spans go; None if nobody wants them. ConfigError if they cannot be sent."""
    if not config.otlp_traces_endpoint:
        return None
    from rbee.server.reports.traces import Traces  # noqa: PLC0415 - needs an extra

    return Traces(config.otlp_traces_endpoint)


def make_door(config: ServerConfig) -> Door:
    """Who may come in. ConfigError: the options do not say that."""
    return Door(
        keys=KeyRing(config.api_key, config.api_key_file),
        hosts=allowed_hosts("" if config.uds else config.host, config.allowed_host),
        origins=allowed_origins(config.cors_origin),
    )


def assemble(
    config: ServerConfig,
    model: ServedModel,
    supervisor: Supervisor,
    door: Door,
    traces: Traces | None = None,
    *,
    grammars: GrammarChecks | None = None,
) -> App:
    """The application whose requests go through `door` to the engine of `supervisor`, and their spans to `traces`.

    `grammars` is the caller's to close, as the application's lifespan does too.
    """
    grammars = grammars or GrammarChecks(model.vocabulary)
    watch = ReplyWatch(
        _check_period(min(config.slow_reader_timeout, config.resume_timeout, config.job_ttl)),
        config.slow_reader_timeout,
    )
    resuming = Resuming(
        ResumableStreams(watch, resume_timeout=config.resume_timeout, max_ended=config.max_requests),
        watch,
        replay_window=config.replay_window,
        events=RESUMABLE,
    )
    backend = Backend(supervisor, model.codec, watch, share_prefix_cache=config.share_prefix_cache, grammars=grammars)
    bodies = Bodies(config.max_body_mib * 2**20, model.codec.is_quick_with)  # one bound for all of them
    openai = OpenAiApi(backend, model, resuming, bodies, lenient=config.lenient)
    responses = ResponsesApi(backend, model, bodies, lenient=config.lenient)
    anthropic = AnthropicApi(backend, model, bodies, lenient=config.lenient)
    kept_jobs = Jobs(watch, ttl=config.job_ttl, max_ended=config.max_requests)
    jobs = JobsApi(backend, model, kept_jobs, bodies, lenient=config.lenient)
    answered: AnswerCounts = Counter()

    def make_metrics() -> Metrics:
        from rbee.server.protocols.metrics import Metrics  # noqa: PLC0415 - no start waits for prometheus-client

        return Metrics(supervisor, model.name, answered)

    operations = OperationsApi(supervisor, model.name, make_metrics, progress_url=PROGRESS)

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await supervisor.start()
        try:
            async with heartbeats(config, supervisor, model.name, config.port):
                yield
        finally:
            grammars.close()
            await supervisor.stop(ENGINE_PATIENCE)
            if traces is not None:
                await asyncio.to_thread(traces.close)

    models = ModelsApi(supervisor, model)
    protocols = (openai, models, responses, anthropic, jobs, resuming, operations)
    openapi = OpenApi(
        [operation for protocol in protocols for operation in protocol.operations()],
        has_keys=len(door.keys) > 0,
        lenient=config.lenient,
    )
    routes = [route for protocol in (*protocols, openapi) for route in protocol.routes()]
    reports = [request_log.write_line] if config.log_requests else []
    return build_app(
        routes,
        door,
        {ANTHROPIC_PATH: anthropic_errors.answer, MODELS_PATH: refuse_models} | jobs.formats(),
        lifespan=lifespan,
        answered=answered,
        reports=reports,
        begin_trace=None if traces is None else partial(traces.begin, model.name),
    )


def heartbeats(
    config: ServerConfig, supervisor: Supervisor, model: str, port: int
) -> contextlib.AbstractAsyncContextManager[None]:
    """Inside it, the server of `model` on `port` posts heartbeats, if that is asked for."""
    if not config.heartbeat_url:
        return contextlib.nullcontext()
    from rbee.server.protocols.jobs import heartbeat  # noqa: PLC0415 - no start without them waits for http.client

    return heartbeat.heartbeats(config.heartbeat_url, supervisor, model, port)


def _check_period(timeout: float) -> float:
    """Seconds between two checks of all streams, so that an end comes at most a tenth too late."""
    return min(max(timeout / 10, _SHORTEST_PERIOD), _LONGEST_PERIOD)
