"""What a model may be called, and folders that are served as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbee.errors import ModelError
from rbee.models import ConsoleProgress, prepare
from rbee.models.find import find
from rbee.models.folder import weights_files
from tests.models.models_parts import PREPARE

WEIGHTS: dict[str, np.ndarray] = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.float16)}


@pytest.fixture
def folder(tmp_path):
    """A complete model folder with one weights file."""
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    save_file(WEIGHTS, path / "model.safetensors")
    return path


def test_a_folder_is_used_in_place_under_its_own_name(folder, progress, monkeypatch):
    """Nothing is copied or said; a relative path comes back absolute."""
    monkeypatch.chdir(folder.parent)
    found = prepare("my-model", progress=progress)
    assert (found.name, found.path) == ("my-model", folder)
    monkeypatch.chdir(folder)
    assert prepare(".", progress=progress) == found
    assert progress.stages == []


def test_a_folder_under_the_home_folder_may_be_written_with_a_tilde(folder, progress, monkeypatch):
    """~ is the home folder, also where no shell has replaced it."""
    monkeypatch.setenv("HOME", str(folder.parent))
    assert prepare("~/my-model", progress=progress).path == folder


def test_a_folder_that_looks_like_a_hub_id_is_the_folder(folder, progress, monkeypatch):
    """What exists here wins over what may exist on the Hub."""
    monkeypatch.chdir(folder.parent.parent)
    assert prepare(f"{folder.parent.name}/my-model", progress=progress).path == folder


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", r"AutoTokenizer\.from_pretrained\(.*\)\.save_pretrained\("),
        ("model.safetensors", r"has no \*\.safetensors file\. Save the model with transformers"),
    ],
)
def test_a_folder_that_lacks_a_file_is_told_how_to_get_it(missing, remedy, folder, progress):
    """Each required file has its own sentence."""
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=rf"{folder} .*{remedy}|{folder} {remedy}"):
        prepare(str(folder), progress=progress)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["tiny.Q8_0.gguf", "mmproj-F16.gguf", "README.md"], "tiny.Q8_0.gguf"),
        (["config.json", "tokenizer.json", "tiny.gguf"], "tiny.gguf"),
        (["big-00002-of-00002.gguf", "big-00001-of-00002.gguf"], "big-00001-of-00002.gguf"),
        (["Q4_0/tiny.gguf"], "Q4_0/tiny.gguf"),
    ],
)
def test_a_folder_with_one_gguf_model_is_that_model(files, found, tmp_path, progress):
    """Its shards are one, a projector is none, and it is called like its file."""
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    name = Path(found).stem.removesuffix("-00001-of-00002")
    assert find(str(tmp_path), progress=progress) == (name, tmp_path / found)


def test_a_folder_with_several_gguf_models_lists_them(tmp_path, progress):
    """Without what is no model."""
    for name in ("a-Q4_0.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf", "mmproj-a.gguf"):
        (tmp_path / name).touch()
    listed = r"2 GGUF models: a-Q4_0\.gguf, a-Q8_0-00001-of-00002\.gguf\. Give --model the path of one\."
    with pytest.raises(ModelError, match=f"The folder {tmp_path} holds {listed}"):
        prepare(str(tmp_path), progress=progress)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "mmproj-a.gguf").touch()
    with pytest.raises(ModelError, match="holds GGUF files, but none is a model"):
        prepare(str(tmp_path / "alone"), progress=progress)


def test_a_gguf_file_beside_safetensors_is_not_taken(folder, progress):
    """The folder is served as it is."""
    (folder / "model.gguf").touch()
    assert prepare(str(folder), progress=progress).path == folder


def test_a_linked_gguf_file_keeps_its_name(tmp_path, progress):
    """In the Hub's cache the names are links to files without any."""
    (tmp_path / "blob").touch()
    (tmp_path / "model-Q8_0.gguf").symlink_to(tmp_path / "blob")
    found = find(str(tmp_path / "model-Q8_0.gguf"), progress=progress)
    assert found == ("model-Q8_0", tmp_path / "model-Q8_0.gguf")


def test_an_adapter_is_no_model(folder, progress):
    """Alone it is refused with the way to merge it; beside a model a note names it."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    save_file(WEIGHTS, folder / "adapter_model.safetensors")
    assert prepare(str(folder), progress=progress).path == folder
    assert progress.notes == [
        f"{folder}/adapter_config.json is not used: rbee serves the model beside it without its LoRA adapter."
    ]
    assert weights_files(folder) == [folder / "model.safetensors"]
    (folder / "model.safetensors").unlink()
    sentence = r"holds a LoRA adapter of org/base, which is no model by itself\. Merge it .*merge_and_unload\(\)"
    with pytest.raises(ModelError, match=sentence):
        prepare(str(folder), progress=progress)


def test_8_bit_floats_without_their_scales_are_refused(folder, progress):
    """With a quantization_config, also in the text part of a model that reads more, they are another's business."""
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelError, match=r"holds w in 8-bit floats \(F8_E4M3\), and config\.json has no quantization_"):
        prepare(str(folder), progress=progress)
    scales = {"quantization_config": {"quant_method": "fp8"}}
    for config in (scales, {"text_config": scales}):
        (folder / "config.json").write_text(json.dumps(config))
        assert prepare(str(folder), progress=progress).path == folder


def test_a_config_that_is_no_json_is_refused(folder, progress):
    """The file is named."""
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        prepare(str(folder), progress=progress)


def test_a_weights_file_cut_anywhere_or_grown_is_refused(folder, progress):
    """Every length but the right one is seen without reading the weights."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ModelError, match=r"model\.safetensors is (cut short|damaged)"):
            prepare(str(folder), progress=progress)
    path.write_bytes(content + b"x")
    with pytest.raises(ModelError, match="is damaged: its header asks for"):
        prepare(str(folder), progress=progress)


def test_a_sharded_model_needs_all_of_its_shards(folder, progress):
    """The index decides which files there must be; each present one is checked."""
    (folder / "model.safetensors").unlink()
    names = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": WEIGHTS["a"]}, folder / names[0])
    with pytest.raises(ModelError, match=r"lacks 1 of the 2 weights files .*, model-2-of-2\.safetensors among them"):
        prepare(str(folder), progress=progress)
    save_file({"b": WEIGHTS["b"]}, folder / names[1])
    assert prepare(str(folder), progress=progress).path == folder
    os.truncate(folder / names[1], 50)
    with pytest.raises(ModelError, match=r"model-2-of-2\.safetensors is"):
        prepare(str(folder), progress=progress)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json has no weight_map"):
        prepare(str(folder), progress=progress)


@pytest.mark.parametrize("name", ["smollm2-135m", "SmolLM2-135M-Instruct", "smolm2-135m-instruct"])
def test_a_misspelt_catalogue_name_is_answered_with_the_right_one(name, progress):
    """The nearest name is offered, with the other forms that are accepted."""
    with pytest.raises(ModelError, match=rf"{name}.* Did you mean 'smollm2-135m-instruct'\? Give a name from .*\.gguf"):
        prepare(name, progress=progress)


def test_an_unknown_name_far_from_all_others_gets_no_guess(progress):
    """Only the accepted forms are listed."""
    with pytest.raises(ModelError, match=r"no model called 'gpt-9000'\. Give a name from `rbee pull --list`, a folder"):
        prepare("gpt-9000", progress=progress)


@pytest.mark.parametrize("path", ["nothing.gguf", "/nowhere/model", "./nowhere", "~/nowhere"])
def test_a_path_that_is_not_there_is_said_to_be_missing(path, progress):
    """What is written like a path is not looked for under other forms."""
    with pytest.raises(ModelError, match=r"There is no model file or folder /.*no"):
        prepare(path, progress=progress)


def test_console_progress_prints_a_line_for_each_stage_where_there_is_no_terminal(capfd):
    """A log gets plain lines with sizes, without bars or control characters."""
    with ConsoleProgress() as progress:
        progress.stage("downloading", 93_000_000)
        progress.done(5)
        progress.stage("converting")
        progress.note("a [strange] thing")
    out, err = capfd.readouterr()
    assert err == "rbee: downloading (93 MB)\nrbee: converting\nrbee: a [strange] thing\n"
    assert out == ""


def test_console_progress_draws_bars_on_a_terminal():
    """On a pseudo-terminal each stage has its bar, a failed one stays where it was, and notes are printed whole."""
    program = (
        "from rbee.models import ConsoleProgress\n"
        "try:\n"
        "    with ConsoleProgress() as progress:\n"
        "        progress.stage('downloading', 100)\n"
        "        progress.done(60)\n"
        "        progress.stage('converting')\n"
        "        progress.note('a [strange] thing')\n"
        "        progress.stage('saving', 100)\n"
        "        progress.done(40)\n"
        "        1 / 0\n"
        "except ZeroDivisionError:\n"
        "    pass\n"
    )
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # how Linux tells that the other side has closed
            os.close(ours)
    assert process.returncode == 0
    last = shown.decode().split("\x1b[2K")[-1] if b"\x1b[2K" in shown else shown.decode()
    assert "rbee: a [strange] thing" in shown.decode()
    for stage in ("downloading", "converting", "saving"):
        assert stage in last
    assert "100%" in last
    assert "40%" in last


def test_the_preparing_process_prints_nothing_but_the_path_on_stdout(folder):
    """A folder that is ready makes no sound on stderr."""
    done = subprocess.run([sys.executable, "-c", PREPARE, str(folder)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{folder}\n", "")
