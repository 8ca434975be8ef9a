"""The lint check that finds circles of imports and includes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lint.import_circles import circles, includes, python_imports

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, files: dict[str, str]) -> Path:
    """Make these files below `folder`."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    "closing",
    [
        "import pack.a",
        "from pack.a import thing",
        "from pack import a",
        "def late():\n    import pack.a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack.a import Thing",
    ],
)
def test_a_circle_of_modules_is_found(tmp_path: Path, closing: str) -> None:
    """However the last import of the circle is written; the module that only uses the circle is not part of it."""
    files = {
        "__init__.py": "",
        "a.py": "from pack.b import x",
        "b.py": "import pack.inner.c",
        "inner/__init__.py": "",
        "inner/c.py": closing,
        "user.py": "from pack import a\nimport os",
    }
    graph = python_imports(write(tmp_path, files), package="pack")
    assert circles(graph) == [["pack.a", "pack.b", "pack.inner.c"]]


def test_a_package_that_imports_from_a_part_that_imports_from_it_is_a_circle(tmp_path: Path) -> None:
    """Names that a package's __init__ defines or passes on need the package itself."""
    files = {"__init__.py": "from pack.a import A", "a.py": "from pack import A"}
    assert circles(python_imports(write(tmp_path, files), package="pack")) == [["pack", "pack.a"]]


def test_modules_of_one_package_that_only_go_down_are_no_circle(tmp_path: Path) -> None:
    """`from package import module` needs the module and not what else the package's __init__ imports."""
    files = {"__init__.py": "from pack.a import A", "a.py": "from pack import b", "b.py": "import json"}
    assert circles(python_imports(write(tmp_path, files), package="pack")) == []


def test_programs_import_each_other_by_name(tmp_path: Path) -> None:
    """In a folder that is no package."""
    files = {"bench_a.py": "import parts", "parts.py": "from bench_a import x", "bench_b.py": "import parts"}
    assert circles(python_imports(write(tmp_path, files))) == [["bench_a", "parts"]]


def test_a_circle_of_headers_is_found(tmp_path: Path) -> None:
    """By the path in quotes, whether that begins beside the file or in an include folder."""
    files = {
        "include/rbee/a.h": '#include "rbee/b.h"\n#include <vector>',
        "include/rbee/b.h": '  #  include "a.h"',
        "tests/test.cpp": '#include "rbee/a.h"',
    }
    assert circles(includes(write(tmp_path, files))) == [["include/rbee/a.h", "include/rbee/b.h"]]


def test_a_file_that_includes_itself_is_a_circle(tmp_path: Path) -> None:
    """The shortest one."""
    assert circles(includes(write(tmp_path, {"a.h": '#include "a.h"'}))) == [["a.h"]]
