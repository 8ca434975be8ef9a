"""Headers of GGUF files with damage of every kind, a hundred thousand of them."""

from __future__ import annotations

import subprocess
import sys

import gguf
import numpy as np
import pytest

ROUNDS = 100_000

PROGRAM = """
import os, random, resource, sys
from pathlib import Path
from rbee.errors import ModelError
from rbee.models.gguf import read_header

whole, rounds = Path(sys.argv[1]).read_bytes(), int(sys.argv[2])
memory = os.memfd_create("damaged")
scratch = Path(f"/proc/self/fd/{memory}")
random.seed(20)
extremes = [0, 1, 0x7F, 0x80, 0xFF]
read_header(Path(sys.argv[1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), used + (16 << 20)))
refused = 0
for _ in range(rounds):
    damaged = bytearray(whole)
    for _ in range(random.randint(1, 6)):
        at = random.randrange(len(damaged))
        match random.randrange(5):
            case 0: damaged[at] = random.choice(extremes)
            case 1: damaged[at] ^= 1 << random.randrange(8)
            case 2: damaged[at : at + 8] = random.choice(extremes).to_bytes(1, "little") * 8
            case 3: damaged[at : at] = damaged[at : at + random.randint(1, 32)]
            case 4: del damaged[at : at + random.randint(1, 32)]
    os.ftruncate(memory, 0)
    os.pwrite(memory, damaged, 0)
    try:
        read_header(scratch)
    except ModelError as error:
        assert str(scratch) in str(error), error
        refused += 1
print(refused)
"""


@pytest.fixture
def small(tmp_path):
    """A file with a value of every type, arrays of numbers and strings, and tensors of several types: 1 kB in all."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"):
        getattr(writer, f"add_{kind}")(f"some.{kind}", 7)
    writer.add_bool("some.bool", val=True)
    writer.add_string("some.string", "käse")
    writer.add_array("some.strings", ["a", "", "ccc"])
    writer.add_array("some.floats", [0.5, 1.5])
    writer.add_tensor("vector.weight", np.ones(8, np.float32))
    writer.add_tensor("half.weight", np.ones((2, 3), np.float16))
    writer.add_tensor("quants.weight", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert path.stat().st_size < 1500
    return path


@pytest.mark.slow
def test_damaged_headers_are_read_or_refused_within_their_size(small):
    """A header or a ModelError with the file's name: no other error, no hang, no memory but what the file takes."""
    command = [sys.executable, "-c", PROGRAM, str(small), str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert ROUNDS / 2 < int(done.stdout) < ROUNDS, "some damage is harmless, and most is not"
