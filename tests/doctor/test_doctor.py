"""`rbee doctor`: the real command on this machine, and findings of machines that are folders of files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import pty
import resource
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest

from rbee import __version__
from rbee.doctor import installation, run
from rbee.doctor.report import examine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rbee.doctor.finding import Finding

COMMAND = [sys.executable, "-m", "rbee.cli", "doctor"]
KEYS = {  # as docs/operating.md has them
    "packages": {"rbee", "python", "torch", "transformers", "uvloop"},
    "native_modules": {
        "rbee.transport._native",
        "rbee.engine._kernels",
        "rbee.models.gguf.tokenizer._merges",
        "rbee.server.text._byte_pairs",
    },
    "instruction_set": {"chosen", "available", "override"},
    "kernel": {"release"},
    "processors": {"online", "affinity", "quota", "control_groups", "threads"},
    "numa": {"nodes", "used"},
    "clock": {"source", "available", "read_ns"},
    "virtualization": {"container", "virtual_machine", "stolen_share"},
    "memory": {"total", "available", "limit"},
    "swap": {"total", "used"},
    "huge_pages": {"private", "shared"},
    "locked_memory": {"soft", "hard"},
    "shared_memory": {"total", "free", "needed", "writable", "filesystem"},
    "file_descriptors": {"soft", "hard", "needed"},
    "model_cache": {"path", "exists", "writable", "size", "free"},
}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What the real command says of this machine."""
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def value(report: dict[str, Any], name: str) -> dict[str, Any]:
    """Of one finding."""
    found: dict[str, Any] = report["findings"][name]["value"]
    return found


def test_every_documented_key_is_there(report):
    """Of the report, of each finding and of each value."""
    assert set(report) == {"version", "can_serve", "findings"}
    assert list(report["findings"]) == list(KEYS)
    for name, finding in report["findings"].items():
        assert set(finding) == {"value", "summary", "status", "advice"}
        assert set(finding["value"]) >= KEYS[name]
        assert finding["summary"]


def test_what_is_not_ok_has_a_sentence(report):
    """And nothing else has one; this machine runs the tests, so a server can run on it."""
    assert report["can_serve"] is True
    for finding in report["findings"].values():
        assert (finding["status"] == "ok") == (finding["advice"] is None)
        assert finding["status"] != "error"


def test_it_says_what_this_machine_is(report):
    """As the system itself tells this process."""
    assert report["version"] == __version__
    assert value(report, "packages")["python"] == platform.python_version()
    assert value(report, "packages")["torch"] == importlib.metadata.version("torch")
    assert value(report, "native_modules") == dict.fromkeys(KEYS["native_modules"])
    assert value(report, "processors")["affinity"] == sorted(os.sched_getaffinity(0))
    assert value(report, "processors")["online"] == os.cpu_count()
    assert value(report, "memory")["total"] == psutil.virtual_memory().total
    assert value(report, "shared_memory")["total"] == shutil.disk_usage("/dev/shm").total
    assert 16 << 20 < value(report, "shared_memory")["needed"] < 32 << 20
    assert value(report, "kernel")["release"] == platform.release()
    descriptors = value(report, "file_descriptors")
    shown = [resource.RLIM_INFINITY if descriptors[key] is None else descriptors[key] for key in ("soft", "hard")]
    assert shown == list(resource.getrlimit(resource.RLIMIT_NOFILE))
    assert value(report, "clock")["read_ns"] > 0
    assert value(report, "instruction_set")["available"][-1] == "portable"


def test_it_imports_no_torch_and_leaves_nothing_behind(tmp_path):
    """Neither a cache folder nor a process; the libraries that would take long are not imported."""
    script = (
        "import sys\nfrom rbee.doctor import run\nrun(as_json=True)\n"
        "assert not {'torch', 'transformers', 'uvicorn', 'huggingface_hub'} & set(sys.modules), 'imported'\n"
        "import psutil\nassert psutil.Process().children() == []\n"
    )
    environment = os.environ | {"RBEE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_the_same_in_lines():
    """Every name, and the verdict in the end."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(COMMAND, stdout=theirs, env=os.environ | {"COLUMNS": "100", "TERM": "dumb"}) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # the end of a terminal
            os.close(ours)
    assert process.returncode == 0
    assert all(name.replace("_", " ") in shown.decode() for name in KEYS)
    assert "A server can run here." in shown.decode()


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Writes a file of /proc, /sys or /dev below a root of its own, where all is well; that root.

    The process may use all six processors.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)))

    def write(path: str, content: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        return tmp_path

    write("proc/sys/kernel/osrelease", "6.1.0-13-amd64\n")
    write("proc/meminfo", "MemTotal: 16384000 kB\nMemAvailable: 8192000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n")
    write("proc/self/cgroup", "0::/\n")
    write("proc/self/limits", limits())
    write("proc/self/mounts", "tmpfs /dev/shm tmpfs rw 0 0\n")
    write("proc/stat", "cpu  100 0 100 800 0 0 0 10 0 0\n")
    write("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu avx2\n")
    write("sys/devices/system/cpu/online", "0-5\n")
    write("sys/devices/system/node/node0/cpulist", "0-3,4-5\n")
    write(CLOCKSOURCE, "tsc\n")
    write("sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet acpi_pm\n")
    write(HUGE_PAGES, "always [madvise] never\n")
    write("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always within_size advise [never] deny force\n")
    (tmp_path / "dev/shm").mkdir(parents=True)
    return write


CLOCKSOURCE = "sys/devices/system/clocksource/clocksource0/current_clocksource"
HUGE_PAGES = "sys/kernel/mm/transparent_hugepage/enabled"


def limits(files: str = "1024 524288", locked: str = "8388608 8388608") -> str:
    """/proc/self/limits."""
    return (
        "Limit                     Soft Limit           Hard Limit           Units\n"
        f"Max open files            {files} files\nMax locked memory         {locked} bytes\n"
    )


def found(root: Path, name: str) -> Finding:
    """One finding, which is plain JSON."""
    finding = examine(root).findings[name]
    assert json.loads(msgspec.json.encode(finding.value)) == finding.value
    return finding


def test_a_machine_where_all_is_well(system):
    """There is nothing to say."""
    report = examine(system("proc/uptime", "1 1\n"))
    assert report.can_serve
    machine = set(KEYS) - {"packages", "native_modules", "instruction_set", "model_cache"}
    assert {name: report.findings[name].advice for name in machine} == dict.fromkeys(machine)


@pytest.mark.parametrize(
    ("name", "path", "content", "expected"),
    [
        ("kernel", "proc/sys/kernel/osrelease", "5.2.9", ("error", "pidfd")),
        ("kernel", "proc/sys/kernel/osrelease", "5.10.0-28", ("note", "5.14")),
        ("kernel", "proc/sys/kernel/osrelease", "", ("error", "Linux only")),
        ("processors", "sys/fs/cgroup/cpu.max", "50000 100000", ("warning", "gives 0.5 processors")),
        ("processors", "sys/fs/cgroup/cpu.max", "150000 100000", ("note", "--busy-poll")),
        ("processors", "sys/fs/cgroup/cpu.max", "200000 100000", ("note", "quota")),
        ("processors", "sys/devices/system/cpu/online", "0-4095", ("note", "affinity")),
        ("clock", CLOCKSOURCE, "hpet", ("warning", "clocksource=tsc")),
        ("numa", "sys/devices/system/node/node1/cpulist", "0-4095", ("note", "numactl --cpunodebind=0")),
        ("virtualization", "proc/stat", "cpu  100 0 100 700 0 0 0 100 0 0", ("warning", "hypervisor")),
        ("memory", "proc/meminfo", "MemTotal: 4096000 kB\nMemAvailable: 500000 kB", ("warning", "smaller model")),
        ("memory", "sys/fs/cgroup/memory.max", str(4 << 30), ("note", "control group")),
        ("memory", "sys/fs/cgroup/memory.max", str(512 << 20), ("warning", "--memory")),
        ("swap", "proc/meminfo", "SwapTotal: 1000 kB\nSwapFree: 400 kB", ("note", "swapoff")),
        ("huge_pages", HUGE_PAGES, "always madvise [never]", ("warning", "echo madvise")),
        ("shared_memory", "proc/self/mounts", "/dev/sda /dev/shm ext4 rw 0 0", ("warning", "no tmpfs")),
        ("file_descriptors", "proc/self/limits", limits("256 1000"), ("warning", "--max-requests 896.")),
        ("file_descriptors", "proc/self/limits", limits("100 100"), ("error", "ulimit -Hn")),
    ],
)
def test_what_limits_a_machine(system, name, path, content, expected):
    """It is named, with its effect and the remedy."""
    system("sys/fs/cgroup/memory.current", "0")
    finding = found(system(path, content + "\n"), name)
    status, words = expected
    assert (finding.status, words in (finding.advice or "")) == (status, True), finding


@pytest.mark.parametrize("quota", ["max 100000", "6400000 100000"])
def test_a_quota_that_is_none(system, quota):
    """As large as the machine, or no limit at all."""
    assert found(system("sys/fs/cgroup/cpu.max", quota), "processors").status == "ok"


def test_control_groups_of_both_versions(system):
    """The quota and the limit come from where the process is; the version is told."""
    system("sys/fs/cgroup/cpu.max", "50000 100000")
    second = found(system("sys/fs/cgroup/memory.max", "max"), "processors").value
    assert (second["quota"], second["control_groups"], second["threads"]) == (0.5, [2], 1)
    system("proc/self/cgroup", "5:cpu,cpuacct:/a\n3:memory:/a\n")
    system("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000")
    system("sys/fs/cgroup/memory/a/memory.limit_in_bytes", str(3 << 30))
    root = system("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "75000")
    first = found(root, "processors").value
    assert (first["quota"], first["control_groups"], first["threads"]) == (0.75, [1], 1)
    assert found(root, "memory").value["limit"] == 3 << 30


def test_limits_of_the_process(system):
    """Little lockable memory costs nothing, because rbee locks none; unlimited is null."""
    root = system("proc/self/limits", limits("unlimited unlimited", "65536 65536"))
    locked = found(root, "locked_memory")
    assert (locked.status, locked.value) == ("ok", {"soft": 65536, "hard": 65536})
    assert found(root, "file_descriptors").value["hard"] is None


def test_no_swap_is_fine(system):
    """It is said, and that is all."""
    finding = found(system("proc/uptime", "1 1\n"), "swap")
    assert (finding.status, finding.summary, finding.value) == ("ok", "none", {"total": 0, "used": 0})


@pytest.mark.parametrize(
    ("files", "variables", "container"),
    [
        ([], {}, None),
        ([".dockerenv"], {}, "docker"),
        (["run/.containerenv"], {}, "podman"),
        ([".dockerenv"], {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ([], {"container": "lxc"}, "lxc"),
    ],
)
def test_signs_of_a_container(system, monkeypatch, files, variables, container):
    """Of the usual kinds; a hypervisor shows in the processor's flags."""
    for name in ("KUBERNETES_SERVICE_HOST", "container"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    for name in files:
        system(name, "")
    finding = found(system("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu hypervisor avx2\n"), "virtualization")
    assert (finding.value["container"], finding.value["virtual_machine"]) == (container, True)


def test_no_shared_memory(system):
    """No server can run."""
    root = system("proc/uptime", "1 1\n")
    (root / "dev/shm").rmdir()
    report = examine(root)
    assert not report.can_serve
    assert "mount -t tmpfs" in (report.findings["shared_memory"].advice or "")


def test_a_root_without_files(tmp_path):
    """Nothing is raised, whatever cannot be read."""
    report = examine(tmp_path)
    assert set(report.findings) == set(KEYS)
    assert not report.can_serve


@pytest.mark.parametrize(
    ("wanted", "status", "words"),
    [("portable", "warning", "vector"), ("sse9", "error", "'sse9'"), (None, "ok", "")],
)
def test_instruction_set_of_the_environment(monkeypatch, wanted, status, words):
    """It counts as it does for the engine; one that there is not is an error."""
    monkeypatch.delenv("RBEE_INSTRUCTION_SET", raising=False)
    best = installation.instruction_set().value["chosen"]
    if wanted is not None:
        monkeypatch.setenv("RBEE_INSTRUCTION_SET", wanted)
    finding = installation.instruction_set()
    assert finding.value["override"] == wanted
    assert words in (finding.advice or "")
    if best != "portable":
        assert finding.status == status


def test_native_module_that_does_not_load(tmp_path):
    """The report is made all the same, by the command, which ends with exit code 2 and the reason."""
    script = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('rbee.transport._native', 'rbee.engine._kernels'):\n"
        "            raise ImportError('undefined symbol: _Z3foo')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "sys.argv = ['rbee', 'doctor', *sys.argv[1:]]\n"
        "from rbee.cli import main\nmain()\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, cwd=tmp_path)
    parsed = json.loads(done.stdout)
    assert (done.returncode, parsed["can_serve"], done.stderr) == (2, False, "")
    assert "undefined symbol" in parsed["findings"]["native_modules"]["advice"]
    assert parsed["findings"]["shared_memory"]["value"]["needed"] is None
    plain = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "No server can run here: native modules, instruction set." in plain.stdout


@pytest.mark.parametrize("missing", ["uvloop", "torch"])
def test_package_that_is_missing(monkeypatch, missing):
    """Without one of the server's nothing runs; without torch the native runner does."""
    version = importlib.metadata.version

    def version_of(name: str) -> str:
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    finding = installation.packages()
    assert finding.value[missing] is None
    assert (finding.status, missing in (finding.advice or "")) == ("error" if missing == "uvloop" else "warning", True)


def test_model_cache(monkeypatch, tmp_path):
    """Its folder need not exist; what it holds is added up."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "not" / "yet"))
    finding = installation.model_cache()
    assert (finding.value["exists"], finding.value["writable"], finding.value["size"]) == (False, True, 0)
    (tmp_path / "not" / "yet" / "model").mkdir(parents=True)
    (tmp_path / "not" / "yet" / "model" / "weights").write_bytes(b"12345")
    assert installation.model_cache().value["size"] == 5
    assert installation.model_cache().value["exists"] is True


def test_model_cache_that_cannot_be(monkeypatch, tmp_path):
    """A file where the folder would be, or no home folder."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "file" / "cache"))
    finding = installation.model_cache()
    assert (finding.status, "RBEE_CACHE" in (finding.advice or "")) == ("warning", True)
    monkeypatch.setenv("RBEE_CACHE", "~no-such-user/cache")
    finding = installation.model_cache()
    assert (finding.status, finding.value["path"]) == ("warning", None)
    assert "There is no home folder" in (finding.advice or "")


def test_exit_code(monkeypatch, capsys):
    """0 if a server can run, 2 if not."""
    monkeypatch.delenv("RBEE_INSTRUCTION_SET", raising=False)
    assert run(as_json=True) == 0
    monkeypatch.setenv("RBEE_INSTRUCTION_SET", "sse9")
    assert run(as_json=False) == 2
    assert "No server can run here: instruction set." in capsys.readouterr().out
