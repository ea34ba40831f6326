"""Write out comprehensions that call the program, because each call must be a request of its own.

`all(f(x) == y for x, y in [(1, 2), (3, 4)])` becomes `all([f(1) == 2, f(3) == 4])`.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any

from estune.rewards.programs.exceptions import Unsplittable

_ROUNDS = 1000


class Unrolled(ast.NodeTransformer):
    """Writes out comprehensions whose elements the program computes.

    is_programs: whether the program computes a node.
    programs_in: whether it computes any part of a node.
    value: returns the value of a node of which it computes no part.
    """

    def __init__(
        self,
        is_programs: Callable[[ast.expr], bool],
        programs_in: Callable[[ast.AST], bool],
        value: Callable[[ast.expr], object],
    ) -> None:
        self._is_programs, self._programs_in, self._value = is_programs, programs_in, value
        self._elements = 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and self._is_programs(node):
            return node  # the program computes all of it
        return super().visit(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.expr:
        return self._written(node)

    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
        return self._written(node)

    def _written(self, node: ast.GeneratorExp | ast.ListComp) -> ast.expr:
        alone = type(node)(ast.Constant(None), node.generators)
        if not self._programs_in(node) or self._programs_in(alone):
            return node
        if len(node.generators) != 1:
            raise Unsplittable("a comprehension of several loops")
        (loop,) = node.generators
        elements: list[ast.expr] = []
        for values in self._rounds(loop):
            self._elements += 1
            if self._elements > _ROUNDS:
                raise Unsplittable("comprehensions of too many rounds")
            elements.append(self.visit(_with(node.elt, values)))
        return ast.List(elements, ast.Load())

    def _rounds(self, loop: ast.comprehension) -> Iterator[dict[str, ast.expr]]:
        for value in literals(self._value(loop.iter)):
            values = dict(bound(loop.target, value))
            if all(self._value(_with(condition, values)) for condition in loop.ifs):
                yield values


def literals(values: object) -> list[ast.expr]:
    """Return a loop's values as literals. Raises Unsplittable for too many, or for other values."""
    try:
        listed = list(values)  # type: ignore[call-overload]
        written = [ast.parse(repr(value), mode="eval").body for value in listed[:_ROUNDS]]
        same = [ast.literal_eval(one) for one in written] == listed
    except (TypeError, ValueError, SyntaxError):
        same = False
    if not same:
        raise Unsplittable("a loop over other values than literals, or over too many")
    return written


def bound(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names in a loop's target, each with its part of the value."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)):
        for part, one in zip(target.elts, value.elts, strict=True):
            yield from bound(part, one)
    else:
        raise Unsplittable("a loop's target")


def _with(node: ast.expr, values: dict[str, ast.expr]) -> ast.expr:
    """Return `node` with values in place of names."""

    class Place(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return values.get(name.id, name)

    placed: ast.expr = Place().visit(copy.deepcopy(node))
    return placed
