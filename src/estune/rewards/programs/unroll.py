"""Unroll comprehensions that call the program, because each call must be a request of its own.

`all(f(x) == y for x, y in [(1, 2), (3, 4)])` becomes `all([f(1) == 2, f(3) == 4])`.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any

from estune.rewards.programs.exceptions import Unsplittable

_MAX_ROUNDS = 1000


class Unroller(ast.NodeTransformer):
    """Replaces comprehensions by lists if the program computes their elements.

    Args:
        program_computes: returns whether the program computes a whole expression.
        mentions_program: returns whether a node contains a name that the program defines.
        value_of: returns the value of an expression that does not mention the program.
    """

    def __init__(
        self,
        program_computes: Callable[[ast.expr], bool],
        mentions_program: Callable[[ast.AST], bool],
        value_of: Callable[[ast.expr], object],
    ) -> None:
        self._program_computes = program_computes
        self._mentions_program = mentions_program
        self._value_of = value_of
        self._elements = 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and self._program_computes(node):
            return node  # one request will return its value
        return super().visit(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.expr:
        return self._unrolled(node)

    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
        return self._unrolled(node)

    def _unrolled(self, node: ast.GeneratorExp | ast.ListComp) -> ast.expr:
        loops_only = type(node)(ast.Constant(None), node.generators)
        if not self._mentions_program(node) or self._mentions_program(loops_only):
            return node
        if len(node.generators) != 1:
            raise Unsplittable("a comprehension of several loops")
        (loop,) = node.generators
        elements: list[ast.expr] = []
        for values in self._rounds(loop):
            self._elements += 1
            if self._elements > _MAX_ROUNDS:
                raise Unsplittable("comprehensions of too many rounds")
            elements.append(self.visit(_substituted(node.elt, values)))
        return ast.List(elements, ast.Load())

    def _rounds(self, loop: ast.comprehension) -> Iterator[dict[str, ast.expr]]:
        """Yield the values of the loop's variables in each round that its conditions allow."""
        for value in literals(self._value_of(loop.iter)):
            values = dict(bindings(loop.target, value))
            if all(self._value_of(_substituted(condition, values)) for condition in loop.ifs):
                yield values


def literals(values: object) -> list[ast.expr]:
    """Return the elements of an iterable as literals.

    Raises:
        Unsplittable: there are too many elements, or some cannot be written as literals.
    """
    try:
        elements = list(values)  # type: ignore[call-overload]
        nodes = [ast.parse(repr(element), mode="eval").body for element in elements[:_MAX_ROUNDS]]
        equal = [ast.literal_eval(node) for node in nodes] == elements
    except (TypeError, ValueError, SyntaxError):
        equal = False
    if not equal:
        raise Unsplittable("a loop over too many values, or over values that are not literals")
    return nodes


def bindings(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield each name in the target of an assignment or loop, with its part of the value."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)):
        for part, part_value in zip(target.elts, value.elts, strict=True):
            yield from bindings(part, part_value)
    else:
        raise Unsplittable("a loop's target")


def _substituted(node: ast.expr, values: dict[str, ast.expr]) -> ast.expr:
    """Return `node` with each name in `values` replaced by its value."""

    class Substitution(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return values.get(name.id, name)

    result: ast.expr = Substitution().visit(copy.deepcopy(node))
    return result
