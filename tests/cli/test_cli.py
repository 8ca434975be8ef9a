"""The command line: what it offers, how it is configured and how it says no."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from rbee import __version__
from rbee.cli import _Serve
from rbee.config import DEFAULT_MODEL, Config, EngineConfig, ServerConfig


def _rbee(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "rbee.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "110", **environment},
    )


def test_version():
    """--version prints the installed version."""
    assert _rbee("--version").stdout == f"rbee {__version__}\n"


@pytest.mark.parametrize("config_class", [EngineConfig, ServerConfig, Config])
def test_serve_help_lists_every_option(config_class):
    """Each field with a help text is an option of `rbee serve`, spelled with dashes and explained."""
    shown = _rbee("serve", "--help").stdout
    words = " ".join(shown.split())
    for field in dataclasses.fields(config_class):
        if "help" in field.metadata:
            assert f"--{field.name.replace('_', '-')} " in words
            assert field.metadata["help"].split()[-1] in words


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "99999"], "99999 is not in the range 0<=x<=65535"),
        (["--runner", "magic"], "'magic' is not one of 'auto', 'native', 'torch', 'synthetic'"),
        (["--quantize", "q5"], "'q5' is not one of 'none', 'q4', 'q8'"),
        (["--max-num-seqs", "0"], "0 is not in the range x>=1"),
        (["--max-num-seq", "3"], "--max-num-seqs"),
        (["--model", "no-such-model"], "no-such-model"),
        (["no-such-model"], "no-such-model"),
        (["one-model", "--model", "another"], "MODEL is one-model and --model is another: give one of them."),
        (["one-model", "-m", "another"], "MODEL is one-model and --model is another: give one of them."),
        (["one-model", "another"], "unexpected extra argument (another)"),
        (["synthetic", "--generation-config", "some"], "'some' is not one of 'auto', 'none'"),
        (["--model", "synthetic", "--runner", "torch"], "synthetic"),
        (["--model", "synthetic", "--runner", "native"], "synthetic"),
        (["--model", "synthetic", "--ring-capacity", "1000"], "power of two"),
        (["--model", "synthetic", "--host", "0.0.0.0"], "--api-key"),
    ],
)
def test_bad_option_is_a_sentence_and_exit_code_2(arguments, sentence):
    """A bad value ends the command with exit code 2 and a sentence that names it, without a traceback."""
    result = _rbee("serve", "--port", "0", *arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["no-model"], {}),
        (["-m", "no-model"], {}),
        (["no-model", "--model", "no-model"], {}),
        ([], {"RBEE_MODEL": "no-model"}),
        (["no-model"], {"RBEE_MODEL": "other"}),
    ],
)
def test_the_model_is_an_argument_or_an_option(arguments, environment):
    """Both may be given if they agree; the command line wins over the environment."""
    assert "There is no model called 'no-model'." in _rbee("serve", "--port", "0", *arguments, **environment).stderr


@pytest.mark.parametrize("command", ["serve", "pull", "show"])
def test_a_model_that_cannot_be_used_is_a_sentence_and_exit_code_2(command, tmp_path):
    """Whatever is wrong with it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF\xff")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("[" * 100_000)
    for model in ("no-such-model", "./nothing", *map(str, tmp_path.iterdir())):
        result = _rbee(command, model, RBEE_CACHE=str(tmp_path / "cache"))
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.splitlines()[-1].startswith("rbee: ")
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["serve", "pull", "show"])
@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("", "MODEL (or --model) is empty."),
        ("~no-such-user/x.gguf", "There is no model file or folder ~no-such-user/x.gguf. Check the path."),
        ("a" * 5000, f"The model '{'a' * 200}...' cannot be used: File name too long."),
        ("./" + "a" * 5000, "cannot be used: File name too long."),
        ("b" * 250, f"There is no model called '{'b' * 200}...'."),
    ],
    ids=["empty", "no such user", "long", "long path", "long name"],
)
def test_a_model_that_is_no_path(command, model, sentence, tmp_path):
    """Whatever the system says to it, the user gets one short sentence."""
    result = _rbee(command, model, RBEE_CACHE=str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 500


@pytest.mark.parametrize(
    "environment", [{"RBEE_CACHE": "~no-such-user/models"}, {"XDG_CACHE_HOME": "~no-such-user"}], ids=str
)
@pytest.mark.parametrize("command", ["serve", "pull"])
def test_a_cache_without_a_home_folder(command, environment):
    """As for a user without an entry in passwd: the sentence names the remedy."""
    result = _rbee(command, **environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("rbee: There is no home folder for the model cache ~no-such-user")
    assert result.stderr.endswith("Set RBEE_CACHE to a folder that can be written.\n")


@pytest.mark.parametrize("value", ["", " "])
def test_an_api_key_in_the_environment_that_is_none(value):
    """Who sets the variable wants a key: it is refused as `--api-key ""` is, and no server is open to all."""
    result = _rbee("serve", "--model", "synthetic", "--port", "0", RBEE_API_KEY=value)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "rbee: --api-key must be a word of ASCII characters, not an empty one.\n"


@pytest.mark.parametrize(
    ("arguments", "environment", "keys"),
    [
        ([], {}, ()),
        ([], {"RBEE_API_KEY": "correct horse battery"}, ("correct horse battery",)),
        (["--api-key", "a b", "--api-key", "c"], {"RBEE_API_KEY": "d"}, ("a b", "c")),
    ],
)
def test_the_environment_has_one_api_key(monkeypatch, arguments, environment, keys):
    """All that the variable says, blanks included; the command line wins."""
    monkeypatch.delenv("RBEE_API_KEY", raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert _Serve().make_context("serve", arguments).params["api_key"] == keys


def test_options_come_from_the_environment():
    """RBEE_<OPTION> is read like the option itself."""
    result = _rbee("serve", "--model", "synthetic", RBEE_PORT="70000")
    assert result.returncode == 2
    assert "70000 is not in the range" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "value"),
    [
        ([], {}, True),
        (["--no-prefix-caching"], {}, False),
        ([], {"RBEE_PREFIX_CACHING": "false"}, False),
        (["--prefix-caching"], {"RBEE_PREFIX_CACHING": "false"}, True),
    ],
)
def test_what_is_on_can_be_switched_off(monkeypatch, arguments, environment, value):
    """An option that is on by default has a flag of its own for off; the environment says true or false."""
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert _Serve().make_context("serve", arguments).params["prefix_caching"] is value
    assert "--prefix-caching / --no-prefix-caching" in _rbee("serve", "--help").stdout


def test_pull_lists_the_catalogue():
    """`rbee pull --list` names the default model and fetches nothing."""
    result = _rbee("pull", "--list", RBEE_CACHE="/nonexistent")
    assert result.returncode == 0
    assert result.stdout.startswith(DEFAULT_MODEL)


def test_pull_of_an_unknown_name_suggests_the_nearest():
    """A name that is not in the catalogue is a sentence with the name that was probably meant, and exit code 2."""
    result = _rbee("pull", "smollm2-135m-instuct")
    assert result.returncode == 2
    assert f"Did you mean {DEFAULT_MODEL!r}?" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback():
    """With --debug the traceback comes before the sentence."""
    result = _rbee("pull", "--debug", "no-such-model")
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_help_is_instant():
    """`rbee serve --help` imports neither the server nor the models: it answers without delay."""
    script = "import sys; sys.argv = ['rbee', 'serve', '--help']\nimport atexit, rbee.cli\n"
    script += "atexit.register(lambda: print(sorted(m for m in sys.modules if m.startswith(('rbee.', 'uvicorn')))))\n"
    result = subprocess.run(
        [sys.executable, "-c", script + "rbee.cli.main()"], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = result.stdout.splitlines()[-1]
    assert "rbee.cli" in loaded
    assert "uvicorn" not in loaded
    assert "rbee.models" not in loaded
