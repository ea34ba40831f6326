"""The source keeps its structure: few entries, imports that run down, and short files."""

import ast
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "estune"

# From the ground up: a room imports only rooms before it. `estune` itself comes last.
FLOORS = [
    *("errors", "common", "config", "noise", "strategy", "theta", "engines", "workers", "rewards"),
    *("tasks", "monitor", "run", "trainer", "evaluation", "cli", "__main__"),
]


def modules():
    """Every module's path, and the names of the modules of ours that it imports."""
    paths = sorted(SOURCE.rglob("*.py"))
    return [(path, sorted(imported(path))) for path in paths if path != SOURCE / "__init__.py"]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("estune."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("estune."):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def floor(name):
    return FLOORS.index(name.removesuffix(".py"))


def test_the_source_has_at_most_eighteen_entries():
    entries = [path.name for path in SOURCE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 18, sorted(entries)
    assert {name.removesuffix(".py") for name in entries} == {*FLOORS, "__init__", "py.typed"}


def test_imports_run_down():
    up = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path, names in modules()
        for name in names
        if floor(name.split(".")[1]) > floor(path.relative_to(SOURCE).parts[0])
    ]
    assert not up


def test_no_file_has_more_than_400_lines():
    paths = [
        path
        for folder in ("src", "tests", "benchmarks")
        for path in (SOURCE.parents[1] / folder).rglob("*.py")
    ]
    long = {
        path.name: count
        for path in paths
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def test_no_two_classes_share_a_name():
    found = defaultdict(list)
    for path, _ in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(SOURCE)))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}


def test_no_test_imports_another_test_or_conftest():
    tests = sorted((SOURCE.parents[1] / "tests").rglob("*.py"))
    wrong = [
        f"{path.relative_to(SOURCE.parents[1])} imports {name}"
        for path in tests
        for name in imported_modules(path)
        if name.startswith("test_") or name == "conftest"
    ]
    assert not wrong


def imported_modules(path):
    """The names of all modules that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
