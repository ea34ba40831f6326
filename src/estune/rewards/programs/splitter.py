"""Turn the statements of one test into requests to the program's process and checks in ours."""

import ast
import builtins
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from estune.rewards.programs.bounded_functions import FUNCTIONS, METHODS, MODULES
from estune.rewards.programs.exceptions import Failed, Unsplittable
from estune.rewards.programs.expression import CheckRun, Compute, compiled, target_names
from estune.rewards.programs.syntax import (
    assignment,
    called_name,
    is_docstring,
    is_hashable,
    is_plain_call,
    literal,
    names_assigned,
    names_read,
)
from estune.rewards.programs.unroll import Unroller, bindings, literals
from estune.rewards.programs.values import rebuilt

_MAX_STATEMENTS = 2000
_RANDOM_FUNCTIONS = ("choice", "randint", "random", "randrange", "uniform")
_DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Request:
    """A request to the program's process to run `source`, and perhaps to return its value."""

    source: str
    returns_value: bool


@dataclass
class Splitter:
    """Turns the statements of one test into requests and checks. It is the Scope of the test.

    program_names: names that mean something in the program although they look otherwise: builtins
        that it redefines, and names that the test assigned to values of the program.
    allow_nan: whether nan can be a correct value.
    _computed_locally: names whose values this process can compute.
    _definitions: names that the test defines, with the statement that defines them. If a request
        needs such a name, the statement is requested first.
    _in_program: names of _definitions that are defined in the program's process already.
    _modules: names of imported modules, with what checks may use of them.
    _local_names: the current variables of comprehensions and lambdas.
    _mutable: names of lists and other values that the program could change.
    _maybe_changed: names of _mutable that a statement passed to the program.
    _statements: how many statements there were; those in a loop count in each round.
    _random: stands in for the module random, so that a test is split in the same way each time.
    """

    program_names: frozenset[str]
    allow_nan: bool
    requests: list[Request] = field(default_factory=list)
    checks: list[Compute] = field(default_factory=list)
    _computed_locally: dict[str, Compute] = field(default_factory=dict)
    _definitions: dict[str, ast.stmt] = field(default_factory=dict)
    _in_program: set[str] = field(default_factory=set)
    _modules: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _local_names: list[str] = field(default_factory=list)
    _mutable: set[str] = field(default_factory=set)
    _maybe_changed: set[str] = field(default_factory=set)
    _statements: int = 0
    _random: Random = field(default_factory=lambda: Random(0))

    def run(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    # The interface Scope, which expression.py uses

    def name_value(self, name: str) -> Compute | None:
        if name in self._local_names:
            return lambda run: run.variables[name]
        return self._computed_locally.get(name)

    def module_contents(self, name: str) -> Mapping[str, Any] | None:
        return self._modules.get(name)

    def program_value(self, node: ast.expr) -> Compute | None:
        maybe_changed = isinstance(node, ast.Name) and node.id in self._maybe_changed
        if not maybe_changed and not self._program_computes(node):
            return None
        self._request(node, returns_value=True)
        index = sum(request.returns_value for request in self.requests) - 1
        allow_nan = self.allow_nan
        return lambda run: rebuilt(run.responses[index], allow_nan=allow_nan)

    @contextmanager
    def local_variables(self, names: Sequence[str]) -> Iterator[None]:
        self._local_names.extend(names)
        yield
        del self._local_names[len(self._local_names) - len(names) :]

    # Statements

    def _statement(self, statement: ast.stmt) -> None:
        self._statements += 1
        if self._statements > _MAX_STATEMENTS:
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
            self._request_definitions([statement.name])
        elif not isinstance(statement, ast.Pass):
            raise Unsplittable(type(statement).__name__)

    def _assert(self, statement: ast.Assert) -> None:
        if any(self._compares_objects(node) for node in ast.walk(statement.test)):
            raise Unsplittable("a comparison by the program's own classes")
        check = compiled(self._unrolled(statement.test), self)
        self.checks.append(lambda run: bool(check(run)))

    def _unrolled(self, node: ast.expr) -> ast.expr:
        unroller = Unroller(self._program_computes, self._mentions_program, self._value_of)
        unrolled: ast.expr = unroller.visit(node)
        return unrolled

    def _value_of(self, node: ast.expr) -> Any:
        """Return the value of an expression of a loop, which must not need the program."""
        if self._mentions_program(node):
            raise Unsplittable("a loop over what a program returned")
        try:
            return compiled(node, self)(CheckRun([]))
        except Failed as error:
            raise Unsplittable(str(error)) from None

    def _assign(self, statement: ast.Assign) -> None:
        if len(statement.targets) != 1:
            raise Unsplittable("an assignment to several targets")
        (target,) = statement.targets
        if self._program_computes(statement.value):
            self._request(statement, returns_value=False)
            self.program_names |= frozenset(target_names(target))
        elif isinstance(target, ast.Name):
            self._assign_name(target.id, statement)
        elif isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
            for name, part in list(bindings(target, statement.value)):
                self._statement(assignment(name, part))
        elif self._mentions_program(statement):
            raise Unsplittable("an assignment of what a program returned")
        else:
            self._request(statement, returns_value=False)
            for name in names_assigned(target):
                self._define(name, statement)
                self._in_program.add(name)

    def _assign_name(self, name: str, statement: ast.Assign) -> None:
        """Define `name`, and compute its value in this process if possible.

        The program's process then gets the value as a literal. So a random number is the same in
        both processes.
        """
        if self._mentions_program(statement.value):
            return self._define(name, statement, compiled(statement.value, self))
        random_state = self._random.getstate()
        try:
            value = compiled(statement.value, self)(CheckRun([]))
        except Exception:  # only the program's process can compute it
            return self._define(name, statement)
        if (value_node := literal(value)) is not None:
            statement = ast.Assign(statement.targets, value_node, lineno=1)
        elif self._random.getstate() != random_state:
            raise Unsplittable("a random value that is not a literal")
        self._define(name, statement, _constant(value))
        if not is_hashable(value):
            self._mutable.add(name)

    def _expression(self, statement: ast.Expr) -> None:
        value = statement.value
        if is_docstring(statement) or called_name(value) == "print":
            return
        if not self._program_computes(value) and self._mentions_program(value):
            raise Unsplittable("a call with the program in its arguments")
        self._request(statement, returns_value=False)

    def _loop(self, statement: ast.For) -> None:
        """Unroll a loop over values that do not depend on the program."""
        if statement.orelse:
            raise Unsplittable("a loop with an else")
        for value in literals(self._value_of(statement.iter)):
            for name, part in bindings(statement.target, value):
                self._statement(assignment(name, part))
            self.run(statement.body)

    def _import(self, statement: ast.Import | ast.ImportFrom) -> None:
        for alias in statement.names:
            name = alias.asname or alias.name.partition(".")[0]
            if isinstance(statement, ast.Import):
                self._define(name, statement)
                if contents := self._usable_contents(alias.name):
                    self._modules[name] = contents
            else:
                found = self._usable_contents(statement.module or "").get(alias.name)
                self._define(name, statement, None if found is None else _constant(found))
            self._request_definitions([name])  # the program may use the name too

    def _usable_contents(self, module: str) -> Mapping[str, Any]:
        """Return what checks may use of a module."""
        if module == "random":
            return {name: getattr(self._random, name) for name in _RANDOM_FUNCTIONS}
        return MODULES.get(module, {})

    def _function(self, statement: ast.FunctionDef) -> None:
        """Define a function of the test.

        If it only returns an expression, checks may call it in this process.
        """
        self._define(statement.name, statement)
        *before, last = statement.body
        if isinstance(last, ast.Return) and last.value and all(map(is_docstring, before)):
            with suppress(Unsplittable):
                compute = compiled(ast.Lambda(statement.args, last.value), self)
                return self._define(statement.name, statement, compute)
        self._request_definitions([statement.name])  # the program may use the function too

    def _define(self, name: str, statement: ast.stmt, compute: Compute | None = None) -> None:
        """Note that `statement` defines `name`, and how this process can compute it, if it can."""
        self.program_names -= {name}
        self._computed_locally.pop(name, None)
        self._modules.pop(name, None)
        for names in (self._in_program, self._maybe_changed, self._mutable):
            names.discard(name)
        self._definitions[name] = statement
        if compute is not None:
            self._computed_locally[name] = compute

    # What the program computes

    def _program_computes(self, node: ast.expr) -> bool:
        """Return whether the program computes all of `node`.

        It does if `node` is a name of the program, or a call or an attribute that begins with one.
        """
        if isinstance(node, ast.Name):
            return self._is_program_name(node.id)
        if isinstance(node, ast.Attribute):
            return self._begins_with_program_name(node.value)
        if not isinstance(node, ast.Call):
            return False
        method = node.func if isinstance(node.func, ast.Attribute) else None
        if method and method.attr in METHODS and is_plain_call(method.value):
            return False  # as in f(1).split(): f returned a plain value, which has this method
        return self._begins_with_program_name(node.func)

    def _compares_objects(self, node: ast.AST) -> bool:
        """Return whether `node` compares new objects of the program, as in A(1) == A(2).

        Only the program's process can call the class's own `__eq__`.
        """
        operands = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        objects = (each for each in operands if called_name(each) and not is_plain_call(each))
        return any(map(self._program_computes, objects))

    def _begins_with_program_name(self, node: ast.expr) -> bool:
        while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
            node = node.func if isinstance(node, ast.Call) else node.value
        return isinstance(node, ast.Name) and self._is_program_name(node.id)

    def _is_program_name(self, name: str) -> bool:
        """Return whether the program defines `name`, as it must if nothing else does."""
        if name in self.program_names:
            return True
        others = (
            self._local_names,
            self._computed_locally,
            self._definitions,
            FUNCTIONS,
            vars(builtins),
        )
        return not any(name in names for names in others)

    def _mentions_program(self, node: ast.AST) -> bool:
        return any(self._is_program_name(name) for name in names_read(node))

    # Requests

    def _request(self, node: ast.expr | ast.stmt, *, returns_value: bool) -> None:
        """Request `node` after all definitions of the test that it needs."""
        names = names_read(node)
        if set(names) & set(self._local_names):
            raise Unsplittable("a call with the variable of a comprehension")
        self._request_definitions(names)
        self.requests.append(Request(ast.unparse(node), returns_value))
        passed = (self._mutable & set(names)) - self._maybe_changed
        if returns_value:
            # The checks go on with the value that the test defined. In case the program changed
            # it, it is defined again before the next request that needs it.
            self._in_program -= passed
        else:
            # Such a statement may be meant to change the value, so checks read it back.
            self._maybe_changed |= passed

    def _request_definitions(self, names: Sequence[str]) -> None:
        """Request the statements that define `names`, if the program's process lacks them."""
        for name in names:
            if name not in self._definitions or name in self._in_program:
                continue
            statement = self._definitions[name]
            self._in_program.add(name)
            if self._mentions_program(statement) and not isinstance(statement, _DEFINITIONS):
                raise Unsplittable("a value that checks compute from what the program returned")
            self._request_definitions(names_read(statement))
            self.requests.append(Request(ast.unparse(statement), returns_value=False))


def _constant(value: Any) -> Compute:
    return lambda run: value
