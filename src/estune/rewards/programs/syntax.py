"""Small questions about a test's syntax."""

import ast
from typing import Any


def loaded(node: ast.AST) -> list[str]:
    """The names that `node` reads from around it, each once, in their order."""
    nodes = list(ast.walk(node))
    own = {
        name
        for each in nodes
        if isinstance(each, ast.comprehension)
        for name in stored(each.target)
    }
    own |= {each.arg for each in nodes if isinstance(each, ast.arg)}
    names = (
        each.id
        for each in nodes
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load) and each.id not in own
    )
    return list(dict.fromkeys(names))


def stored(node: ast.AST) -> list[str]:
    return [
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    ]


def is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def literal(value: Any) -> ast.expr | None:
    """`value` as Python writes it down, if that is all of it."""
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


def is_print(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )


def is_plain_call(node: ast.expr) -> bool:
    """Whether `node` calls a function rather than a class, whose name would have a capital."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and not node.func.id[:1].isupper()
    )
