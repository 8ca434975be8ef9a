"""Break the native core on purpose, one place at a time, and report which of its checks notice.

A program to run by hand after a change of the core or of its tests: `python tests/transport/mutations.py [--all] [part
of a name]`. Each mutation of mutations.toml meets the model check and the unit tests under AddressSanitizer and under
ThreadSanitizer, until one of them notices; with --all every one of them. Exit code 1 if a mutation survives, also if
only the model check misses it although it is a matter of the protocol. test_model_check.py does the model's part in
every test run.
"""
# ruff: noqa: T201 - its output is print

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NATIVE = Path(__file__).resolve().parents[2] / "native"
CMAKE = Path(sys.executable).parent / "cmake"  # of the development requirements
# Each child gets this copy. Without one it reads the C library's environment, which pytest's main thread changes for
# every test while mutations run in threads: then a start fails with EFAULT.
ENVIRONMENT = dict(os.environ)
SIGNS = ("FAILED", "WARNING:", "ERROR:", "runtime error:")


@dataclass(frozen=True)
class Mutation:
    """A way to break one header: `old` becomes `new`."""

    name: str
    header: str
    old: str
    new: str
    by_model: bool = False

    @contextlib.contextmanager
    def applied_to(self, native: Path) -> Iterator[None]:
        """Break this copy of the native directory, and mend it afterwards."""
        header = native / "include" / "rbee" / self.header
        text = header.read_text()
        if text.count(self.old) != 1:
            sys.exit(f"{self.name}: its old text must occur once in {self.header}; adapt it.")
        header.write_text(text.replace(self.old, self.new))
        try:
            yield
        finally:
            header.write_text(text)


@dataclass(frozen=True)
class Check:
    """Programs that may notice, built in their own way; `complaint` runs the first."""

    name: str
    sanitizers: str
    targets: tuple[str, ...]

    @property
    def target(self) -> str:
        """The program that a mutation of the transport is tried with."""
        return self.targets[0]

    def configure(self, native: Path, build: Path) -> None:
        """Prepare `build`."""
        options = ["-DRBEE_BUILD_TESTS=ON", f"-DRBEE_SANITIZE={self.sanitizers}"]
        subprocess.run(
            [CMAKE, "-S", native, "-B", build, *options], check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT
        )

    def build(self, build: Path, *targets: str) -> None:
        """Compile what has changed of these programs, or of all; a mutation that does not compile is an error."""
        targets = targets or self.targets
        command: list[str | Path] = [CMAKE, "--build", build, "--parallel", "2", "--target", *targets]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=ENVIRONMENT
        )
        if done.returncode != 0:
            raise RuntimeError(done.stdout)

    def complaint(self, build: Path, *arguments: str) -> str:
        """The first thing that the program complains about, or nothing; it is not run any further."""
        command: list[str | Path] = [*without_address_randomisation(), build / self.target, *arguments]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
        ) as process:
            assert process.stdout is not None
            hang = threading.Timer(300, process.kill)
            hang.start()
            said = next((line.strip() for line in process.stdout if any(sign in line for sign in SIGNS)), "")
            hang.cancel()
            if said:
                process.kill()
        if said:
            return said
        return f"exit code {process.returncode}" if process.returncode != 0 else ""


MODEL = Check("model", "", ("rbee_model_check",))
ADDRESS = Check("address", "address,undefined", ("rbee_transport_tests", "rbee_kernel_tests", "rbee_model_tests"))
STRESS = Check("stress", "", ("rbee_core_stress",))
THREAD = Check("thread", "thread", ("rbee_transport_tests", "rbee_model_tests"))  # kernels alone have no threads


def without_address_randomisation() -> list[str]:
    """A command prefix, because older ThreadSanitizers stumble over address spaces with much randomness.

    Empty where containers forbid it.
    """
    setarch = shutil.which("setarch")
    if setarch is None:
        return []
    works = subprocess.run([setarch, "-R", "true"], capture_output=True, check=False, env=ENVIRONMENT).returncode == 0
    return [setarch, "-R"] if works else []


def load() -> list[Mutation]:
    """All mutations."""
    return [Mutation(**one) for one in tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["mutation"]]


def noticed_by(native: Path, mutation: Mutation, *, all_checks: bool) -> dict[str, str]:
    """The checks that notice the mutation, and the first thing that each says."""
    noticed = {}
    with mutation.applied_to(native):
        for check in (MODEL, ADDRESS, THREAD):
            build = native.parent / check.name
            if not build.exists():
                check.configure(native, build)
            check.build(build, check.target)
            complaint = check.complaint(build)
            if complaint:
                noticed[check.name] = complaint
                if not all_checks:
                    break
    return noticed


def main() -> int:
    """Try the mutations that the arguments select."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="do not stop at the first check that notices")
    parser.add_argument("wanted", nargs="?", default="", help="part of a mutation's name")
    arguments = parser.parse_args()
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        native = Path(folder, "native")
        shutil.copytree(NATIVE, native)
        for mutation in load():
            if arguments.wanted not in mutation.name:
                continue
            noticed = noticed_by(native, mutation, all_checks=arguments.all)
            survived = not noticed or (mutation.by_model and MODEL.name not in noticed)
            survivors += survived
            print(f"{mutation.name}{': SURVIVED' if survived else ''}", flush=True)
            for name, complaint in noticed.items():
                print(f"    {name}: {complaint}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
