"""Converting a GGUF file with the real conversion process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from rbee.errors import ModelError
from rbee.models import cache as cache_module
from rbee.models import gguf_of, prepare
from tests.models.models_parts import (
    FFN,
    HIDDEN,
    PREPARE,
    RecordingProgress,
    start_prepare,
    tiny_weights,
)


def expected_weights():
    """The tiny model's weights after one trip through the types that its file stores them in."""
    kind = gguf.GGMLQuantizationType.Q8_0
    return {
        name: gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind) if "mlp" in name else weight
        for name, weight in tiny_weights().items()
    }


def test_a_converted_gguf_has_the_weights_that_were_put_in(converted_tiny):
    """Names are transformers', q and k are permuted back, Q8_0 is dequantized, the tied lm_head is not stored."""
    folder, _ = converted_tiny
    found = load_file(folder.path / "model.safetensors")
    expected = expected_weights()
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert np.array_equal(found[name], weight), name


def test_a_converted_gguf_has_the_configuration_that_was_put_in(converted_tiny):
    """Shapes and limits come from the metadata, and nothing says that the weights are quantized."""
    folder, _ = converted_tiny
    config = json.loads((folder.path / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["hidden_size"], config["intermediate_size"]) == (HIDDEN, FFN)
    assert config["max_position_embeddings"] == 128
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config
    assert (folder.path / "chat_template.jinja").read_text().startswith("{% for m in messages %}<|im_start|>")


def test_generation_ends_on_the_end_of_text_and_on_the_end_of_the_turn(converted_tiny):
    """generation_config.json names both the file's eos and its eot token, and has the sampling that it recommends."""
    folder, _ = converted_tiny
    generation = json.loads((folder.path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2], "temperature": 0.6}


def test_a_converted_tokenizer_keeps_special_tokens_whole_and_isolates_digits(converted_tiny):
    """Control tokens are single ids and special; a line break before a digit merges as in training."""
    folder, _ = converted_tiny
    tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>ab<|im_end|>").tokens == ["<|im_start|>", "ab", "<|im_end|>"]
    assert tokenizer.encode("<|im_start|><|im_end|><|endoftext|>").ids == [1, 2, 0]
    assert tokenizer.decode([1, 2, 0], skip_special_tokens=True) == ""
    assert tokenizer.encode("\n\n12  3").tokens == ["ĊĊ", "1", "2", "ĠĠ", "3"]


def test_the_manifest_says_where_the_folder_comes_from(converted_tiny, tiny_gguf):
    """rbee.json has source, checksum, versions and the size of each file; all are readable by their owner's group."""
    folder, _ = converted_tiny
    manifest = json.loads((folder.path / "rbee.json").read_text())
    assert manifest["source"] == str(tiny_gguf)
    assert manifest["format"] == 2
    assert set(manifest["files"]) == {path.name for path in folder.path.iterdir()} - {"rbee.json"}
    digest = subprocess.run(["sha256sum", tiny_gguf], capture_output=True, text=True, check=True).stdout.split()[0]
    assert manifest["sha256"] == digest
    assert len({path.stat().st_mode for path in folder.path.iterdir()}) == 1


def test_the_file_that_a_folder_was_converted_from_is_known(converted_tiny, tiny_gguf, tmp_path):
    """As long as it is there as it was; a folder that was not converted has none."""
    folder, _ = converted_tiny
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


def test_folders_of_older_formats_are_removed_by_the_first_conversion_in_the_new_one(tiny_gguf, cache, progress):
    """Those of this model only; a folder of today's format, of another model or of nobody's stays."""
    key = "0123456789abcdef"
    cache.mkdir()
    for name, manifest in {
        f"tiny-{key}": {"format": 1, "name": "tiny"},
        f"tiny-{key[::-1]}": {"format": 2, "name": "tiny"},
        f"tiny-er-{key}": {"format": 1, "name": "tiny-er"},
        f"tiny-{key[1:]}9": {"format": 1, "name": "tiny!"},
        f"tiny-{key[2:]}99": None,
    }.items():
        (cache / name).mkdir()
        if manifest is not None:
            (cache / name / "rbee.json").write_text(json.dumps(manifest))
    before = {path.name for path in cache.iterdir()}
    folder = prepare(str(tiny_gguf), progress=progress).path
    after = {path.name for path in cache.iterdir() if path.is_dir()}
    assert after == before - {f"tiny-{key}"} | {folder.name}


def test_each_stage_of_a_conversion_is_told(converted_tiny, tiny_gguf):
    """A user sees what takes the time; the file's own size is told as it is read."""
    folder, said = converted_tiny
    assert folder.name == "tiny"
    assert said.stages == [
        "checking the GGUF file",
        "loading torch and transformers",
        "converting the tokenizer",
        "converting the weights",
        "saving the weights",
    ]
    assert said.amounts == [("checking the GGUF file", tiny_gguf.stat().st_size)]
    assert said.notes == []


def wait_for_stage(process, stage):
    """Read the progress of a preparing process up to the line of this stage; returns the lines."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if stage in line:
            return lines
    raise AssertionError(f"no line with {stage!r} came: {lines}")


def conversion_child(process):
    """The conversion process of a preparing process."""
    (child,) = psutil.Process(process.pid).children()
    assert "rbee.engine.runners.torch.convert_gguf" in child.cmdline()
    return child


def test_a_preparation_killed_at_any_stage_leaves_no_process_and_nothing_half_made(tiny_gguf, converted_tiny, cache):
    """After SIGKILL at a stage the child is gone and no entry is there; a clean run makes the same weights."""
    reference, said = converted_tiny
    for stage in [stage for stage in said.stages if stage != "converting the tokenizer"]:
        with start_prepare(tiny_gguf, cache=cache) as process:
            wait_for_stage(process, stage)
            child = conversion_child(process)
            child.suspend()  # so that it cannot notice by itself
            process.kill()
        child.wait(timeout=60)  # the kernel kills it
        assert stage == "saving the weights" or not list(cache.glob("*/model.safetensors"))
        left = [path for path in cache.iterdir() if path.suffix not in (".lock", ".partial")]
        assert all(cache_module.is_whole(path) for path in left)
        assert not left or stage == "saving the weights"  # the last stage may have been over before the signal
        for path in left:
            shutil.rmtree(path)
    folder = prepare(str(tiny_gguf), progress=RecordingProgress())
    assert not list(cache.glob("*.partial"))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (folder.path / name).read_bytes() == (reference.path / name).read_bytes()


def test_a_conversion_process_that_is_killed_gives_a_sentence(tiny_gguf, cache):
    """The preparing process survives SIGKILL of its child, which shared the lock; it says so and leaves nothing."""
    with start_prepare(tiny_gguf, cache=cache) as process:
        wait_for_stage(process, "loading torch")
        child = conversion_child(process)
        assert [Path(file.path).suffix for file in child.open_files() if ".lock" in file.path] == [".lock"]
        child.kill()
        rest = process.stderr.read()
    assert process.returncode == 1
    assert f"ModelError: The conversion of {tiny_gguf} was killed by SIGKILL; the machine may have run out" in rest
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_ctrl_c_ends_the_child_and_leaves_nothing(tiny_gguf, cache):
    """SIGINT to both processes, as a terminal sends it, removes the unfinished folder."""
    with start_prepare(tiny_gguf, cache=cache) as process:
        wait_for_stage(process, "loading torch")
        child = conversion_child(process)
        child.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == -signal.SIGINT
    child.wait(timeout=60)  # its parent is gone, so it stays in the process table until init has noticed
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_two_preparations_at_once_convert_once(tiny_gguf, cache):
    """The second waits for the first, says so, and uses what the first has made."""
    with start_prepare(tiny_gguf, cache=cache) as first:
        wait_for_stage(first, "loading torch")
        child = conversion_child(first)
        child.suspend()  # so that it is not ready before the second has begun
        with start_prepare(tiny_gguf, cache=cache) as second:
            waiting = wait_for_stage(second, "waiting for another process")
            child.resume()
            rest = second.stderr.read()
            assert second.stdout.read() == first.stdout.read() != ""
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(waiting) == 1
    assert rest == ""


def test_a_second_call_is_served_from_the_cache_without_heavy_imports(converted_tiny, tiny_gguf):
    """A model that is ready costs no import of torch, transformers, huggingface_hub, gguf or rich, and says nothing."""
    folder, _ = converted_tiny
    report = "\nprint(sorted({'torch', 'transformers', 'huggingface_hub', 'gguf', 'rich', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + report, str(tiny_gguf)],
        env=os.environ | {"RBEE_CACHE": str(folder.path.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{folder.path}\n[]\n"
    assert done.stderr == ""


@pytest.mark.usefixtures("cache")
def test_a_changed_file_is_converted_anew(tmp_path, tiny_gguf):
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


def test_a_file_that_changes_while_it_is_converted_is_refused(tmp_path, tiny_gguf, cache):
    """What was read in the middle of a download or copy is thrown away."""
    path = tmp_path / "growing.gguf"
    shutil.copy(tiny_gguf, path)

    class Toucher(RecordingProgress):
        def stage(self, name, total=0):
            super().stage(name, total)
            os.utime(path)

    with pytest.raises(ModelError, match=rf"{path} was changed while it was being converted"):
        prepare(str(path), progress=Toucher())
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_file_that_is_no_gguf_is_refused_by_its_name(tmp_path, cache, progress):
    """The sentence comes from the conversion process through to the caller, and nothing stays in the cache."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ModelError, match=rf"{path} is not a GGUF file that can be used"):
        prepare(str(path), progress=progress)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_too_little_space_is_seen_before_anything_is_done(tmp_path, cache, progress):
    """A sparse file whose weights would fill more than the whole disk names folder, bytes needed and bytes free."""
    path = tmp_path / "huge.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    billions = 4_000
    writer.add_tensor_info("w", (billions * 10**9,), np.dtype(np.int8), 1, gguf.GGMLQuantizationType.I8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + 64 + billions * 10**9)
    with pytest.raises(ModelError, match=rf"space in {cache}/huge-.*: 16000\d+ bytes are needed and \d+ are"):
        prepare(str(path), progress=progress)
    assert progress.amounts == []


def test_a_disk_that_fills_while_saving_is_a_sentence(tiny_gguf, cache):
    """With a limit on file sizes the weights cannot be written: bytes needed and free are named, nothing is left."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n" + PREPARE
    done = subprocess.run([sys.executable, "-c", limited, str(tiny_gguf)], capture_output=True, text=True, check=False)
    assert "rbee: saving the weights" in done.stderr
    assert f"ModelError: There is not enough space in {cache}: " in done.stderr
    assert "bytes are needed and" in done.stderr
    assert done.returncode == 1
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
