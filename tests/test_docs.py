"""The pages refer to things that exist: files, headings, tests, and the entries of the source."""

import re
from pathlib import Path

import pytest
from helpers import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "recipes/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:src|tests|docs|recipes|benchmarks)/[\w./-]+\.(?:py|md|yaml|sh|csv|svg))`")
TEST = re.compile(r"`(test_\w+)…?`")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=name_of)
def test_files_that_a_page_names_exist(page):
    """Entries of the log keep the names of their day."""
    for named in NAMED.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / named).exists(), named


def test_the_tests_that_stand_behind_a_promise_exist():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    missing = [name for name in TEST.findall(page) if f"def {name}" not in sources]
    assert not missing


def test_the_readme_maps_every_entry_of_the_source():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    entries = [path for path in (ROOT / "src/estune").iterdir() if path.name != "__pycache__"]
    for entry in entries:
        name = f"{entry.name}/" if entry.is_dir() else entry.name
        assert f"| `{name}` |" in readme, name


def test_the_site_has_every_page_within_one_click_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name})" in readme, page.name
