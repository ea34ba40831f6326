"""Compute a test's expressions in this process from values that a program returned.

`compiled` turns an expression into a function without `eval`. The parts of the expression that the
program must compute become lookups in the values that it returned. An expression of a kind that is
not handled below is Unsplittable. Sizes and the number of operations are limited, because the
program chooses the values and nothing in this process can be killed.
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

_MAX_OPERATIONS = 200_000


@dataclass
class CheckRun:
    """One run of a check.

    responses: the program's responses to the requests that return a value.
    variables: the current variables of comprehensions and lambdas.
    operations_left: how many operations the check may still take.
    """

    responses: Sequence[Any]
    variables: dict[str, Any] = field(default_factory=dict)
    operations_left: int = _MAX_OPERATIONS

    def count_operation(self) -> None:
        """Count one operation. Raises Failed if there were too many."""
        self.operations_left -= 1
        if self.operations_left < 0:
            raise Failed("the comparison takes too many operations")


Compute = Callable[[CheckRun], Any]


class Scope(Protocol):
    """What the names in a test mean."""

    def name_value(self, name: str) -> Compute | None:
        """Return a function that computes the value of `name`, or None if only the program can."""

    def module_contents(self, name: str) -> Mapping[str, Any] | None:
        """Return what a check may use of a module that the test imported as `name`."""

    def program_value(self, node: ast.expr) -> Compute | None:
        """If the program must compute `node`, return a function that looks up the result."""

    def local_variables(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Return a context in which `names` are variables of a comprehension or lambda."""


def compiled(node: ast.expr, scope: Scope) -> Compute:
    """Return a function that computes `node`. Raises Unsplittable."""
    if (program_value := scope.program_value(node)) is not None:
        compute = program_value
    elif type(node) in _COMPILERS:
        compute = _COMPILERS[type(node)](node, scope)
    else:
        raise Unsplittable(type(node).__name__)

    def counted(run: CheckRun) -> Any:
        run.count_operation()
        return compute(run)

    return counted


def _constant(node: ast.Constant, scope: Scope) -> Compute:
    return lambda run: node.value


def _name(node: ast.Name, scope: Scope) -> Compute:
    value = scope.name_value(node.id)
    if value is not None:
        return value
    if node.id in FUNCTIONS:
        return lambda run: FUNCTIONS[node.id]
    raise Unsplittable(node.id)


def _all_of(nodes: Sequence[ast.expr | None], scope: Scope) -> Callable[[CheckRun], list[Any]]:
    computes = [compiled(node, scope) for node in nodes if node is not None]
    if len(computes) < len(nodes):  # `{**other}` has None as its key
        raise Unsplittable("**")
    return lambda run: [compute(run) for compute in computes]


def _collection(kind: Callable[[list[Any]], Any]) -> Callable[[Any, Scope], Compute]:
    def make(node: ast.List | ast.Tuple | ast.Set, scope: Scope) -> Compute:
        parts = _all_of(node.elts, scope)
        return lambda run: kind(parts(run))

    return make


def _dict(node: ast.Dict, scope: Scope) -> Compute:
    keys, values = _all_of(node.keys, scope), _all_of(node.values, scope)
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

    def compute(run: CheckRun) -> Any:
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
        (_COMPARISONS[type(op)], compiled(right, scope))
        for op, right in zip(node.ops, node.comparators, strict=True)
    ]

    def compute(run: CheckRun) -> bool:
        left = first(run)
        for holds, part in rest:
            right = part(run)
            if not holds(left, right):
                return False
            left = right
        return True

    return compute


def _same(left: Any, right: Any) -> bool:
    """Stand in for `is`, which would always be False for a rebuilt value of the program.

    None, True and False are compared with `is`; other values by type and value.
    """
    if left is None or right is None or isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return type(left) is type(right) and bool(left == right)


def _order(holds: Callable[[Any, Any], Any]) -> Callable[[Any, Any], bool]:
    """Return a comparison such as `<` that fails the test if an operand is nan."""

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
    bounds = _all_of([part or ast.Constant(None) for part in parts], scope)
    return lambda run: value(run)[slice(*bounds(run))]


def _attribute(node: ast.Attribute, scope: Scope) -> Compute:
    module = scope.module_contents(node.value.id) if isinstance(node.value, ast.Name) else None
    if module is None or node.attr not in module:
        raise Unsplittable(f".{node.attr}")
    return lambda run: module[node.attr]


def _call(node: ast.Call, scope: Scope) -> Compute:
    arguments = _all_of(node.args, scope)
    names = [keyword.arg for keyword in node.keywords]
    if None in names:
        raise Unsplittable("**")
    keywords = _all_of([keyword.value for keyword in node.keywords], scope)
    function = _function(node.func, scope)

    def call(run: CheckRun) -> Any:
        by_name = dict(zip(map(str, names), keywords(run), strict=True))
        return function(run)(*arguments(run), **by_name)

    return call


def _function(node: ast.expr, scope: Scope) -> Compute:
    if not isinstance(node, ast.Attribute) or node.attr not in METHODS:
        return compiled(node, scope)
    value, name = compiled(node.value, scope), node.attr

    def method(run: CheckRun) -> Any:
        owner = value(run)
        if type(owner) not in OWNERS:
            raise Failed(f"{name} is not allowed for {type(owner).__name__}")
        return partial(joined, owner) if name == "join" else getattr(owner, name)

    return method


def _lambda(node: ast.Lambda, scope: Scope) -> Compute:
    names = [each.arg for each in node.args.args]
    all_parameters = sum(isinstance(each, ast.arg) for each in ast.walk(node.args))
    if len(names) < all_parameters or node.args.defaults:
        raise Unsplittable("a function with special parameters")
    with scope.local_variables(names):
        body = compiled(node.body, scope)

    def make(run: CheckRun) -> Callable[..., Any]:
        def function(*values: Any) -> Any:
            with _with_variables(run, dict(zip(names, values, strict=True))):
                return body(run)

        return function

    return make


def _comprehension(kind: Callable[[Iterator[Any]], Any]) -> Callable[[Any, Scope], Compute]:
    def make(node: ast.ListComp | ast.SetComp | ast.GeneratorExp, scope: Scope) -> Compute:
        if len(node.generators) != 1:
            raise Unsplittable("a comprehension of several loops")
        (loop,) = node.generators
        iterable, names = compiled(loop.iter, scope), target_names(loop.target)
        with scope.local_variables(names):
            element = compiled(node.elt, scope)
            conditions = _all_of(loop.ifs, scope)
        is_tuple = not isinstance(loop.target, ast.Name)

        def elements(run: CheckRun) -> Iterator[Any]:
            for value in iterable(run):
                values = value if is_tuple else [value]
                with _with_variables(run, dict(zip(names, values, strict=True))):
                    if all(conditions(run)):
                        yield element(run)

        return lambda run: kind(iter(list(elements(run))))

    return make


def target_names(target: ast.expr) -> list[str]:
    """Return the names in a target: a name, or a tuple of names. Raises Unsplittable."""
    parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
    names = [part.id for part in parts if isinstance(part, ast.Name)]
    if len(names) < len(parts):
        raise Unsplittable("a target that is not a name")
    return names


@contextmanager
def _with_variables(run: CheckRun, variables: dict[str, Any]) -> Iterator[None]:
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
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda left, right: bool(left == right),
    ast.NotEq: lambda left, right: bool(left != right),
    ast.Lt: _order(operator.lt),
    ast.LtE: _order(operator.le),
    ast.Gt: _order(operator.gt),
    ast.GtE: _order(operator.ge),
    ast.Is: _same,
    ast.IsNot: lambda left, right: not _same(left, right),
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_COMPILERS: dict[type[ast.expr], Callable[[Any, Scope], Compute]] = {
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
