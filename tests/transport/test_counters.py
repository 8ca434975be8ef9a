"""A counter is one line of a list and the place that counts: everything else follows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nanobind

from rbee.transport import _native  # noqa: TID251 - the list that it was built from

NATIVE = Path(__file__).parents[2] / "native"
LAST = (
    """    X(std::uint64_t, gc_pause_ns, gc_pause_ns, count, "Time in garbage collections of the server's Python.")\n"""
)
ADDED = '    X(std::uint64_t, toys, toys, count, "Toys.")\n'
PLACE = "        count(arena_.fixed->server.drains);\n"
COUNTED = "        count(arena_.fixed->server.toys, 3);\n"

SHOW = """
import importlib.util, json, os, sys
import rbee.errors
spec = importlib.util.spec_from_file_location("rbee.transport._native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
sys.modules["rbee.transport._native"] = native
spec.loader.exec_module(native)
from rbee.server.link.ends import SequenceEnds
from rbee.server.protocols.metrics import Metrics
from rbee.top.interval import Interval
from rbee.transport import Arena, Consumer, Observer, ServerState, create_doorbell

class Client:
    queued_tokens = 0

class Supervisor:
    client = Client()
    state, leaving, ends, restarts = ServerState.READY, False, SequenceEnds(), {}
    sample = lambda self: now

arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
consumer = Consumer(arena, create_doorbell())
consumer.drain()
with Observer(os.getpid()) as observer:
    before = observer.sample()
    consumer.drain()
    now = observer.sample()
metrics = Metrics(Supervisor(), "m", {}).render("")[0].decode().splitlines()
shown = Interval.between(before, now, 1.0).as_json()
print(json.dumps([
    native.COUNTERS[-1], consumer.counters()["toys"], now.counters["toys"],
    shown["per_second"]["toys"], shown["since_epoch_start"]["toys"],
    [line for line in metrics if "toys" in line],
]))
consumer.close()
arena.unlink()
"""


def replace(path: Path, old: str, new: str) -> None:
    """Exactly one place."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def build_binding(native: Path, target: Path) -> None:
    """The transport's binding of a tree, as fast as a compiler can make it."""
    includes = [native / "include", native / "bindings", nanobind.include_dir(), sysconfig.get_path("include")]
    includes.append(Path(nanobind.source_dir()).parent / "ext" / "robin_map" / "include")
    options = ["-std=c++17", "-O0", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-strict-aliasing"]
    listed = re.search(r"nanobind_add_module\(_native .*?\)", (NATIVE / "CMakeLists.txt").read_text(), re.DOTALL)
    assert listed is not None
    together = native / "together.cpp"  # once through nanobind's headers, which take most of the time
    together.write_text("".join(f'#include "{name}"\n' for name in re.findall(r"\S+\.cpp", listed[0])))
    sources = [together, Path(nanobind.source_dir()) / "nb_combined.cpp"]
    subprocess.run(
        ["c++", *options, *(f"-I{folder}" for folder in includes), *map(str, sources), "-o", str(target)],
        check=True,
        timeout=300,
    )


def test_a_new_counter_costs_two_edits(tmp_path):
    """In a copy of the tree: a line in the list and the place that counts; then all from header to /metrics have it."""
    native = tmp_path / "native"
    for folder in ("include", "bindings"):
        shutil.copytree(NATIVE / folder, native / folder)
    last = LAST.rstrip("\n")
    replace(native / "include/rbee/counters.h", last, last + " \\\n" + ADDED.rstrip("\n"))
    replace(native / "include/rbee/consumer.h", PLACE, PLACE + COUNTED)
    module = tmp_path / "_native.so"
    build_binding(native, module)
    shown = subprocess.run(
        [sys.executable, "-c", SHOW, str(module)], capture_output=True, text=True, timeout=60, check=True
    )
    *numbers, metrics = json.loads(shown.stdout)
    assert numbers == [["toys", "count", "Toys."], 6, 6, 3.0, 6]
    assert metrics == [
        "# HELP rbee:toys_total Toys.", "# TYPE rbee:toys_total counter", 'rbee:toys_total{model_name="m"} 6.0'
    ]  # fmt: skip


def test_every_counter_is_documented():
    """Its name is unique, its kind one of three, its help a sentence."""
    names = [name for name, _, _ in _native.COUNTERS]
    assert len(set(names)) == len(names)
    assert {kind for _, kind, _ in _native.COUNTERS} == {"count", "gauge", "status"}
    assert all(text.endswith(".") for _, _, text in _native.COUNTERS)
    assert {unit for _, unit, _ in _native.HISTOGRAMS} == {"ns", "tokens"}
    assert all(text.endswith(".") for _, _, text in _native.HISTOGRAMS)
