"""The folder that stands for a GGUF file in the cache: what is in it, and when it is made."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

import gguf
import pytest
from tokenizers import Tokenizer

from rbee.errors import ModelError
from rbee.models import cache as cache_module
from rbee.models import gguf_of, prepare
from rbee.models.pooling import POOLING_FILE, ModelPooling, read_pooling
from tests.models.models_parts import FFN, HIDDEN, PREPARE, RecordingProgress, start_prepare, write_tiny_gguf

STAGES = ["reading the model's configuration", "building the tokenizer"]


def test_the_folder_has_everything_but_the_weights(prepared_tiny, tiny_gguf):
    """The configuration of the file, its chat template, no copy of a weight; the same rights for all files."""
    folder, said = prepared_tiny
    config = json.loads((folder.path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (config["hidden_size"], config["intermediate_size"]) == (HIDDEN, FFN)
    assert config["max_position_embeddings"] == 128
    assert config["tie_word_embeddings"] is True
    assert (folder.path / "chat_template.jinja").read_text().startswith("{% for m in messages %}<|im_start|>")
    files = {path.name for path in folder.path.iterdir()}
    small = {"config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"}
    assert files == small | {"tokenizer.json", "token_pieces.msgpack", "rbee.json"}
    assert sum(path.stat().st_size for path in folder.path.iterdir()) < tiny_gguf.stat().st_size
    assert len({path.stat().st_mode for path in folder.path.iterdir()}) == 1
    assert (folder.name, said.stages, said.notes) == ("tiny", STAGES, [])


def test_generation_ends_on_the_end_of_text_and_on_the_end_of_the_turn(prepared_tiny):
    """generation_config.json names both the file's eos and its eot token."""
    folder, _ = prepared_tiny
    generation = json.loads((folder.path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2], "temperature": 0.6}


def test_the_tokenizer_keeps_special_tokens_whole_and_isolates_digits(prepared_tiny):
    """Control tokens are single ids and special; a line break before a digit merges as in training."""
    folder, _ = prepared_tiny
    tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>ab<|im_end|>").tokens == ["<|im_start|>", "ab", "<|im_end|>"]
    assert tokenizer.encode("<|im_start|><|im_end|><|endoftext|>").ids == [1, 2, 0]
    assert tokenizer.decode([1, 2, 0], skip_special_tokens=True) == ""
    assert tokenizer.encode("\n\n12  3").tokens == ["ĊĊ", "1", "2", "ĠĠ", "3"]


def test_the_manifest_says_where_the_folder_comes_from(prepared_tiny, tiny_gguf):
    """rbee.json has source, format and the size of each file."""
    folder, _ = prepared_tiny
    manifest = json.loads((folder.path / "rbee.json").read_text())
    assert (manifest["source"], manifest["format"]) == (str(tiny_gguf), 6)
    assert set(manifest["files"]) == {path.name for path in folder.path.iterdir()} - {"rbee.json"}


def test_the_file_with_the_weights_is_known(prepared_tiny, tiny_gguf, tmp_path):
    """As long as it is there as it was; a folder that stands for no GGUF file has none."""
    folder, _ = prepared_tiny
    assert gguf_of(folder.path) == tiny_gguf
    moved = tmp_path / "moved"
    shutil.copytree(folder.path, moved)
    assert gguf_of(moved) == tiny_gguf
    copy = shutil.copy(tiny_gguf, tmp_path / "tiny.gguf")
    manifest = json.loads((moved / "rbee.json").read_text())
    (moved / "rbee.json").write_text(json.dumps({**manifest, "gguf": str(copy)}))
    assert gguf_of(moved) is None
    (moved / "rbee.json").write_text(json.dumps({**manifest, "gguf": str(tmp_path / "gone.gguf")}))
    assert gguf_of(moved) is None
    (moved / "rbee.json").write_text("[]")
    assert gguf_of(moved) is None
    (moved / "rbee.json").unlink()
    assert gguf_of(moved) is None


def test_a_file_kept_in_the_folder_is_found_wherever_the_folder_is(tmp_path):
    """As the catalogue's models have it: the manifest names it without a path."""
    (tmp_path / "rbee.json").write_text('{"gguf": "model.gguf"}')
    assert gguf_of(tmp_path) is None
    (tmp_path / "model.gguf").touch()
    assert gguf_of(tmp_path) == tmp_path / "model.gguf"


def test_what_older_versions_left_of_a_model_is_removed(tiny_gguf, cache, progress):
    """Its folders of older formats and their packed weights; what belongs to another model or to nobody stays."""
    key = "0123456789abcdef"
    cache.mkdir()
    entries = {
        f"tiny-{key}": {"format": 1, "name": "tiny"},
        f"tiny-{key}.packed-{key}": {"format": 1, "name": f"tiny-{key}", "matrices": {}},
        f"tiny-{key[::-1]}": {"format": 6, "name": "tiny"},
        f"tiny-er-{key}": {"format": 1, "name": "tiny-er"},
        f"tiny-er-{key}.packed-{key}": {"format": 1, "matrices": {}},
        f"tiny-{key[1:]}9": {"format": 1, "name": "tiny!"},
        f"tiny-{key[2:]}99": None,
    }
    for name, manifest in entries.items():
        (cache / name).mkdir()
        if manifest is not None:
            (cache / name / "rbee.json").write_text(json.dumps(manifest))
    folder = prepare(str(tiny_gguf), progress=progress).path
    after = {path.name for path in cache.iterdir() if path.is_dir()}
    assert after == entries.keys() - {f"tiny-{key}", f"tiny-{key}.packed-{key}"} | {folder.name}


def test_an_embedding_model_that_an_older_version_prepared_gets_its_pooling(tmp_path, cache, progress):
    """Format 5 had no pooling.json: such a folder is whole, and is made again all the same."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", pooling=gguf.PoolingType.MEAN)
    made = prepare(str(path), progress=progress).path
    manifest = json.loads((made / "rbee.json").read_text())
    older = cache / f"tiny-{hashlib.sha256(b'5|' + manifest['gguf_identity'].encode()).hexdigest()[:16]}"
    made.rename(older)
    (older / POOLING_FILE).unlink()
    del manifest["files"][POOLING_FILE]
    (older / "rbee.json").write_text(json.dumps({**manifest, "format": 5}))
    assert cache_module.is_whole(older)
    folder = prepare(str(path), progress=progress).path
    assert read_pooling(folder) == ModelPooling("mean")
    assert not older.exists()


HOLDING = """
import sys
from rbee.models import prepare

class Holding:
    def stage(self, name, total=0):
        print(name, flush=True)
        sys.stdin.readline()

print(prepare(sys.argv[1], progress=Holding()).path)
"""


def start_holding(model, cache):
    """Prepare a model in a process that prints each stage and waits there for a line."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(model)],
        env=os.environ | {"RBEE_CACHE": str(cache)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_preparation_that_is_ended_leaves_nothing(stages, number, tiny_gguf, prepared_tiny, cache):
    """At any of its stages; the next preparation makes the same files."""
    reference, _ = prepared_tiny
    with start_holding(tiny_gguf, cache) as process:
        assert process.stdout.readline() == f"{STAGES[0]}\n"
        for stage in STAGES[1:stages]:
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{stage}\n"
        process.send_signal(number)
        process.wait()
        assert not [path for path in cache.iterdir() if path.suffix not in (".lock", ".partial")]
    folder = prepare(str(tiny_gguf), progress=RecordingProgress())
    assert not list(cache.glob("*.partial"))
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        assert (folder.path / name).read_bytes() == (reference.path / name).read_bytes()


def test_two_preparations_at_once_write_once(tiny_gguf, cache):
    """The second waits for the first, says so, and uses what the first has made."""
    with start_holding(tiny_gguf, cache) as first:
        first.stdout.readline()
        with start_prepare(tiny_gguf, cache=cache) as second:
            assert "waiting for another process" in second.stderr.readline()
            written, _ = first.communicate("\n" * len(STAGES))
            assert second.stderr.read() == ""
            assert second.stdout.read() == written.splitlines()[-1] + "\n"
    assert (first.returncode, second.returncode) == (0, 0)


def test_a_second_call_is_served_from_the_cache_without_heavy_imports(prepared_tiny, tiny_gguf):
    """A model that is ready costs no import of what only reading it needs, and says nothing."""
    folder, _ = prepared_tiny
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'gguf', 'rich', 'numpy', 'tokenizers'}"
    done = subprocess.run(
        [sys.executable, "-c", f"{PREPARE}\nprint(sorted({heavy} & set(sys.modules)))", str(tiny_gguf)],
        env=os.environ | {"RBEE_CACHE": str(folder.path.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{folder.path}\n[]\n"
    assert done.stderr == ""


def test_a_first_call_imports_neither_torch_nor_transformers(tiny_gguf, cache):
    """A GGUF's metadata is all that its folder is made of."""
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'gguf'}"
    program = f"{PREPARE}\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program, str(tiny_gguf)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert list(cache.glob("tiny-*/tokenizer.json"))


@pytest.mark.usefixtures("cache")
def test_a_changed_file_is_read_anew(tmp_path, tiny_gguf):
    """The same path with other content is another model; the entry of the old one stays for whoever serves it."""
    path = tmp_path / "model v1.gguf"
    shutil.copy(tiny_gguf, path)
    before = prepare(str(path), progress=RecordingProgress())
    assert before.name == "model v1"
    assert before.path.name.startswith("model-v1-")
    os.truncate(path, path.stat().st_size - 5000)
    with pytest.raises(ModelError, match="but the file has only"):
        prepare(str(path), progress=RecordingProgress())
    assert cache_module.is_whole(before.path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, tiny_gguf, cache):
    """What was read in the middle of a download or copy is thrown away."""
    path = tmp_path / "growing.gguf"
    shutil.copy(tiny_gguf, path)

    class Toucher(RecordingProgress):
        def stage(self, name, total=0):
            super().stage(name, total)
            os.utime(path)

    with pytest.raises(ModelError, match=rf"{path} was changed while it was being read"):
        prepare(str(path), progress=Toucher())
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_file_that_is_no_model_is_refused_by_its_name(tmp_path, cache, progress):
    """Whatever is wrong with it, and nothing stays in the cache."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ModelError, match=rf"{path} is not a GGUF file that can be used"):
        prepare(str(path), progress=progress)
    write_tiny_gguf(path, architecture="clip")
    with pytest.raises(ModelError, match=rf"{path} is no model but the vision or audio part"):
        prepare(str(path), progress=progress)
    write_tiny_gguf(path, architecture="mamba")
    with pytest.raises(ModelError, match=rf"{path} cannot be served: its architecture is 'mamba', and .* llama, "):
        prepare(str(path), progress=progress)
    write_tiny_gguf(path, pre="unheard-of")
    with pytest.raises(ModelError, match="unheard-of"):
        prepare(str(path), progress=progress)
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


def test_a_shard_that_is_missing_is_named(tmp_path, tiny_gguf, progress):
    """Before anything is read."""
    path = tmp_path / "m-00001-of-00002.gguf"
    shutil.copy(tiny_gguf, path)
    with pytest.raises(ModelError, match=r"2 files, and 1 are missing, m-00002-of-00002\.gguf among them"):
        prepare(str(path), progress=progress)


def test_a_disk_that_is_full_is_a_sentence(tiny_gguf, cache):
    """With a limit on file sizes the tokenizer cannot be written: the folder and a remedy are named."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + PREPARE
    done = subprocess.run([sys.executable, "-c", limited, str(tiny_gguf)], capture_output=True, text=True, check=False)
    assert f"ModelError: There is not enough space in {cache}" in done.stderr
    assert done.returncode == 1
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
