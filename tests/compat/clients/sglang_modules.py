"""Runs `sglang.benchmark.serving` from SGLang's wheel, without what else SGLang imports: torch and CUDA.

Owns the stand-ins for its packages, and for the one constant that the benchmark takes of them. All modules of
`sglang.benchmark`, and `sglang.srt.utils.network`, are SGLang's own.
"""

from __future__ import annotations

import importlib.metadata
import runpy
import sys
from pathlib import Path
from types import ModuleType

_FILES = Path(str(importlib.metadata.distribution("sglang").locate_file("sglang")))


def _stand_in(name: str, **members: object) -> None:
    """A module of this name, whose own submodules are SGLang's."""
    module = ModuleType(name)
    module.__path__ = [str(_FILES.joinpath(*name.split(".")[1:]))]
    module.__dict__.update(members)
    sys.modules[name] = module


if __name__ == "__main__":
    _stand_in("sglang")
    _stand_in("sglang.srt.utils")
    _stand_in("sglang.srt.disaggregation.utils", FAKE_BOOTSTRAP_HOST="2.2.2.2")
    runpy.run_module("sglang.benchmark.serving", run_name="__main__", alter_sys=True)
