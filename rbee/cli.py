"""The `rbee` command: serve, pull, show, top, doctor.

Owns how options are spelled and parsed, and how an error leaves the process: one sentence on stderr and exit code 2.
Does not know how a model is served, fetched, described or watched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import signal
import sys
import traceback
import typing
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import click
from click.core import ParameterSource

from rbee import __version__, logs, standard_streams
from rbee.config import DEFAULT_MODEL, SYNTHETIC, Config, EngineConfig, ServerConfig
from rbee.errors import RbeeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Self

_Handler: TypeAlias = "Callable[[int, FrameType | None], Any] | int | None"  # as signal.signal has it

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_EXIT_USER_ERROR = 2
_NO_ROOM_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # of files; of stdout they name no file
_HELP_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Repeated(click.Option):
    """May be given several times. The environment has one value: all that the variable says, even if it is nothing."""

    def value_from_envvar(self, ctx: click.Context) -> Any:  # noqa: ARG002 - click's signature
        value = os.environ.get(str(self.envvar))
        return None if value is None else (value,)


def _option_of(field: dataclasses.Field[Any], annotation: Any, section: str) -> click.Option:
    """The command-line option of one config field; --no-<name> switches off what is on by default."""
    flag = f"--{field.name.replace('_', '-')}"
    settings: dict[str, Any] = {
        "default": field.default,
        "help": field.metadata["help"],
        "metavar": field.metadata.get("metavar", "N" if annotation is int else None),
        "envvar": f"RBEE_{field.name.upper()}",
        "show_default": not isinstance(field.default, bool | tuple) and field.default != "",
    }
    if annotation is bool:
        settings["is_flag"] = True
        if field.default:
            flag += f"/--no-{flag.removeprefix('--')}"
    elif typing.get_origin(annotation) is Literal:
        settings["type"] = click.Choice(typing.get_args(annotation))
    elif typing.get_origin(annotation) is tuple:
        settings |= {"multiple": True, "type": str}
    elif "minimum" in field.metadata:
        limits = click.IntRange if annotation is int else click.FloatRange
        settings["type"] = limits(field.metadata["minimum"], field.metadata.get("maximum"))
    else:
        settings["type"] = annotation
    short = [field.metadata["short"]] if "short" in field.metadata else []
    make = _Repeated if settings.get("multiple") else click.Option
    option = make([flag, *short, field.name], **settings)
    option.section = section  # type: ignore[attr-defined] # where _ServeCommand's help lists it
    return option


def _options_of(config_class: type, section: str) -> list[click.Parameter]:
    annotations = typing.get_type_hints(config_class)
    return [
        _option_of(field, annotations[field.name], section)
        for field in dataclasses.fields(config_class)
        if "help" in field.metadata
    ]


def _take(config_class: type, values: dict[str, Any]) -> Any:
    """A `config_class` with those of the parsed values that are its fields."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return config_class(**{name: value for name, value in values.items() if name in names})


class _Serve(click.Command):
    def __init__(self) -> None:
        super().__init__(
            "serve",
            callback=_serve,
            params=[
                click.Argument(["argument"], required=False, metavar="[MODEL]"),
                *_options_of(EngineConfig, "Model and engine"),
                *_options_of(ServerConfig, "Server"),
                *_options_of(Config, "Other"),
            ],
            help=_serve.__doc__,
            context_settings=_HELP_SETTINGS,
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):  # MODEL is explained as --model
                sections.setdefault(getattr(parameter, "section", "Other"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _model_of(argument: str | None, option: str) -> str:
    """The model that the command line names; both ways may be used if they agree."""
    by_option = click.get_current_context().get_parameter_source("model") is ParameterSource.COMMANDLINE
    if argument is not None and by_option and argument != option:
        raise click.UsageError(f"MODEL is {argument} and --model is {option}: give one of them.")
    return option if argument is None else argument


class ExitBySignal:
    """Within the block SIGINT and SIGTERM raise SystemExit, so that what is half made is removed.

    An exception that is raised within a finalizer, or a callback of the import system, is printed and lost. So it is
    raised again by `check`, which the work should call now and then, and at the end of the block.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, _Handler] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in _STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise SystemExit if a signal has come."""
        if self._asked:
            sys.exit(0)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        sys.exit(0)


def _serve(argument: str | None, **values: Any) -> None:
    """Serve MODEL over HTTP: the OpenAI API, streamed token by token.

    The first start of a model fetches it; later starts use the cache. The address answers /health at once
    and /ready as soon as the model is loaded. Ctrl-C or SIGTERM finishes open streams, then stops.

    \b
    Examples:
      rbee serve                                   the default model on 127.0.0.1:8000
      rbee serve ./my-llama --port 9000            a folder with safetensors and tokenizer.json, or with a GGUF file
      rbee serve file.gguf                         a GGUF file
      rbee serve org/name:Q4_K_M                   a GGUF file from the Hugging Face Hub
      rbee serve synthetic --synthetic-step-ms 5   no weights: for latency measurements

    Every option is also read from the environment: --max-num-seqs as RBEE_MAX_NUM_SEQS.
    """  # noqa: D301 - \b is click's mark for a paragraph that is not rewrapped
    # Until the server handles them, there is nothing to release; an exception could be lost in what is being imported.
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that is closed ends no stream
    values["model"] = _model_of(argument, values["model"])
    engine: EngineConfig = _take(EngineConfig, values)
    config = Config(
        engine=engine, server=_take(ServerConfig, values), log_format=values["log_format"], debug=values["debug"]
    )
    logs.configure("server", log_format=config.log_format, debug=config.debug)
    if click.get_current_context().get_parameter_source("api_key") is ParameterSource.COMMANDLINE:
        logging.getLogger(__name__).warning(
            "other users can read --api-key in the list of processes: use --api-key-file or RBEE_API_KEY"
        )
    model = None
    if engine.model != SYNTHETIC:
        from rbee.models import ConsoleProgress, prepare  # noqa: PLC0415 - `--help` and --version stay instant

        with ExitBySignal() as signals, ConsoleProgress(signals.check) as progress:
            model = prepare(engine.model, progress=progress)
        config = dataclasses.replace(config, engine=dataclasses.replace(engine, model=str(model.path)))
    from rbee.server.process import run  # noqa: PLC0415 - as above, and only once there is something to serve

    sys.exit(run(config, model))


@click.group(context_settings=_HELP_SETTINGS)
@click.version_option(__version__, prog_name="rbee", message="%(prog)s %(version)s")
def cli() -> None:
    """rbee: an inference server built around the path from the sampled token to the client's socket."""


@cli.command()
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--list", "list_only", is_flag=True, help="List the names of the catalogue, and fetch nothing.")
@click.option("--debug", is_flag=True, help="Show tracebacks instead of one sentence.")
def pull(model: str, *, list_only: bool, debug: bool) -> None:  # noqa: ARG001 - `debug` is read by main()
    """Fetch MODEL (a catalogue name, a .gguf file, a Hub id or org/name:QUANT) and make it ready to serve."""
    from rbee.models import ConsoleProgress, list_catalogue, prepare  # noqa: PLC0415 - `--help` stays instant

    if list_only:
        for entry in list_catalogue():
            click.echo(f"{entry.name:24} {entry.summary}")
        return
    with ConsoleProgress() as progress:
        folder = prepare(model, progress=progress)
    click.echo(f"{folder.name} is ready in {folder.path}")


@cli.command()
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--debug", is_flag=True, help="Show tracebacks instead of one sentence.")
def show(model: str, *, as_json: bool, debug: bool) -> None:  # noqa: ARG001 - `debug` is read by main()
    """Describe MODEL: architecture, tensors, tokenizer, chat templates, memory, and which runner would serve it.

    Reads headers only and loads no weights. A model that is not here yet is fetched first.
    """
    from rbee.show import run  # noqa: PLC0415 - `--help` stays instant

    run(model, as_json=as_json)


@cli.command()
@click.option("--pid", type=click.IntRange(1, 2**22), metavar="PID", help="The server; needed if several are running.")
@click.option(
    "--interval",
    type=click.FloatRange(0.05, 3600),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds from one view to the next.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N intervals.")
@click.option("--once", is_flag=True, help="Print one interval as text, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per interval, each on its own line.")
def top(*, pid: int | None, interval: float, count: int | None, once: bool, as_json: bool) -> None:
    """Watch a running server: streams, rates, latencies, wakeups, KV cache.

    Reads the server's shared memory, which does not slow the server down. Only the server's user and root can read it.
    Ctrl-C ends the view, and so does the server's end.
    """
    style: Literal["live", "plain", "json"] = "json" if as_json else "plain" if once else "live"
    with contextlib.suppress(KeyboardInterrupt):
        from rbee.top import run  # noqa: PLC0415 - `--help` stays instant

        run(pid, seconds=interval, count=1 if once else count, style=style)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(*, as_json: bool) -> None:
    """Say what this machine and this installation offer a server, and what limits them.

    Takes about a second, starts nothing and changes nothing. Exit code 2: no server can run here.
    """
    from rbee.doctor import run  # noqa: PLC0415 - `--help` stays instant

    sys.exit(run(as_json=as_json))


cli.add_command(_Serve())


def main() -> None:
    """Run the command that the process was started with."""
    standard_streams.protect()
    try:
        cli.main(prog_name="rbee")
    except RbeeError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        logs.flush()
        standard_streams.say(f"rbee: {error}", as_error=True)
        sys.exit(_EXIT_USER_ERROR)
    except OSError as error:
        if error.errno not in _NO_ROOM_ERRNOS or error.filename is not None:
            raise
        standard_streams.say(f"rbee: The output cannot be written: {error.strerror}.", as_error=True)
        sys.exit(_EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
