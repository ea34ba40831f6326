"""A split test runs in a process of its own, apart from the program."""

import re

import pytest

from estune.rewards.programs.grade import ProgramGrade, grade
from estune.rewards.programs.split import split
from estune.rewards.sandbox import Unlocked

SECRET = 41_977  # the tests below expect it; the program never sees it

# Each form of test that occurs in MBPP and HumanEval, once
CHECK = "METADATA = {}\n\ndef check(candidate):\n    "
SPLIT = {
    "a value": f"assert f(1, 2) == {SECRET}",
    "a value on the left": f"assert {SECRET} == f(1, 2)",
    "in brackets, with a message": f"assert (f((1, 2))) == ({SECRET}), 'wrong'",
    "a list": f"assert f([3, 1], 'x')==[{SECRET}, 1]",
    "a nested collection": f"assert f({{'a': [1]}}) == {{'a': ({SECRET}, {{1, 2}})}}",
    "text": f"assert f('ab') == '{SECRET}'",
    "a boolean": f"assert f({SECRET - 1}) == True",
    "is": f"assert f({SECRET - 1}) is None",
    "is not": f"assert f({SECRET - 1}) is not False",
    "in": f"assert f(1) in ({SECRET}, 2)",
    "not in": f"assert f(1) not in [{SECRET}]",
    "unequal": f"assert f(1) != {SECRET}",
    "an order": f"assert 1 < f(1) <= {SECRET}",
    "not": "assert not f(3)",
    "a call alone": "assert f(3)",
    "nearly": f"assert abs(f(2.5) - {SECRET}.5) < 1e-6",
    "isclose": f"import math\nassert math.isclose(f(2), {SECRET}.5, rel_tol=0.001)",
    "isclose by its name": f"from math import isclose\nassert isclose(f(2), {SECRET}.5)",
    "several asserts at once": f"assert f(1) == 2 and f(2) == {SECRET}",
    "either": f"assert f(1) == 2 or f(1) == {SECRET}",
    "a length": f"assert len(f(3)) == {SECRET}",
    "sorted": f"assert sorted(f(3)) == [1, {SECRET}]",
    "sorted by a key": f"assert sorted(f(3), key=lambda pair: pair[1]) == [(1, {SECRET})]",
    "a set": f"assert set(f(3)) == {{{SECRET}}}",
    "rounded": f"assert round(f(3), 2) == {SECRET}.25",
    "a method of text": f"assert f(3).lower() == '{SECRET}'",
    "an item": f"assert f(3)[0] == {SECRET}",
    "a type": f"assert isinstance(f(3), int) and f(3) == {SECRET}",
    "two calls": f"assert f(f(1)) == g(2) == {SECRET}",
    "a call of what a call returned": f"assert f(1)(2) == {SECRET}",
    "a method of a class": f"assert Solution().f([1]) == {SECRET}",
    "an object": f"stack = Stack()\nstack.push(1)\nassert stack.pop() == {SECRET}",
    "a name for the result": f"result = f(1)\nassert result == {SECRET}",
    "a name for what is expected": f"expected = [{SECRET}]\nassert f(1) == expected",
    "a computed value": f"assert f(10) == {SECRET} * 2 + sum([1, 2])",
    "a generator's elements": f"assert list(f(3)) == [{SECRET}]",
    "each of several": f"assert all(abs(a - b) < 1e-6 for a, b in zip(f(1), [{SECRET}.5]))",
    "each of several calls": f"assert all(f(x) == y for x, y in [(1, {SECRET}), (2, 3)])",
    "a loop": f"for x, y in [(1, {SECRET}), (2, 3)]:\n    assert f(x) == y",
    "a helper of one line": (
        f"def near(a, b):\n    return abs(a - b) < 0.1\nassert near(f(1), {SECRET})"
    ),
    "the test's own class": (
        f"class Node:\n    def __init__(self, value): self.value = value\nroot = Node(1)\n"
        f"assert f(root) == {SECRET}"
    ),
    "a name of Python's own": f"assert sum(10, 15) == {SECRET}",
    "HumanEval's check": (
        f"{CHECK}assert candidate(1) == {SECRET}, 'no'\n    assert True, 'so'\n\ncheck(f)"
    ),
    "HumanEval's check with a loop": (
        f"{CHECK}for x in range(3):\n        assert candidate(x) == x + {SECRET}\ncheck(f)"
    ),
    "a count of elements": (
        f"from collections import Counter\nassert Counter(f(1)) == Counter([{SECRET}])"
    ),
    "random input": (
        f"import random\nfor _ in range(3):\n    x, y = random.randint(0, 9), {SECRET}\n"
        f"    assert f(x) == x + y"
    ),
}
WHOLE = {
    "a class of the library's": "import datetime\nassert f(1) == datetime.date(2020, 1, 2)",
    "names of a whole module": "from math import *\nassert isclose(f(1), 2)",
    "objects of the program's": "assert f(1) == Point(1, 2)",
    "the class of an object": "assert isinstance(f(1), Point)",
    "what the program may have changed": (
        "class Node:\n    pass\nroot = Node()\nf(root)\nassert root.value == 2"
    ),
    "a verdict by call": "import unittest\nunittest.TestCase().assertEqual(f(1), 2)",
    "an unseen helper": "check(f)",
    "nothing of the program's": "assert True",
    "invalid Python": "assert f(",
}


def fractions(program, tests, seconds=2.0):
    """Return the part of `tests` that `program` passes, run apart from them."""
    assert all(split(test) for test in tests)
    return grade(program, tests, seconds, Unlocked()).fraction


@pytest.mark.parametrize("test", SPLIT.values(), ids=SPLIT)
def test_each_usual_form_of_test_runs_apart_from_the_program(test):
    found = split(test, frozenset({"sum"}))
    assert found is not None
    assert str(SECRET) not in found.definitions


@pytest.mark.parametrize("test", WHOLE.values(), ids=WHOLE)
def test_a_test_that_only_the_program_can_judge_is_not_split(test):
    assert split(test) is None


EQUAL = [
    ("assert f(1) == 3", "3", True),
    ("assert f(1) == 3", "3.0", True),
    ("assert f(1) == 1", "True", True),
    ("assert f(1) is True", "1", False),
    ("assert f(1) is True", "True", True),
    ("assert f(1) is None", "None", True),
    ("assert f(1) is 3", "3", True),
    ("assert f(1) == 0.0", "-0.0", True),
    ("assert f(1) == [1, 2]", "(1, 2)", False),
    ("assert f(1) == (1, 2)", "(1, 2)", True),
    ("assert f(1) == {1, 2}", "{1, 2}", True),
    ("assert f(1) == {1, 2}", "frozenset([1, 2])", True),
    ("assert f(1) == {'b': 1, 'a': [2]}", "{'a': [2], 'b': 1}", True),
    ("assert f(1) == 10 ** 40", "10 ** 40", True),
    ("assert f(1) == 1 + 2j", "1 + 2j", True),
    ("assert f(1) == b'a'", "b'a'", True),
    ("assert f(1) == float('inf')", "float('inf')", True),
    ("assert f(1) == [1]", "iter([1])", False),
    ("assert list(f(1)) == [1]", "iter([1])", True),
    ("assert f(1) == range(3)", "range(3)", True),
    ("assert f(1) == {'a'}", "{'a': 1}.keys()", True),
    (
        "from fractions import Fraction\nassert f(1) == Fraction(1, 2)",
        "__import__('fractions').Fraction(1, 2)",
        True,
    ),
    ("assert f(1) == 0.5", "__import__('decimal').Decimal('0.5')", True),
    ("assert f(1) == 3", "Any()", False),
    ("assert f(1) is not None", "Any()", True),
    ("assert f(1)(3) == 3", "lambda x: x", True),
    ("assert f(1).value == 3", "Any()", True),
    ("assert len(f(1)) == 2 and list(f(1)) == [1, 2]", "Any()", True),
    ("assert f(lambda x: x + 1) == 3", "x(2)", True),
    ("def inc(x):\n    return max(x, 1) + 1\nassert f(inc) == 3", "x(2)", True),
    ("assert f(i for i in [1, 2]) == 3", "sum(x)", True),
    ("import math\nassert f(math) == 3", "x.floor(3.5)", True),
    ("class Node:\n    def __init__(self, v): self.v = v\nassert f(Node(3)) == 3", "x.v", True),
    ("import heapq\nassert f(3) == 3", "heapq.nsmallest(1, [3])[0]", True),
    ("try:\n    f('x')\nexcept ValueError:\n    pass\nassert f('1') == 1", "int(x)", True),
    ("def near(a, b):\n    d = a - b\n    return d < 1\nassert near(f(1), 2)", "2", True),
    ("i = 0\nwhile f(i) < 3:\n    i += 1\nassert i == 3", "x", True),
    ("a = [3, 1]\nassert f(a) == sorted(a)\nassert f(a) == [1, 3]", "x.sort() or x", True),
    ("a = [3, 1]\nf(a)\nassert a == [1, 3]", "x.sort()", True),
    ("a = [3, 1]\nf(a)\nassert a == [1, 3]", "sorted(x)", False),
    ("a = [3, 1]\nassert f(a) == sorted(a)", "x.clear() or []", False),
    ("assert f(1) == 2 or f(2) == 3", "3 if x == 2 else 1 / 0", False),
    ("assert any(map(f, [1, 2])) == False", "next(iter(()))", False),
    ("assert all(f(x) == 1 for x in [1, 2])", "1 if x == 1 else next(iter(()))", False),
]


def test_values_are_compared_as_python_compares_them():
    program = (
        "class Any:\n    value = 3\n    def __iter__(self): return iter([1, 2])\n"
        "    def __len__(self): return 2\n"
    )
    program += "\n".join(f"def f{n}(x): return {value}" for n, (_, value, _) in enumerate(EQUAL))
    tests = [re.sub(r"\bf\b", f"f{n}", test) for n, (test, _, _) in enumerate(EQUAL)]
    right = [test for test, (_, _, verdict) in zip(tests, EQUAL, strict=True) if verdict]
    wrong = [test for test in tests if test not in right]
    assert fractions(program, right) == 1
    assert fractions(program, wrong) == 0


NAN = [
    "assert f({0}) == 3",
    "assert f({0}) != 3",
    "assert f({0})",
    "assert not f({0}) > 3",
    "assert not abs(f({0}) - 3) > 0.1",
    "assert f({0}) is not None",
    "assert f({0}) not in [3]",
    "assert max(1, f({0})) == 1",
    "assert len(str(f({0}))) == 3",
    "try:\n    f({0})\nexcept BaseException as error:\n    assert f(3) == 1",
]


def test_nan_is_never_right_unless_the_test_names_it():
    nans = "float('nan'), [float('nan')], __import__('decimal').Decimal('NaN'), complex('nan')"
    program = f"def f(i): return [{nans}, 1][i]"
    assert fractions(program, [test.format(i) for test in NAN for i in range(4)][:-4]) == 0
    assert fractions(program, ["import math\nassert math.isnan(f(0))"]) == 1


BUSY = [
    ("assert f(1) ** f(1) == 3", "10**9"),
    ("assert f(1) == 10 ** 10 ** 10", "1"),
    ("assert 'x' * f(1) == 'x'", "10**12"),
    ("assert list(range(f(1))) == []", "10**12"),
    ("import math\nassert math.factorial(f(1)) == 6", "10**7"),
    ("assert f(1) == {1}", "{k * (2**61 - 1) for k in range(10**5)}"),
    ("assert f(1) == 1", "'x' * 2**21"),
    ("assert f(1) == []", "(lambda x: [x.append(x), x][1])([])"),
    ("assert f(1) == []", "__import__('itertools').count()"),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("test", "value"), BUSY, ids=lambda one: str(one)[:30])
def test_a_value_that_is_slow_to_compare_fails_the_test_in_its_time(test, value):
    assert fractions(f"def f(x): return {value}", [test], seconds=0.5) == 0


FORGES = {
    "writes a result at once": "os.write(4, b'%016d' % 20 + b'{{\"value\": 3, \"a\": 1}}')",
    "writes something that is not a message": "os.write(4, b'x' * 99)",
    "writes a message without an end": "os.write(4, b'9' * 16 + b'x' * 9999)",
    "closes its pipes": "os.closerange(3, 64)",
    "writes an unknown type": "os.write(4, b'%016d' % 21 + b'{{\"value\": {{\"ev\": 1}}}}')",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("forges", FORGES.values(), ids=FORGES)
def test_a_program_that_forges_results_of_calls_does_not_pass(forges):
    program = f"import os\n{forges.format()}\ndef f(x): return 4"
    assert fractions(program, ["assert f(1) == 3"] * 2, seconds=0.5) == 0


def test_a_test_whose_arguments_cannot_be_sent_to_the_program_runs_as_a_whole():
    test = "import sys\nassert f(sys.stdout) == 3"
    assert split(test) is not None
    assert grade("def f(x): return 3", [test], 2.0, Unlocked()) == ProgramGrade(1.0)
    assert grade("def f(x): return 4", [test], 2.0, Unlocked()) == ProgramGrade(0.0)


def test_more_tests_than_fit_into_one_start_are_all_run():
    tests = [f"assert f({n}) == {n}" for n in range(23)]
    assert fractions("def f(x): return x if x != 22 else 0", tests) == 22 / 23
