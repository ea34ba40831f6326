r"""Compare two mathematical answers by math-verify, without the texts on which it runs for hours.

math-verify limits itself by an alarm signal, which works only in a main thread and depends on the
machine's load, so it is switched off here. Texts known to run away are refused by a pattern. All
others run in a process that is ended after some seconds of processor time, so that a text gets the
same grade on every machine.
"""

import logging
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from estune.errors import ConfigError
from estune.rewards.processes.limited import MAX_SECONDS, Limited

MAX_LENGTH = 400  # the longest answers of MATH and OlympiadBench have some 200 characters
MAX_DEPTH = 8  # the parser's time grows exponentially with the depth of brackets

# Texts without a bound on their value or evaluation time, or with two meanings: large exponents,
# towers of exponents, large or nested factorials.
_RUNAWAY = re.compile(
    r"\^\s*[{(]?\s*[-+]?\s*\d{5}"
    r"|\d[\s})]*\^[\s{(]*[-+]?\d+[\s})]*\^"
    r"|\^[^^]*\^[^^]*\^[\s{(]*\d[^^]*\^"
    r"|\d{4}[\s})]*!|![\s})]*!"
    r"|binom[^!]*\d{4}"
    r"|(?<!frac)(?<!frac )(?<!binom )\d \d"  # which the parser would add
    r"|\\(?:sum|prod|i*int|lim)"  # which are not evaluated
    r"|[-+][^()]*[-+][^()]*\)\s*\^\s*\{?\s*\d\d"  # three terms, which are expanded
    r"|\)\s*\^\s*\{?\s*\d{3}.*[a-z]|[a-z].*\)\s*\^\s*\{?\s*\d{3}"
)
_THOUSANDS = re.compile(r"(?<=\d)(\\[,;: ]| )(?=\d{3}(?!\d))")
_MIXED = re.compile(r"(?<![\d.])(\d+) (\d+)/(\d+)(?!\d)")
_NAN = re.compile(r"[\\{}()$+\-\s]*(?:text|mathrm|operatorname)?[{}\s]*nan[}\s]*", re.IGNORECASE)
_SPACES = re.compile(r"(?<!\w) | (?!\w)")


def same_answer(given: str, reference: str) -> bool:
    """Whether the two answers agree: as text, or in value by math-verify.

    Raises:
        ConfigError: math-verify is not installed.
        OverLimitError: sympy takes too long.
    """
    if find_spec("math_verify") is None:
        raise ConfigError('math-verify is needed to grade mathematics; pip install "estune[math]"')
    given, reference = _plain(given), _plain(reference)
    if _NAN.fullmatch(given) or _NAN.fullmatch(reference):
        return False
    if _SPACES.sub("", given) == _SPACES.sub("", reference):
        return bool(given)
    return _is_tame(given) and _is_tame(reference) and bool(_SAME_VALUE(given, reference))


_SAME_VALUE = Limited("estune.tasks.grading:same_value", MAX_SECONDS)


def same_value() -> Callable[[str, str], bool]:
    """Return the comparison of two tame answers by value, for a process that may be ended."""
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except Exception as error:  # it or one of its dependencies may be missing or not fit
        raise ConfigError(
            f'math-verify is needed to grade mathematics ({error}); pip install "estune[math]"'
        ) from error
    # It warns that it has no time limit, which is intended.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    config = LatexExtractionConfig()

    @lru_cache(maxsize=4096)  # members often give the same answers
    def parsed(text: str) -> tuple[Any, ...]:
        return tuple(parse(f"${text}$", [config], parsing_timeout=None))

    def same(given: str, reference: str) -> bool:
        try:
            return bool(verify(list(parsed(reference)), list(parsed(given)), timeout_seconds=None))
        except MemoryError:
            raise
        except Exception:  # sympy raises many types, even RecursionError
            return False

    return same


def _plain(text: str) -> str:
    """Return the text with ASCII digits, without math mode, thousands' spaces and a full stop."""
    text = "".join(str(unicodedata.decimal(letter, letter)) for letter in text[: 10 * MAX_LENGTH])
    text = " ".join(re.sub(r"(\\)?\$", " ", text).split())
    text = _THOUSANDS.sub("", text).replace("°", r"^\circ").rstrip(".")
    return _MIXED.sub(r"\1\\frac{\2}{\3}", text)


def _is_tame(text: str) -> bool:
    return (
        0 < len(text) <= MAX_LENGTH
        and text.isprintable()
        and _depth(text) <= MAX_DEPTH
        and not _RUNAWAY.search(text)
    )


def _depth(text: str) -> int:
    deepest = depth = 0
    for letter in text:
        depth += (letter in "{([") - (letter in "})]")
        deepest = max(deepest, depth)
    return deepest
