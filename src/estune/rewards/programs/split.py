"""Find out whether a test can run in another process than the program, and prepare it for that.

`assert f(2) == 4` runs in a process of the test's own, where `f` stands for the program's function
and calls it in the program's process (driver.py). So the program never sees the 4. A test whose
verdict only the program's process can give is not split: one that needs the program's own classes
for more than making objects, or that no name in it calls the program.
"""

import ast
import builtins
import re
import symtable
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import lru_cache

_NAN = re.compile(r"\b(is)?nan\b", re.IGNORECASE)
_DEFINED = re.compile(r"^(?:def|class) +(\w+)|^(\w+) *=(?!=)", re.MULTILINE)
_BUILTINS = frozenset(vars(builtins)) | {"__name__"}
# Modules whose values can be handed back, or that have none of their own.
_MODULES = frozenset(
    """
    bisect collections copy decimal fractions functools heapq itertools math operator random re
    string sys time typing
    """.split()
)


@dataclass(frozen=True)
class Split:
    """A test that runs apart from the program.

    source: the test; a call outside an assert shows in it what it changed.
    names: those of the program's functions and classes that it uses.
    definitions: its imports and classes, which the program may use.
    nan: whether it names nan, which otherwise fails any test.
    """

    source: str
    names: tuple[str, ...]
    definitions: str
    nan: bool


@lru_cache(maxsize=4096)  # all members get the same tests
def split(test: str, redefined: frozenset[str] = frozenset()) -> Split | None:
    """Return `test` as it runs apart from the program, or None if it cannot.

    redefined: names of Python's functions that the program gives to its own. They count as the
    program's only if a test calls nothing else of it, as in `assert sum(10, 15) == 6`, so that a
    program gains nothing by redefining `abs`.
    """
    try:
        tree = ast.parse(test)
        names = (
            _free_names(test) - _BUILTINS
            or _innermost(tree, redefined)
            or _innermost(tree, _BUILTINS)
        )
        if not names or not _can_judge(tree, names):
            return None
        kept: list[ast.stmt] = [each for each in tree.body if isinstance(each, _DEFINITIONS)]
        definitions = ast.unparse(ast.Module(kept, []))
        source = ast.unparse(ast.fix_missing_locations(_CallsOutsideAsserts().visit(tree)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return Split(source, tuple(sorted(names)), definitions, bool(_NAN.search(test)))


def redefinitions(program: str) -> frozenset[str]:
    """Return the names of Python's own functions that `program` seems to define itself."""
    names = {name for pair in _DEFINED.findall(program) for name in pair if name}
    return _BUILTINS & names


_IMPORTS = (ast.Import, ast.ImportFrom)
_DEFINITIONS = (*_IMPORTS, ast.ClassDef)


def _free_names(test: str) -> frozenset[str]:
    """Return the names that `test` uses and does not define."""
    top = symtable.symtable(test, "test.py", "exec")
    defined = {
        each.get_name()
        for each in top.get_symbols()
        if each.is_assigned() or each.is_imported() or each.is_namespace()
    }
    used = {
        each.get_name()
        for table in _tables(top)
        for each in table.get_symbols()
        if each.is_referenced() and (table is top or each.is_global())
    }
    return frozenset(used - defined)


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _innermost(tree: ast.AST, known: Set[str]) -> frozenset[str]:
    """Return those of `known` that are called with none of `known` in their arguments."""

    def called(node: ast.AST) -> Set[str]:
        return known & {_called(each) for each in ast.walk(node)}

    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call)]
    return frozenset(known & {_called(one) for one in calls if not any(map(called, one.args))})


def _called(node: ast.AST) -> str:
    """Return the name of the function that `node` calls; "" if it is no call of a name."""
    callee = node.func if isinstance(node, ast.Call) else None
    return callee.id if isinstance(callee, ast.Name) else ""


def _can_judge(tree: ast.Module, names: Set[str]) -> bool:
    """Return whether the test's own process can give the verdict."""
    nodes = list(ast.walk(tree))
    modules = [name for each in nodes if isinstance(each, _IMPORTS) for name in _modules(each)]
    callees = {id(each.func) for each in nodes if isinstance(each, ast.Call)}
    return (
        any(isinstance(each, ast.Assert) for each in nodes)
        and _MODULES.issuperset(modules)
        and not _reads_own_objects(tree, names)
        and not any(_uses_class(each, names, callees) for each in nodes)
    )


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [each.name for each in node.names]
    if isinstance(node, ast.ImportFrom):
        names = names if "*" in names else [node.module or ""]
    return [name.partition(".")[0] for name in names]


def _reads_own_objects(tree: ast.Module, names: Set[str]) -> bool:
    """Return whether the test looks into objects of its own classes, which a program may change."""
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef)]
    rest = [each for each in tree.body if each not in classes]
    nodes = [node for each in rest for node in ast.walk(each) if isinstance(node, ast.Attribute)]
    read = [node for node in nodes if isinstance(node.ctx, ast.Load)]
    return bool(classes) and any(_root(node) not in names for node in read)


def _root(node: ast.expr) -> str:
    """Return the name with which a chain of attributes, calls and items begins."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _uses_class(node: ast.AST, names: Set[str], callees: Set[int]) -> bool:
    """Return whether a class of the program's, whose name has a capital, is more than called.

    Comparing with an object of such a class is more: the class decides what equals it.
    """
    if isinstance(node, ast.Compare):
        made = names & {_called(each) for each in (node.left, *node.comparators)}
        return any(name[0].isupper() for name in made)
    if not isinstance(node, ast.Name) or id(node) in callees:
        return False
    return node.id in names and node.id[0].isupper()


class _CallsOutsideAsserts(ast.NodeTransformer):
    """Lets a test see what the program changed in the arguments of a call outside an assert."""

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        call = self.generic_visit(node)
        assert isinstance(call, ast.Call)
        call.func = ast.Call(ast.Name("_changing", ast.Load()), [call.func], [])
        return call
