"""Decide whether a test can run in another process than the program, and prepare it for that.

`assert f(2) == 4` runs in a process of its own, where `f` stands for the program's function and
calls it in the program's process (remote_calls.py). So the program never sees the 4. Some tests
cannot be split, for example if they use classes of the program for more than creating objects, or
if they seem not to call the program at all.
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
# Modules that a split test may import: values of their classes can be sent between the processes,
# or they have no classes that matter.
_MODULES = frozenset(
    """
    bisect collections copy decimal fractions functools heapq itertools math operator random re
    string sys time typing
    """.split()
)


@dataclass(frozen=True)
class Split:
    """A test that runs apart from the program.

    source: the test, with `_update_arguments` around the functions that it calls outside asserts.
    names: the names of the program's functions and classes that the test uses.
    definitions: the imports and classes of the test, which the program may use.
    nan: whether the test mentions nan. If not, a nan from the program fails the test.
    """

    source: str
    names: tuple[str, ...]
    definitions: str
    nan: bool


@lru_cache(maxsize=4096)  # all members get the same tests
def split(test: str, redefined: frozenset[str] = frozenset()) -> Split | None:
    """Return `test` prepared to run apart from the program, or None if it cannot be split.

    redefined: names of builtins that the program redefines. In a test such as
        `assert abs(f(1)) == 2` they still mean Python's own function, so that a program cannot
        cheat by redefining `abs`. They mean the program's function only if the test calls nothing
        else of the program, as in `assert sum(10, 15) == 6`.
    """
    try:
        tree = ast.parse(test)
        names = (
            _free_names(test) - _BUILTINS
            or _innermost_called(tree, redefined)
            or _innermost_called(tree, _BUILTINS)
        )
        if not names or not _can_run_apart(tree, names):
            return None
        defining: list[ast.stmt] = [each for each in tree.body if isinstance(each, _DEFINITIONS)]
        definitions = ast.unparse(ast.Module(defining, []))
        source = ast.unparse(ast.fix_missing_locations(_CallsOutsideAsserts().visit(tree)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return Split(source, tuple(sorted(names)), definitions, bool(_NAN.search(test)))


def redefinitions(program: str) -> frozenset[str]:
    """Return the names of builtins that `program` seems to redefine."""
    names = {name for pair in _DEFINED.findall(program) for name in pair if name}
    return _BUILTINS & names


_IMPORTS = (ast.Import, ast.ImportFrom)
_DEFINITIONS = (*_IMPORTS, ast.ClassDef)


def _free_names(test: str) -> frozenset[str]:
    """Return the names that `test` uses without defining them."""
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


def _innermost_called(tree: ast.AST, names: Set[str]) -> frozenset[str]:
    """Return those of `names` that a test calls with arguments that call none of `names`.

    In `assert abs(sum(1, 2)) == 3` it is `sum`, if both are in `names`.
    """

    def calls_in(node: ast.AST) -> Set[str]:
        return names & {_called_name(each) for each in ast.walk(node)}

    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call)]
    innermost = [call for call in calls if not any(map(calls_in, call.args))]
    return frozenset(names & set(map(_called_name, innermost)))


def _called_name(node: ast.AST) -> str:
    """Return the name of the function that `node` calls; "" if `node` is not a call of a name."""
    callee = node.func if isinstance(node, ast.Call) else None
    return callee.id if isinstance(callee, ast.Name) else ""


def _can_run_apart(tree: ast.Module, names: Set[str]) -> bool:
    """Return whether the test can run apart from the program, which defines `names`."""
    nodes = list(ast.walk(tree))
    modules = [name for each in nodes if isinstance(each, _IMPORTS) for name in _modules(each)]
    callees = {id(each.func) for each in nodes if isinstance(each, ast.Call)}
    return (
        any(isinstance(each, ast.Assert) for each in nodes)
        and _MODULES.issuperset(modules)
        and not _reads_own_objects(tree, names)
        and not any(_uses_program_class(each, names, callees) for each in nodes)
    )


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [each.name for each in node.names]
    if isinstance(node, ast.ImportFrom):
        names = names if "*" in names else [node.module or ""]
    return [name.partition(".")[0] for name in names]


def _reads_own_objects(tree: ast.Module, names: Set[str]) -> bool:
    """Return whether the test may read attributes of objects of its own classes.

    The program could have changed them, but only its own copies, in its process.
    """
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef)]
    rest = [each for each in tree.body if each not in classes]
    nodes = [node for each in rest for node in ast.walk(each) if isinstance(node, ast.Attribute)]
    read = [node for node in nodes if isinstance(node.ctx, ast.Load)]
    return bool(classes) and any(_root(node) not in names for node in read)


def _root(node: ast.expr) -> str:
    """Return the first name in a chain such as `name.attribute[item](argument)`, or ""."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _uses_program_class(node: ast.AST, names: Set[str], callees: Set[int]) -> bool:
    """Return whether `node` uses a class of the program for more than creating an object.

    A name that begins with a capital is taken for a class. To compare with a new object is such a
    use, because the class decides what is equal to its objects.

    callees: ids of the nodes that are called.
    """
    if isinstance(node, ast.Compare):
        created = names & {_called_name(each) for each in (node.left, *node.comparators)}
        return any(name[0].isupper() for name in created)
    if not isinstance(node, ast.Name) or id(node) in callees:
        return False
    return node.id in names and node.id[0].isupper()


class _CallsOutsideAsserts(ast.NodeTransformer):
    """Puts `_update_arguments` around each function that a test calls outside asserts.

    Such a call may be there to change its arguments, and the test then checks the changes. A call
    in an assert is there for its value, so the arguments stay as the test wrote them.
    """

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        call = self.generic_visit(node)
        assert isinstance(call, ast.Call)
        call.func = ast.Call(ast.Name("_update_arguments", ast.Load()), [call.func], [])
        return call
