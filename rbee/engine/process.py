"""The engine as a process: the start protocol, the loop around `EngineCore.step()`, teardown and exit codes.

Owns time and sleep. While there is work the loop never waits. When there is none it waits in one epoll on the control
channel; it wakes when a record arrives or a grammar is built, and ten times a second for the heartbeat and for readers
that are too slow.
Exit codes: 0 after Shutdown or when the server is gone, 1 when a step failed, 2 when the model cannot be loaded. The
kernel kills an engine with its parent, and the end of the channel ends it too.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import select
import socket
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING

from rbee import logs, messages, standard_streams
from rbee.child import die_with_parent, ignore_group_signals
from rbee.config import check_bounds
from rbee.engine.engine_core import EngineCore
from rbee.engine.grammars import Grammars
from rbee.engine.intake import Intake
from rbee.engine.processors import usable_processors
from rbee.engine.publisher import Publisher
from rbee.engine.request_times import RequestTimes
from rbee.engine.runners import choice
from rbee.engine.scheduling.block_manager import BlockManager
from rbee.engine.scheduling.scheduler import Scheduler
from rbee.engine.scheduling.step_cost import StepCost
from rbee.errors import RbeeError
from rbee.messages import FinishReason
from rbee.process_memory import private_memory
from rbee.transport import Arena, EngineState, LifeLine, Producer
from rbee.transport.control import ControlChannel

if TYPE_CHECKING:
    from rbee.config import EngineConfig
    from rbee.grammars.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_HEARTBEAT_MS = 100
_SECONDS_BETWEEN_RECORDS = 1.0  # of one stage of loading; each is a line of the server's log


def main() -> int:
    """Run an engine on the descriptors in the command line; return the exit code."""
    standard_streams.protect()
    parser = argparse.ArgumentParser(prog="python -m rbee.engine", description="Started by `rbee serve`, not by hand.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--doorbell-fd", type=int, required=True)
    parser.add_argument("--arena-fd", type=int, required=True)
    parser.add_argument("--life-line-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--debug", action="store_true")
    options = parser.parse_args()

    if not die_with_parent(options.parent_pid):
        return 0
    ignore_group_signals()  # the server decides, and lets open streams finish first
    logs.configure("engine", log_format=options.log_format, debug=options.debug)
    warnings.simplefilter("default" if options.debug else "ignore")
    LifeLine.attach(options.life_line_fd).hold()
    channel = ControlChannel(socket.socket(fileno=options.control_fd))
    try:
        return _run(channel, options.doorbell_fd, options.arena_fd, debug=options.debug)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        logger.info("The server is gone.")
        return 0
    finally:
        channel.close()


def _run(channel: ControlChannel, doorbell_fd: int, arena_fd: int, *, debug: bool) -> int:
    configure, early = _first_record(channel)
    with contextlib.ExitStack() as stack:
        try:
            arena = Arena.attach_descriptor(arena_fd)
            stack.callback(arena.close)
            producer = Producer(arena, doorbell_fd)
            stack.callback(producer.close)
            channel.send(messages.encode(messages.Attached(pid=os.getpid())))
            grammars = Grammars(
                partial(_load_vocabulary, configure.engine.model), threads=max(1, usable_processors() // 4)
            )
            stack.callback(grammars.close)
            core = _load(configure.engine, channel, producer, grammars, configure.slow_reader_timeout)
        except RbeeError as error:
            logger.debug("The engine cannot start.", exc_info=debug)
            channel.send(messages.encode(messages.Failed(message=str(error))))
            return 2
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            logger.exception("The engine cannot start.")
            reason = f"The engine cannot start: {type(error).__name__}: {error}. Its log has the traceback."
            channel.send(messages.encode(messages.Failed(message=reason)))
            return 2
        gc.collect()
        gc.freeze()  # what is alive now stays alive: no collection needs to look at it again
        return Loop(channel, producer, core, grammars).run(early)


def _first_record(channel: ControlChannel) -> tuple[messages.Configure, list[bytes]]:
    """Wait for Configure, and return what came with it."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    while not (records := channel.receive()):
        poller.poll()
    configure = messages.decode_to_engine(records[0])
    assert isinstance(configure, messages.Configure), "the first record is Configure"
    return configure, records[1:]


def _load_vocabulary(model: str) -> Vocabulary:
    from rbee.grammars import vocabulary  # noqa: PLC0415 - an engine without grammars does without

    return vocabulary.load(model)


def _load(
    config: EngineConfig, channel: ControlChannel, producer: Producer, grammars: Grammars, slow_reader_timeout: float
) -> EngineCore:
    """Load the model and assemble the engine; the message of an RbeeError is for the user."""
    check_bounds(config)
    started = time.monotonic()
    producer.beat(EngineState.LOADING)
    runner = choice.load(config, _LoadingReport(channel, producer), producer.progress)
    scheduler = Scheduler(
        BlockManager(runner.num_blocks, config.block_size, prefix_caching=config.prefix_caching, window=runner.window),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=runner.max_model_len,
    )
    publisher = Publisher(producer)
    times = RequestTimes(producer)
    intake = Intake(
        scheduler,
        producer,
        publisher,
        times,
        vocab_size=runner.vocab_size,
        max_model_len=runner.max_model_len,
        slow_reader_timeout=slow_reader_timeout,
        grammars=grammars,
    )
    core = EngineCore(runner, scheduler, intake, publisher, times, step_cost=StepCost(config.max_decode_slowdown))
    ready = messages.Ready(
        runner=runner.name,
        device=runner.device,
        dtype=runner.dtype,
        max_model_len=runner.max_model_len,
        vocab_size=runner.vocab_size,
        num_blocks=runner.num_blocks,
        block_size=config.block_size,
        load_seconds=time.monotonic() - started,
        kernels=runner.kernels,
        hidden_size=runner.hidden_size,
        has_head=runner.has_head,
    )
    logger.debug("%s", ready)
    channel.send(messages.encode(ready))
    return core


class _LoadingReport:
    """An `OnLoading`: beats for each part of loading, and sends a record for each stage and at most every second."""

    def __init__(self, channel: ControlChannel, producer: Producer) -> None:
        self._channel = channel
        self._producer = producer
        self._stage = ""
        self._sent = 0.0

    def __call__(self, stage: str, done: int, total: int, layers_loaded: int = 0, layers_total: int = 0, /) -> None:
        self._producer.beat(EngineState.LOADING)
        self._producer.progress.advance()
        now = time.monotonic()
        if stage != self._stage or now - self._sent > _SECONDS_BETWEEN_RECORDS:
            self._stage, self._sent = stage, now
            record = messages.Loading(
                stage=stage,
                done=done,
                total=total,
                layers_loaded=layers_loaded,
                layers_total=layers_total,
                memory_bytes=private_memory(),
            )
            self._channel.send(messages.encode(record))


class Loop:
    """Steps while there is work, sleeps while there is none, and handles control records between steps."""

    def __init__(self, channel: ControlChannel, producer: Producer, core: EngineCore, grammars: Grammars) -> None:
        self._channel = channel
        self._producer = producer
        self._core = core
        self._grammars = grammars

    def run(self, records: list[bytes]) -> int:
        """Loop until Shutdown (0) or a failed step (1), `records` first; EOFError when the server is gone."""
        with select.epoll() as poller:
            poller.register(self._channel.fileno(), select.EPOLLIN)
            poller.register(self._grammars.descriptor, select.EPOLLIN)
            while True:
                if not self._obey(records):
                    self._core.end_all(FinishReason.ABORT)
                    return 0
                started = time.monotonic_ns()
                try:
                    stepped = self._step()
                except Exception:
                    logger.exception("A step failed; every request ends with an error.")
                    self._core.end_all(FinishReason.ERROR)
                    return 1
                self._producer.beat(EngineState.STEPPING if stepped else EngineState.IDLE)
                step_ns = time.monotonic_ns() - started if stepped else 0
                self._producer.report(step_ns, **self._core.gauges()._asdict())
                if not stepped:
                    poller.poll(_HEARTBEAT_MS / 1e3)
                    self._grammars.clear_descriptor()
                records = self._channel.receive()

    def _step(self) -> bool:
        """Step; if there was nothing to do, announce sleep and step again, for what came before the announcement."""
        if self._core.step():
            return True
        self._producer.arm_wait()
        return self._core.step()

    def _obey(self, records: list[bytes]) -> bool:
        """Handle the server's records. False: stop."""
        for payload in records:
            match messages.decode_to_engine(payload):
                case messages.Submit() as submission:
                    self._core.submit(submission)
                case messages.Hold(ring=ring):
                    self._core.hold(ring)
                case messages.Release(ring=ring):
                    self._core.release(ring)
                case messages.Shutdown():
                    return False
                case messages.Wake() | messages.Configure():
                    pass
        return True
