"""Questions about the syntax of a test."""

import ast
from typing import Any


def names_read(node: ast.AST) -> list[str]:
    """Return the names from outside `node` that it reads, each once, in their order.

    Its own parameters and the variables of its comprehensions are left out.
    """
    nodes = list(ast.walk(node))
    own = {each.arg for each in nodes if isinstance(each, ast.arg)}
    for each in nodes:
        if isinstance(each, ast.comprehension):
            own.update(names_assigned(each.target))
    return [name for name in dict.fromkeys(_names(node, ast.Load)) if name not in own]


def names_assigned(node: ast.AST) -> list[str]:
    """Return the names that `node` assigns."""
    return _names(node, ast.Store)


def _names(node: ast.AST, context: type[ast.expr_context]) -> list[str]:
    names = [each for each in ast.walk(node) if isinstance(each, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, context)]


def is_docstring(statement: ast.stmt) -> bool:
    """Return whether `statement` is a constant alone, which does nothing when it is run."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def literal(value: Any) -> ast.expr | None:
    """Return the literal whose value equals `value`, or None if there is no such literal."""
    try:
        node = ast.parse(repr(value), mode="eval").body
        return node if ast.literal_eval(node) == value else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def called_name(node: ast.AST | None) -> str:
    """Return the name of the function that `node` calls; "" if `node` is not a call of a name."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id
    return ""


def is_plain_call(node: ast.AST) -> bool:
    """Return whether `node` calls a function by its name. A capital means that it is a class."""
    name = called_name(node)
    return name != "" and not name[0].isupper()


def assignment(name: str, value: ast.expr) -> ast.Assign:
    """Return the statement `name = value`."""
    return ast.Assign([ast.Name(name, ast.Store())], value, lineno=1)
