"""Break the native core on purpose, one place at a time, and report whether its unit tests notice.

A program to run by hand after a change of the core or of its tests: `python tests/transport/mutations.py [part of a
name]`. Each mutation of mutations.toml is built under AddressSanitizer, and under ThreadSanitizer if that noticed
nothing. Exit code 1 if a mutation survives both although it should be seen.
"""
# ruff: noqa: T201 - its output is print

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[2] / "native"
SANITIZERS = ("address,undefined", "thread")
SIGNS = ("FAILED", "WARNING:", "ERROR:", "runtime error:")


def noticed_by(native: Path) -> str:
    """The sanitizer under which the tests of this copy fail and the first thing they say, or an empty string."""
    for sanitizer in SANITIZERS:
        build = native.parent / sanitizer
        configure = ["cmake", "-S", native, "-B", build, "-DRBEE_BUILD_TESTS=ON", f"-DRBEE_SANITIZE={sanitizer}"]
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cmake", "--build", build, "-j2"], check=True, stdout=subprocess.DEVNULL)
        for _ in range(2):  # the threads take turns differently each time
            try:
                tests = subprocess.run(
                    [build / "rbee_core_tests"], capture_output=True, text=True, timeout=120, check=False
                )
            except subprocess.TimeoutExpired:
                return f"{sanitizer}: hangs"
            if tests.returncode != 0:
                lines = (tests.stdout + tests.stderr).splitlines()
                said = [line.strip() for line in lines if any(sign in line for sign in SIGNS)]
                return f"{sanitizer}: {said[0] if said else f'exit code {tests.returncode}'}"
    return ""


def main() -> int:
    """Try the mutations whose name contains the first argument, or all."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    mutations = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["mutation"]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        native = Path(folder, "native")
        shutil.copytree(NATIVE, native)
        for mutation in mutations:
            if wanted not in mutation["name"]:
                continue
            header = native / "include" / "rbee" / mutation["header"]
            text = header.read_text()
            if text.count(mutation["old"]) != 1:
                sys.exit(f"{mutation['name']}: its old text must occur once in {mutation['header']}; adapt it.")
            header.write_text(text.replace(mutation["old"], mutation["new"]))
            noticed = noticed_by(native)
            header.write_text(text)
            invisible = mutation.get("invisible", False)
            survivors += not noticed and not invisible
            print(f"{mutation['name']}: {noticed or ('invisible' if invisible else 'SURVIVED')}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
