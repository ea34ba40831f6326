"""Compute a test's expressions in this process, over what a program handed back, without `eval`.

`compiled` turns an expression, apart from what the program computes, into a function. An expression
of a kind that is not handled below is Unsplittable. Sizes and operations are limited, because the
program chooses the values and nothing here can be killed.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Protocol

from estune.rewards.programs.bounded_functions import BINARY, FUNCTIONS, METHODS, OWNERS, joined
from estune.rewards.programs.exceptions import Failed, Unsplittable

_OPERATIONS = 200_000


@dataclass
class ProgramRun:
    """One evaluation: the program's values, the comprehensions' variables, the operations left."""

    handed_back: Sequence[Any]
    variables: dict[str, Any] = field(default_factory=dict)
    operations: int = _OPERATIONS

    def spend(self) -> None:
        """Count one operation. Raises Failed when there were too many."""
        self.operations -= 1
        if self.operations < 0:
            raise Failed("the comparison takes too many operations")


Compute = Callable[[ProgramRun], Any]


class Scope(Protocol):
    """What the names in a test mean."""

    def known(self, name: str) -> Compute | None:
        """Return how to compute a name, or None if it means nothing here."""

    def module(self, name: str) -> Mapping[str, Any] | None:
        """Return what can be used here of a module that the test imported as `name`."""

    def handed_back(self, node: ast.expr) -> Compute | None:
        """Return how to get `node` from the program's process; None if that is not needed."""

    def local(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Return a context in which `names` are variables of a comprehension or lambda."""


def compiled(node: ast.expr, scope: Scope) -> Compute:
    """Return how to compute `node`. Raises Unsplittable."""
    if (handed_back := scope.handed_back(node)) is not None:
        compute = handed_back
    elif type(node) in _MAKERS:
        compute = _MAKERS[type(node)](node, scope)
    else:
        raise Unsplittable(type(node).__name__)

    def counted(run: ProgramRun) -> Any:
        run.spend()
        return compute(run)

    return counted


def _constant(node: ast.Constant, scope: Scope) -> Compute:
    return lambda run: node.value


def _name(node: ast.Name, scope: Scope) -> Compute:
    found = scope.known(node.id)
    if found is not None:
        return found
    if node.id in FUNCTIONS:
        return lambda run: FUNCTIONS[node.id]
    raise Unsplittable(node.id)


def _several(nodes: Sequence[ast.expr | None], scope: Scope) -> Callable[[ProgramRun], list[Any]]:
    computes = [compiled(node, scope) for node in nodes if node is not None]
    if len(computes) < len(nodes):
        raise Unsplittable("**")
    return lambda run: [compute(run) for compute in computes]


def _collection(kind: Callable[[list[Any]], Any]) -> Callable[[Any, Scope], Compute]:
    def make(node: ast.List | ast.Tuple | ast.Set, scope: Scope) -> Compute:
        parts = _several(node.elts, scope)
        return lambda run: kind(parts(run))

    return make


def _dict(node: ast.Dict, scope: Scope) -> Compute:
    keys, values = _several(node.keys, scope), _several(node.values, scope)
    return lambda run: dict(zip(keys(run), values(run), strict=True))


def _unary(node: ast.UnaryOp, scope: Scope) -> Compute:
    apply, operand = _UNARY[type(node.op)], compiled(node.operand, scope)
    return lambda run: apply(operand(run))


def _binary(node: ast.BinOp, scope: Scope) -> Compute:
    apply = BINARY.get(type(node.op))
    if apply is None:
        raise Unsplittable(type(node.op).__name__)
    left, right = compiled(node.left, scope), compiled(node.right, scope)
    return lambda run: apply(left(run), right(run))


def _bool(node: ast.BoolOp, scope: Scope) -> Compute:
    parts = [compiled(value, scope) for value in node.values]
    stops_at = isinstance(node.op, ast.Or)

    def compute(run: ProgramRun) -> Any:
        value: Any = None
        for part in parts:
            value = part(run)
            if bool(value) is stops_at:
                break
        return value

    return compute


def _choice(node: ast.IfExp, scope: Scope) -> Compute:
    test, yes, no = (compiled(part, scope) for part in (node.test, node.body, node.orelse))
    return lambda run: yes(run) if test(run) else no(run)


def _compare(node: ast.Compare, scope: Scope) -> Compute:
    first = compiled(node.left, scope)
    rest = [
        (_COMPARE[type(op)], compiled(right, scope))
        for op, right in zip(node.ops, node.comparators, strict=True)
    ]

    def compute(run: ProgramRun) -> bool:
        left = first(run)
        for holds, part in rest:
            right = part(run)
            if not holds(left, right):
                return False
            left = right
        return True

    return compute


def _same(left: Any, right: Any) -> bool:
    """Compare copies as `is` does: by type and value, except for None, True and False."""
    if left is None or right is None or isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return type(left) is type(right) and bool(left == right)


def _ordered(holds: Callable[[Any, Any], Any]) -> Callable[[Any, Any], bool]:
    def compare(left: Any, right: Any) -> bool:
        if _is_nan(left) or _is_nan(right):
            raise Failed("nan is never right")
        return bool(holds(left, right))

    return compare


def _is_nan(value: Any) -> bool:
    return isinstance(value, (float, complex, Decimal)) and value != value


def _subscript(node: ast.Subscript, scope: Scope) -> Compute:
    value = compiled(node.value, scope)
    if not isinstance(node.slice, ast.Slice):
        at = compiled(node.slice, scope)
        return lambda run: value(run)[at(run)]
    parts = (node.slice.lower, node.slice.upper, node.slice.step)
    bounds = _several([part or ast.Constant(None) for part in parts], scope)
    return lambda run: value(run)[slice(*bounds(run))]


def _attribute(node: ast.Attribute, scope: Scope) -> Compute:
    module = scope.module(node.value.id) if isinstance(node.value, ast.Name) else None
    if module is None or node.attr not in module:
        raise Unsplittable(f".{node.attr}")
    return lambda run: module[node.attr]


def _call(node: ast.Call, scope: Scope) -> Compute:
    arguments = _several(node.args, scope)
    names = [keyword.arg for keyword in node.keywords]
    if None in names:
        raise Unsplittable("**")
    keywords = _several([keyword.value for keyword in node.keywords], scope)
    function = _function(node.func, scope)

    def call(run: ProgramRun) -> Any:
        given = dict(zip(map(str, names), keywords(run), strict=True))
        return function(run)(*arguments(run), **given)

    return call


def _function(node: ast.expr, scope: Scope) -> Compute:
    if not isinstance(node, ast.Attribute) or node.attr not in METHODS:
        return compiled(node, scope)
    value, name = compiled(node.value, scope), node.attr

    def method(run: ProgramRun) -> Any:
        owner = value(run)
        if type(owner) not in OWNERS:
            raise Failed(f"{type(owner).__name__} has no {name} here")
        return partial(joined, owner) if name == "join" else getattr(owner, name)

    return method


def _lambda(node: ast.Lambda, scope: Scope) -> Compute:
    names = [each.arg for each in node.args.args]
    every = sum(isinstance(each, ast.arg) for each in ast.walk(node.args))
    if len(names) < every or node.args.defaults:
        raise Unsplittable("a function with other arguments than names")
    with scope.local(names):
        body = compiled(node.body, scope)

    def make(run: ProgramRun) -> Callable[..., Any]:
        def function(*values: Any) -> Any:
            with _bound(run, dict(zip(names, values, strict=True))):
                return body(run)

        return function

    return make


def _comprehension(kind: Callable[[Iterator[Any]], Any]) -> Callable[[Any, Scope], Compute]:
    def make(node: ast.ListComp | ast.SetComp | ast.GeneratorExp, scope: Scope) -> Compute:
        if len(node.generators) != 1:
            raise Unsplittable("a comprehension of several loops")
        (loop,) = node.generators
        source, names = compiled(loop.iter, scope), target_names(loop.target)
        with scope.local(names):
            element = compiled(node.elt, scope)
            conditions = _several(loop.ifs, scope)
        is_tuple = not isinstance(loop.target, ast.Name)

        def elements(run: ProgramRun) -> Iterator[Any]:
            for value in source(run):
                values = value if is_tuple else [value]
                with _bound(run, dict(zip(names, values, strict=True))):
                    if all(conditions(run)):
                        yield element(run)

        return lambda run: kind(iter(list(elements(run))))

    return make


def target_names(target: ast.expr) -> list[str]:
    """Return the names that a target binds: one, or a flat tuple. Raises Unsplittable."""
    parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
    names = [part.id for part in parts if isinstance(part, ast.Name)]
    if len(names) < len(parts):
        raise Unsplittable("a target that is not a name")
    return names


@contextmanager
def _bound(run: ProgramRun, variables: dict[str, Any]) -> Iterator[None]:
    before, run.variables = run.variables, run.variables | variables
    try:
        yield
    finally:
        run.variables = before


_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda left, right: bool(left == right),
    ast.NotEq: lambda left, right: bool(left != right),
    ast.Lt: _ordered(operator.lt),
    ast.LtE: _ordered(operator.le),
    ast.Gt: _ordered(operator.gt),
    ast.GtE: _ordered(operator.ge),
    ast.Is: _same,
    ast.IsNot: lambda left, right: not _same(left, right),
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_MAKERS: dict[type[ast.expr], Callable[[Any, Scope], Compute]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.List: _collection(list),
    ast.Tuple: _collection(tuple),
    ast.Set: _collection(set),
    ast.Dict: _dict,
    ast.UnaryOp: _unary,
    ast.BinOp: _binary,
    ast.BoolOp: _bool,
    ast.IfExp: _choice,
    ast.Compare: _compare,
    ast.Subscript: _subscript,
    ast.Attribute: _attribute,
    ast.Call: _call,
    ast.Lambda: _lambda,
    ast.ListComp: _comprehension(list),
    ast.SetComp: _comprehension(set),
    ast.GeneratorExp: _comprehension(iter),
}
