"""Split a test into requests to the program's process and checks that run in this process.

`assert f(2) == 4` becomes a request for the value of `f(2)`, and a check that this value is 4. The
program never sees the 4, so it cannot return it without computing it. Each statement of a test
becomes requests, checks or both, in the order of the statements. A test that only the program's
process can run, for example with `try`, `while` or a long function of its own, is Unsplittable.
"""

import ast
import builtins
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from estune.rewards.programs.exceptions import Unsplittable
from estune.rewards.programs.expression import CheckRun, Compute
from estune.rewards.programs.splitter import Request, Splitter
from estune.rewards.programs.syntax import assignment, called_name
from estune.rewards.programs.values import decoded

_NAN = re.compile(r"\b(is)?nan\b", re.IGNORECASE)
_DEFINED = re.compile(r"^(?:def|class) +(\w+)|^(\w+) *=(?!=)", re.MULTILINE)


@dataclass(frozen=True)
class Split:
    """A test as requests to the program's process and checks of the values that it returns."""

    requests: tuple[Request, ...]
    checks: tuple[Compute, ...]

    def passed(self, output: str) -> bool:
        """Return whether the output of the program's process passes the test."""
        responses = decoded(output)
        if len(responses) != sum(request.returns_value for request in self.requests):
            return False
        try:
            return all(check(CheckRun(responses)) for check in self.checks)
        except Exception:  # an exception in an assert statement fails the test
            return False


@lru_cache(maxsize=4096)  # all members get the same tests
def split(test: str, redefined: frozenset[str] = frozenset()) -> Split | None:
    """Return `test` as requests and checks, or None if it cannot be split.

    redefined: names of builtins that the program redefines. In a test such as
        `assert abs(f(1)) == 2` they still mean Python's own function, so that a program cannot
        cheat by redefining `abs`. They mean the program's function only if the test calls nothing
        else of the program, as in `assert sum(10, 15) == 6`.
    """
    try:
        tree = ast.parse(test)
        if found := _split(tree, test, frozenset()):
            return found
        names = _innermost_called(tree, redefined)
        names = names or _innermost_called(tree, frozenset(vars(builtins)))
        return _split(tree, test, names)
    except (Unsplittable, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def redefinitions(program: str) -> frozenset[str]:
    """Return the names of builtins that `program` seems to redefine."""
    names = {name for pair in _DEFINED.findall(program) for name in pair if name}
    return frozenset(name for name in names if hasattr(builtins, name))


def _innermost_called(tree: ast.AST, names: frozenset[str]) -> frozenset[str]:
    """Return those of `names` that a test calls with arguments that call none of `names`.

    In `assert abs(sum(1, 2)) == 3` it is `sum`, if both are in `names`.
    """

    def calls_in(node: ast.AST) -> frozenset[str]:
        return names & {called_name(each) for each in ast.walk(node)}

    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call)]
    innermost = (each for each in calls if not any(map(calls_in, each.args)))
    return names & frozenset(map(called_name, innermost))


def _split(tree: ast.Module, test: str, program_names: frozenset[str]) -> Split | None:
    splitter = Splitter(program_names, allow_nan=_NAN.search(test) is not None)
    splitter.run(_inlined(tree.body))
    if not splitter.checks or not any(request.returns_value for request in splitter.requests):
        return None
    return Split(tuple(splitter.requests), tuple(splitter.checks))


def _inlined(statements: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Replace HumanEval's `check(f)` at the end of `statements` by the body of `check`."""
    last = statements[-1] if statements else None
    call = last.value if isinstance(last, ast.Expr) else None
    name = called_name(call)
    for index, found in enumerate(statements):
        if not isinstance(found, ast.FunctionDef) or found.name != name or found.decorator_list:
            continue
        if not isinstance(call, ast.Call) or call.keywords:
            break
        if len(found.args.args) != len(call.args):
            raise Unsplittable("a call of check with a wrong number of arguments")
        pairs = zip(found.args.args, call.args, strict=True)
        arguments = [assignment(parameter.arg, value) for parameter, value in pairs]
        return [*statements[:index], *statements[index + 1 : -1], *arguments, *found.body]
    return list(statements)
