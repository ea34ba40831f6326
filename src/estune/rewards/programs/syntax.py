"""Questions about the syntax of a test."""

import ast
from typing import Any


def loaded(node: ast.AST) -> list[str]:
    """Return the names that `node` reads from around it, each once, in their order."""
    nodes = list(ast.walk(node))
    own = {each.arg for each in nodes if isinstance(each, ast.arg)}
    for each in nodes:
        if isinstance(each, ast.comprehension):
            own.update(stored(each.target))
    return [name for name in dict.fromkeys(_names(node, ast.Load)) if name not in own]


def stored(node: ast.AST) -> list[str]:
    """Return the names that `node` assigns."""
    return _names(node, ast.Store)


def _names(node: ast.AST, context: type[ast.expr_context]) -> list[str]:
    names = [each for each in ast.walk(node) if isinstance(each, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, context)]


def is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def literal(value: Any) -> ast.expr | None:
    """Return `value` as a literal, or None if no literal equals it."""
    try:
        written = ast.parse(repr(value), mode="eval").body
        return written if ast.literal_eval(written) == value else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def called_name(node: ast.AST | None) -> str:
    """Return the name of the function that `node` calls; "" if it is no call of a name."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id
    return ""


def is_plain_call(node: ast.AST) -> bool:
    """Return whether `node` calls a function, and not a class, whose name has a capital."""
    name = called_name(node)
    return name != "" and not name[0].isupper()
