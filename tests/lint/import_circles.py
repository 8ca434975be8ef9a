"""Look for circles of imports in rbee/ and benchmarks/, and of includes in native/.

`make lint` runs `python tests/lint/import_circles.py`. Exit code 1 if there is a circle, and a line per group of files
that need each other. An import inside a function or under TYPE_CHECKING counts like any other. Files are read, not
imported or compiled. import-linter's contracts say which layer may import which; they do not see circles in a layer.
"""
# ruff: noqa: T201 - its output is print

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Graph = dict[str, set[str]]


def python_imports(folder: Path, *, package: str = "") -> Graph:
    """Which module imports which, of the Python files below `folder`.

    Args:
        folder: its subfolders are packages.
        package: the dotted name of `folder`; empty if its files are programs that find each other by name alone.
    """
    modules: dict[str, ast.Module] = {}
    names_of_packages: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(([package] if package else []) + [part for part in parts if part != "__init__"])
        modules[name] = ast.parse(path.read_text(encoding="utf-8"))
        if path.name == "__init__.py":
            names_of_packages[name] = top_level_names(modules[name])
    graph: Graph = {}
    for name, tree in modules.items():
        wanted: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                # `from package import name` needs the package if that defines the name, and else only the module.
                defined = names_of_packages.get(node.module)
                wanted |= {
                    node.module if defined is None or alias.name in defined else f"{node.module}.{alias.name}"
                    for alias in node.names
                }
        graph[name] = {other for other in wanted if other in modules and other != name}
    return graph


def top_level_names(tree: ast.Module) -> set[str]:
    """What a module's own statements define or import; the modules of a package are not among them."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom() | ast.Import():
                names |= {alias.asname or alias.name for alias in node.names}
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
    return names


def includes(folder: Path) -> Graph:
    """Which C++ file includes which, below `folder`.

    A name in quotes means the file at that path beside the including one; if there is none, every file whose path ends
    with the name, because the include folders are not known here.
    """
    names = {path: path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in {".h", ".cpp"}}
    graph: Graph = {}
    for path, name in names.items():
        graph[name] = set()
        for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            if path.parent / included in names:
                graph[name].add(names[path.parent / included])
            else:
                graph[name] |= {other for other in names.values() if f"/{other}".endswith(f"/{included}")}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """The groups of nodes that reach each other (strongly connected components, by Tarjan's algorithm), sorted."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        path.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in path:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            at = path.index(node)
            group = sorted(path[at:])
            del path[at:]
            if len(group) > 1 or node in graph[node]:
                found.append(group)

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return sorted(found)


def main() -> int:
    """Check this repository."""
    graphs = {
        "rbee": python_imports(ROOT / "rbee", package="rbee"),
        "benchmarks": python_imports(ROOT / "benchmarks"),
        "native": includes(ROOT / "native"),
    }
    for folder, graph in graphs.items():
        for group in circles(graph):
            print(f"circle in {folder}/: {', '.join(group)}")
        print(f"{folder}/: {len(graph)} files")
    return 1 if any(circles(graph) for graph in graphs.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
