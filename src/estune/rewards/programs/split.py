"""Split a test: the program's process computes what calls the program, and we compare.

`assert f(2) == 4` becomes a request for `f(2)`, and a check here that the value is 4; the 4 never
reaches the program. The statements of a test become, in order, requests to the program's process
and checks in ours. A test whose verdict only the program's process can give (with `try` or `while`,
or a long helper of its own) is Unsplittable.
"""

import ast
import builtins
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from random import Random
from typing import Any

from estune.rewards.programs.bounded_functions import FUNCTIONS, METHODS, MODULES
from estune.rewards.programs.exceptions import Failed, Unsplittable
from estune.rewards.programs.expression import Compute, ProgramRun, compiled, target_names
from estune.rewards.programs.syntax import (
    called_name,
    is_hashable,
    is_plain_call,
    is_text,
    literal,
    loaded,
    stored,
)
from estune.rewards.programs.unrolled import Unrolled, bound, literals
from estune.rewards.programs.values import decoded, plain

_NAN = re.compile(r"\b(is)?nan\b", re.IGNORECASE)
_DEFINED = re.compile(r"^(?:def|class) +(\w+)|^(\w+) *=(?!=)", re.MULTILINE)
_STATEMENTS = 2000
_DRAWS = ("choice", "randint", "random", "randrange", "uniform")  # of the module random
_DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Request:
    """A request to the program's process: run `source` or, with `hand_back`, return its value."""

    source: str
    hand_back: bool


@dataclass(frozen=True)
class Split:
    """The requests of a test to the program's process, and the checks of what it hands back."""

    requests: tuple[Request, ...]
    checks: tuple[Compute, ...]

    def passed(self, said: str) -> bool:
        """Return whether what the process `said` passes the test."""
        values = decoded(said)
        if len(values) != sum(request.hand_back for request in self.requests):
            return False
        try:
            return all(check(ProgramRun(values)) for check in self.checks)
        except Exception:  # whatever an assert raises fails the test
            return False


@lru_cache(maxsize=4096)  # all members get the same tests
def split(test: str, redefined: frozenset[str] = frozenset()) -> Split | None:
    """Return `test` as requests and checks, or None if it cannot be split.

    redefined: names of Python's functions that the program gives to its own. They count as the
    program's only if a test calls nothing else of it, as in `assert sum(10, 15) == 6`, so that a
    program gains nothing by redefining `abs`.
    """
    try:
        tree = ast.parse(test)
        if made := _split(tree, test, frozenset()):
            return made
        programs = _innermost(tree, redefined) or _innermost(tree, frozenset(vars(builtins)))
        return _split(tree, test, programs)
    except (Unsplittable, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def redefinitions(program: str) -> frozenset[str]:
    """Return the names of Python's own functions that `program` seems to define itself."""
    names = {name for pair in _DEFINED.findall(program) for name in pair if name}
    return frozenset(name for name in names if hasattr(builtins, name))


def _innermost(tree: ast.AST, redefined: frozenset[str]) -> frozenset[str]:
    """Return those of `redefined` that are called with none of `redefined` in their arguments."""

    def called(node: ast.AST) -> frozenset[str]:
        return redefined & {called_name(each) for each in ast.walk(node)}

    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call)]
    innermost = (each for each in calls if not any(map(called, each.args)))
    return redefined & frozenset(map(called_name, innermost))


def _split(tree: ast.Module, test: str, programs: frozenset[str]) -> Split | None:
    splitter = _Splitter(programs, nan=_NAN.search(test) is not None)
    splitter.run(_inlined(tree.body))
    if not splitter.checks or not any(request.hand_back for request in splitter.requests):
        return None
    return Split(tuple(splitter.requests), tuple(splitter.checks))


def _inlined(statements: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Replace HumanEval's `check(f)` at the end of `statements` by the body of `check`."""
    last = statements[-1] if statements else None
    call = last.value if isinstance(last, ast.Expr) else None
    name = called_name(call)
    for at, found in enumerate(statements):
        if not isinstance(found, ast.FunctionDef) or found.name != name or found.decorator_list:
            continue
        if not isinstance(call, ast.Call) or call.keywords:
            break
        if len(found.args.args) != len(call.args):
            raise Unsplittable("a call of check that does not fit it")
        pairs = zip(found.args.args, call.args, strict=True)
        given = [_assigned(parameter.arg, value) for parameter, value in pairs]
        return [*statements[:at], *statements[at + 1 : -1], *given, *found.body]
    return list(statements)


@dataclass
class _Splitter:
    """Goes through the statements of one test. As a Scope it knows what each name means.

    programs: names that are the program's although Python has them too, and names that the test
    gave to what the program returned.
    """

    programs: frozenset[str]
    nan: bool
    requests: list[Request] = field(default_factory=list)
    checks: list[Compute] = field(default_factory=list)
    _here: dict[str, Compute] = field(default_factory=dict)  # names that are computed here
    _there: dict[str, ast.stmt] = field(default_factory=dict)  # names that its process may need
    _sent: set[str] = field(default_factory=set)  # names that its process has
    _modules: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _locals: list[str] = field(default_factory=list)  # variables of comprehensions
    _mutable: set[str] = field(default_factory=set)  # names of lists and the like
    _given: set[str] = field(default_factory=set)  # that a statement may have changed
    _written: int = 0  # statements; those in a loop count in each round
    _random: Random = field(default_factory=lambda: Random(0))  # the same draws every time

    def run(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    # As a Scope

    def known(self, name: str) -> Compute | None:
        if name in self._locals:
            return lambda run: run.variables[name]
        return self._here.get(name)

    def module(self, name: str) -> Mapping[str, Any] | None:
        return self._modules.get(name)

    def handed_back(self, node: ast.expr) -> Compute | None:
        changed = isinstance(node, ast.Name) and node.id in self._given
        if not changed and not self._is_programs(node):
            return None
        self._send(node, ast.unparse(node), hand_back=True)
        at, nan = sum(request.hand_back for request in self.requests) - 1, self.nan
        return lambda run: plain(run.handed_back[at], nan=nan)

    @contextmanager
    def local(self, names: Sequence[str]) -> Iterator[None]:
        self._locals.extend(names)
        yield
        del self._locals[len(self._locals) - len(names) :]

    # Statements

    def _statement(self, statement: ast.stmt) -> None:
        self._written += 1
        if self._written > _STATEMENTS:
            raise Unsplittable("loops of too many rounds")
        if isinstance(statement, ast.Assert):
            self._assert(statement)
        elif isinstance(statement, ast.Assign):
            self._assign(statement)
        elif isinstance(statement, ast.Expr):
            self._expression(statement)
        elif isinstance(statement, ast.For):
            self._loop(statement)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            self._import(statement)
        elif isinstance(statement, ast.FunctionDef):
            self._function(statement)
        elif isinstance(statement, ast.ClassDef):
            self._define(statement.name, statement)
            self._send_definitions([statement.name])
        elif not isinstance(statement, ast.Pass):
            raise Unsplittable(type(statement).__name__)

    def _assert(self, statement: ast.Assert) -> None:
        if any(self._compares_objects(node) for node in ast.walk(statement.test)):
            raise Unsplittable("a comparison by the program's own classes")
        check = compiled(self._unrolled(statement.test), self)
        self.checks.append(lambda run: bool(check(run)))

    def _unrolled(self, node: ast.expr) -> ast.expr:
        unroller = Unrolled(self._is_programs, self._programs_in, self._known_value)
        unrolled: ast.expr = unroller.visit(node)
        return unrolled

    def _known_value(self, node: ast.expr) -> Any:
        """Return the value of what can be computed before the program has run."""
        if self._programs_in(node):
            raise Unsplittable("a loop over what a program returned")
        try:
            return compiled(node, self)(ProgramRun([]))
        except Failed as error:
            raise Unsplittable(str(error)) from None

    def _assign(self, statement: ast.Assign) -> None:
        if len(statement.targets) != 1:
            raise Unsplittable("an assignment to several targets")
        (target,) = statement.targets
        if self._is_programs(statement.value):
            self._send(statement, ast.unparse(statement), hand_back=False)
            self.programs |= frozenset(target_names(target))
        elif isinstance(target, ast.Name):
            self._name(target.id, statement)
        elif isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
            for name, part in list(bound(target, statement.value)):
                self._statement(_assigned(name, part))
        elif self._programs_in(statement):
            raise Unsplittable("an assignment of what a program returned")
        else:
            self._send(statement, ast.unparse(statement), hand_back=False)
            for name in stored(target):
                self._define(name, statement)
                self._sent.add(name)

    def _name(self, name: str, statement: ast.Assign) -> None:
        """Bind `name` here if its value can be computed here, and there if that needs it."""
        if self._programs_in(statement.value):
            return self._define(name, statement, compiled(statement.value, self))
        drawn_before = self._random.getstate()
        try:
            value = compiled(statement.value, self)(ProgramRun([]))
        except Exception:  # what cannot be computed here is left to the program's process
            return self._define(name, statement)
        if (written := literal(value)) is not None:
            statement = ast.Assign(statement.targets, written, lineno=1)
        elif self._random.getstate() != drawn_before:
            raise Unsplittable("a drawn value that is no literal")
        self._define(name, statement, partial(_first, value))
        if not is_hashable(value):
            self._mutable.add(name)

    def _expression(self, statement: ast.Expr) -> None:
        value = statement.value
        if is_text(statement) or called_name(value) == "print":
            return
        if not self._is_programs(value) and self._programs_in(value):
            raise Unsplittable("a call with the program in its arguments")
        self._send(statement, ast.unparse(statement), hand_back=False)

    def _loop(self, statement: ast.For) -> None:
        """Write out a loop over values that are known here."""
        if statement.orelse:
            raise Unsplittable("a loop with an else")
        for value in literals(self._known_value(statement.iter)):
            for name, part in bound(statement.target, value):
                self._statement(_assigned(name, part))
            self.run(statement.body)

    def _import(self, statement: ast.Import | ast.ImportFrom) -> None:
        for alias in statement.names:
            name = alias.asname or alias.name.partition(".")[0]
            if isinstance(statement, ast.Import):
                self._define(name, statement)
                self._modules |= {name: module} if (module := self._contents(alias.name)) else {}
            else:
                found = self._contents(statement.module or "").get(alias.name)
                self._define(name, statement, None if found is None else partial(_first, found))
            self._send_definitions([name])  # the program may use it, too

    def _contents(self, module: str) -> Mapping[str, Any]:
        """Return what can be used here of a module."""
        if module == "random":
            return {name: getattr(self._random, name) for name in _DRAWS}
        return MODULES.get(module, {})

    def _function(self, statement: ast.FunctionDef) -> None:
        """Define a function of the test's own; one that only returns an expression, here too."""
        self._define(statement.name, statement)
        last = statement.body[-1]
        if isinstance(last, ast.Return) and last.value and all(map(is_text, statement.body[:-1])):
            with suppress(Unsplittable):
                compute = compiled(ast.Lambda(statement.args, last.value), self)
                return self._define(statement.name, statement, compute)
        self._send_definitions([statement.name])  # the program may use it, too

    def _define(self, name: str, statement: ast.stmt, compute: Compute | None = None) -> None:
        self.programs -= {name}
        self._here.pop(name, None)
        self._modules.pop(name, None)
        for names in (self._sent, self._given, self._mutable):
            names.discard(name)
        self._there[name] = statement
        if compute is not None:
            self._here[name] = compute

    # What is the program's

    def _is_programs(self, node: ast.expr) -> bool:
        """Return whether `node` is, calls or reads an attribute of, something of the program's."""
        if isinstance(node, ast.Name):
            return self._is_programs_name(node.id)
        if isinstance(node, ast.Attribute):
            return self._begins_with_programs(node.value)
        if not isinstance(node, ast.Call):
            return False
        method = node.func if isinstance(node.func, ast.Attribute) else None
        if method and method.attr in METHODS and is_plain_call(method.value):
            return False  # a method of what a function returned, which is a plain value here
        return self._begins_with_programs(node.func)

    def _compares_objects(self, node: ast.AST) -> bool:
        operands = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        made = (each for each in operands if called_name(each) and not is_plain_call(each))
        return any(map(self._is_programs, made))

    def _begins_with_programs(self, node: ast.expr) -> bool:
        while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
            node = node.func if isinstance(node, ast.Call) else node.value
        return isinstance(node, ast.Name) and self._is_programs_name(node.id)

    def _is_programs_name(self, name: str) -> bool:
        if name in self.programs:
            return True
        known = (self._locals, self._here, self._there, FUNCTIONS, vars(builtins))
        return not any(name in names for names in known)

    def _programs_in(self, node: ast.AST) -> bool:
        return any(self._is_programs_name(name) for name in loaded(node))

    def _send(self, node: ast.AST, source: str, *, hand_back: bool) -> None:
        """Request `source`, after the definitions of the test's own that it needs."""
        names = loaded(node)
        if set(names) & set(self._locals):
            raise Unsplittable("a call with the variable of a comprehension")
        self._send_definitions(names)
        self.requests.append(Request(source, hand_back))
        lists = self._mutable & set(names) - self._given
        if hand_back:
            self._sent -= lists  # an assert does not change its input: the next gets it again
        else:
            self._given |= lists

    def _send_definitions(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._there or name in self._sent:
                continue
            statement = self._there[name]
            self._sent.add(name)
            needed = loaded(statement)
            if self._programs_in(statement) and not isinstance(statement, _DEFINITIONS):
                raise Unsplittable("a value that was computed here of what the program returned")
            self._send_definitions(needed)
            self.requests.append(Request(ast.unparse(statement), hand_back=False))


def _first(value: Any, run: ProgramRun) -> Any:
    return value


def _assigned(name: str, value: ast.expr) -> ast.Assign:
    return ast.Assign([ast.Name(name, ast.Store())], value, lineno=1)
