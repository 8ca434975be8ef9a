"""The documentation: links and paths that exist, and a list of modules that is not stale."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.docs import door_table, field_tables, format_table, metrics_table, module_map
from tests.docs.generated_part import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "native/README.md", "benchmarks/README.md")
    ),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:rbee|native|tests|benchmarks|docs|\.ci)/[\w./-]*)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    """One page."""
    path: Path = request.param
    return path


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have on the usual sites."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(page.read_text())}


def test_relative_links_lead_somewhere(page):
    """A link that names no site names a file, and with a fragment one of its headings."""
    for link in LINK.findall(page.read_text()):
        if not re.match(r"[a-z]+:", link):
            name, _, fragment = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not fragment or fragment in anchors(target), link


def test_named_paths_exist(page):
    """A path in backticks that begins with one of the repository's folders is there."""
    missing = [path for path in PATH.findall(page.read_text()) if not (ROOT / path).exists()]
    assert not missing


def test_every_page_is_listed():
    """docs/index.md links every page beside it."""
    linked = LINK.findall((ROOT / "docs" / "index.md").read_text())
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= set(linked)


def test_module_map_is_fresh():
    """If this fails: `python -m tests.docs.module_map` writes it anew."""
    assert module_map.PART.page.read_text() == module_map.PART.filled(module_map.section())


def test_table_of_bounds_is_fresh():
    """It has the code's values. If this fails: `python -m tests.docs.door_table` writes it anew."""
    assert door_table.PART.page.read_text() == door_table.PART.filled(door_table.table())


def test_table_of_formats_is_fresh():
    """It has the names that the options take. If this fails: `python -m tests.docs.format_table` writes it anew."""
    assert format_table.PART.page.read_text() == format_table.PART.filled(format_table.tables())


def test_bounds_are_shown_by_tests_that_exist():
    """A file, or a test in it."""
    for bound in door_table.BOUNDS:
        name, _, test = bound.shown_by.partition("::")
        assert f"def {test}" in (ROOT / "tests" / name).read_text()


@pytest.mark.slow
def test_table_of_metrics_is_fresh():
    """It is what a real server answers. If this fails: `python -m tests.docs.metrics_table` writes it anew."""
    assert metrics_table.PART.page.read_text() == metrics_table.PART.filled(metrics_table.table())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prometheus/alerts.yml", "grafana/rbee.json"])
def test_deployed_files_name_metrics_that_exist(name):
    """Alert rules and dashboard ask for samples that a real server has."""
    samples = {sample.name for family in metrics_table.families() for sample in family.samples}
    named = set(re.findall(r"rbee:\w+", (ROOT / "deploy" / name).read_text()))
    assert named
    assert named <= samples


def test_hooks_run_the_checks_of_make_lint():
    """.pre-commit-config.yaml has the commands of the target `lint`, each from .venv, and nothing to download."""
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    checks = [command.removesuffix(" .").removesuffix(" $(CXX_FILES)") for command in commands]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = [entry.removesuffix(" --force-exclude") for entry in re.findall(r"entry: (.+)", hooks)]
    assert entries == checks
    assert hooks.count("language: system") == len(entries)
    assert re.findall(r"- repo: (.+)", hooks) == ["local"]


@pytest.mark.parametrize("part", field_tables.PAGES, ids=lambda part: str(part.page.name))
def test_table_of_fields_is_not_stale(part):
    """It has the schemas' names. If this fails: `python -m tests.docs.field_tables` writes it anew."""
    assert part.page.read_text() == part.filled(field_tables.table(field_tables.PAGES[part]))
