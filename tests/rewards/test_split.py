"""Tests of programs are split: what they expect and the verdict stay here."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estune.rewards.programs.split import split

SECRET = 41_977  # the tests below expect it; no request may hold it

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
    "drawn input": (
        f"import random\nfor _ in range(3):\n    x, y = random.randint(0, 9), {SECRET}\n"
        f"    assert f(x) == x + y"
    ),
}
WHOLE = {
    "an exception that is expected": (
        "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False"
    ),
    "a helper of the test's own": (
        "def near(a, b):\n    d = a - b\n    return d < 1\nassert near(f(1), 2)"
    ),
    "a loop without an end": "while f(1) != 2:\n    pass\nassert True",
    "a class of the library's": "import datetime\nassert f(1) == datetime.date(2020, 1, 2)",
    "loops of a million rounds": (
        "for a in range(1000):\n    for b in range(1000):\n        assert f(a, b) == a"
    ),
    "a comprehension of a million rounds": (
        "assert all(all(f(a, b) for a in range(1000)) for b in range(1000))"
    ),
    "objects of the program's": "assert f(1) == Point(1, 2)",
    "a verdict by call": "import unittest\nunittest.TestCase().assertEqual(f(1), 2)",
    "an unseen helper": "check(f)",
    "nothing of the program's": "assert True",
    "no Python": "assert f(",
}


@pytest.mark.parametrize("test", SPLIT.values(), ids=SPLIT)
def test_what_a_test_expects_is_not_sent_to_the_program(test):
    found = split(test, frozenset({"sum"}))
    assert found is not None
    assert any(each.returns_value for each in found.requests)
    assert not any(str(SECRET) in each.source for each in found.requests)


@pytest.mark.parametrize("test", WHOLE.values(), ids=WHOLE)
def test_a_test_that_only_the_program_can_judge_is_not_split(test):
    assert split(test) is None


def passed(test, *values):
    """Return whether a program that returns `values`, as JSON, passes `test`."""
    found = split(test)
    assert found is not None
    return found.passed(json.dumps([{"value": value} for value in values]))


EQUAL = [
    ("assert f(1) == 3", 3, True),
    ("assert f(1) == 3", 3.0, True),
    ("assert f(1) == 1", True, True),
    ("assert f(1) is True", 1, False),
    ("assert f(1) is True", True, True),
    ("assert f(1) is None", None, True),
    ("assert f(1) is 3", 3, True),
    ("assert f(1) == 0.0", -0.0, True),
    ("assert f(1) == [1, 2]", {"tuple": [1, 2]}, False),
    ("assert f(1) == (1, 2)", {"tuple": [1, 2]}, True),
    ("assert f(1) == {1, 2}", {"set": [2, 1]}, True),
    ("assert f(1) == {1, 2}", {"frozenset": [2, 1]}, True),
    ("assert f(1) == {'b': 1, 'a': [2]}", {"dict": [["a", [2]], ["b", 1]]}, True),
    ("assert f(1) == 10 ** 40", {"int": hex(10**40)}, True),
    ("assert f(1) == 1 + 2j", {"complex": [1.0, 2.0]}, True),
    ("assert f(1) == b'a'", {"bytes": "61"}, True),
    ("assert f(1) == float('inf')", math.inf, True),
    ("assert f(1) == [1]", {"iterator": [1]}, False),
    ("assert list(f(1)) == [1]", {"iterator": [1]}, True),
    ("assert f(1) == range(3)", {"range": [0, 3, 1]}, True),
    ("assert f(1) == {'a'}", {"keys": ["a"]}, True),
    (
        "from fractions import Fraction\nassert f(1) == Fraction(1, 2)",
        {"fraction": ["0x1", "0x2"]},
        True,
    ),
    ("assert f(1) == 0.5", {"decimal": "0.5"}, True),
    ("assert f(1) == 3", {"object": "Any"}, False),
    ("assert f(1) is not None", {"object": "Any"}, True),
    ("assert not f(1)", {"object": "Any"}, False),
    ("assert f(1)", {"object": "Any"}, False),
]


@pytest.mark.parametrize(("test", "value", "verdict"), EQUAL)
def test_values_are_compared_as_python_compares_them(test, value, verdict):
    assert passed(test, value) is verdict


NAN = [
    "assert f(1) == 3",
    "assert f(1) != 3",
    "assert f(1)",
    "assert not f(1) > 3",
    "assert not abs(f(1) - 3) > 0.1",
    "assert f(1) is not None",
    "assert f(1) not in [3]",
    "assert max(1, f(1)) == 1",
    "assert len(str(f(1))) == 3",
]


@pytest.mark.parametrize("test", NAN)
@pytest.mark.parametrize(
    "value", [math.nan, [math.nan], {"decimal": "NaN"}, {"complex": [math.nan, 0.0]}], ids=str
)
def test_nan_is_never_right_unless_the_test_names_it(test, value):
    assert not passed(test, value)


def test_a_test_that_names_nan_accepts_it():
    assert passed("import math\nassert math.isnan(f(1))", math.nan)


FORGED = [
    "",
    "null",
    "{}",
    "[]",
    "[1]",
    "[[]]",
    '[{"value": 3}, {"value": 3}]',
    '[{"raised": "ValueError"}]',
    '[{"value": {"tuple": 3}}]',
    '[{"value": {}}]',
    '[{"value": {"a": 1, "b": 2}}]',
    '[{"value": {"int": "0x3"}, "raised": 1}',
    '[{"value": {"eval": "3"}}]',
    '[{"value": {"set": [[]]}}]',
    '[{"value": {"range": [0, 1e9, 1]}}]',
    '[{"value": {"decimal": "1e999999999"}}]',
    "[" * 100_000,
    '[{"value": ' + "[" * 300 + "]" * 300 + "}]",
    '[{"value": ' + "9" * 100_000 + "}]",
    '[{"value": {"int": "0x' + "f" * 100_000 + '"}}]',
    '[{"value": {"set": ['
    + ",".join(f'{{"int":"{hex(k * (2**61 - 1))}"}}' for k in range(10_000))
    + "]}}]",
]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("output", FORGED, ids=lambda output: output[:24])
def test_output_that_is_not_a_value_fails_the_test_quickly(output):
    found = split("assert f(1) == 3")
    assert found is not None
    assert not found.passed(output)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["tuple", "set", "dict", "int", "iterator", "range", "decimal", "x"]),
            inner,
            max_size=2,
        ),
    ),
    max_leaves=8,
)


@given(values=st.lists(st.fixed_dictionaries({"value": VALUES}), max_size=2))
def test_no_value_makes_the_comparison_raise(values):
    found = split("assert sorted(f(1)) == [1] or len(f(1)) ** f(1) < 3")
    assert found is not None
    assert found.passed(json.dumps(values)) in (True, False)


BUSY = [
    ("assert f(1) ** f(1) == 3", 10**9),
    ("assert f([0] * 10 ** 9) == 10 ** 10 ** 10", 1),
    ("assert 'x' * f(1) == 'x'", 10**12),
    ("assert list(range(f(1))) == []", 10**12),
    ("import math\nassert math.factorial(f(1)) == 6", 10**7),
    ("assert round(7, f(1)) == 7", -(10**9)),
    ("assert sum(i for i in range(99999) for j in [1]) == f(1)", 1),
]


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("test", "value"), BUSY, ids=lambda one: str(one)[:30])
def test_a_value_that_is_slow_to_compare_fails_the_test(test, value):
    found = split(test)
    assert found is None or not found.passed(json.dumps([{"value": {"int": hex(value)}}] * 2))


def test_a_call_that_raises_fails_only_checks_that_need_its_value():
    found = split("assert f(1) == 2 or f(2) == 3")
    assert found is not None
    assert found.passed('[{"value": 2}, {"raised": "ValueError"}]')
    assert not found.passed('[{"raised": "ValueError"}, {"value": 3}]')


def test_a_program_gets_the_definitions_of_a_test_but_not_the_expected_value():
    setup = (
        "import heapq\nclass Node: pass\ndef walk(node):\n    yield node\n"
        "    yield node.next\ndef wanted(): return 41977\nlimit = 3\n"
    )
    found = split(f"{setup}assert f(limit) == wanted()")
    assert found is not None
    sent = "\n".join(each.source for each in found.requests)
    assert all(one in sent for one in ("import heapq", "class Node", "def walk", "limit = 3"))
    assert "41977" not in sent


def test_a_list_passed_to_the_program_is_defined_again_for_the_next_assert():
    once = "assert f(numbers) == sorted(numbers)"
    found = split(f"numbers = [3, 1]\n{once}\n{once}")
    assert found is not None
    assert [each.source for each in found.requests] == ["numbers = [3, 1]", "f(numbers)"] * 2
    assert found.passed('[{"value": [1, 3]}, {"value": [1, 3]}]')
    assert not found.passed('[{"value": [1, 3]}, {"value": []}]')


def test_a_list_that_the_program_may_have_changed_is_read_back():
    found = split("numbers = [3, 1]\nf(numbers)\nassert numbers == [1, 3]")
    assert found is not None
    assert found.passed('[{"value": [1, 3]}]')
    assert not found.passed('[{"value": [3, 1]}]')
